package cli

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func parseRule(t *testing.T, text string) vps.Rule {
	t.Helper()
	r, err := vps.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ruleTexts(rules []vps.Rule) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}

// TestEditsOfListsLoseNothing lets somebody else edit the list between reading
// and writing it: both edits hold.
func TestEditsOfListsLoseNothing(t *testing.T) {
	t.Parallel()
	w := populate(t)
	once := func(change func(*vps.GuestSpec)) {
		w.meanwhile = func() {
			w.meanwhile = nil
			change(&w.guests["walled"].Spec)
		}
	}
	rules := func() string { return ruleTexts(w.guests["walled"].Spec.Rules) }

	once(func(s *vps.GuestSpec) { s.Rules = append(s.Rules, parseRule(t, "deny in any udp")) })
	w.mustRun(t, "net", "deny", "walled", "in", "any", "tcp")
	if want := "allow out host 8080/tcp, deny out 192.0.2.0/24, deny in any udp, deny in any tcp"; rules() != want {
		t.Errorf("rules are %s, want %s", rules(), want)
	}
	// The second is meant as it was when it was asked for, wherever it went.
	once(func(s *vps.GuestSpec) { s.Rules = append([]vps.Rule{parseRule(t, "deny out any")}, s.Rules...) })
	w.mustRun(t, "net", "remove", "walled", "2")
	if want := "deny out any, allow out host 8080/tcp, deny in any udp, deny in any tcp"; rules() != want {
		t.Errorf("rules are %s, want %s", rules(), want)
	}
	once(func(s *vps.GuestSpec) { s.Rules = s.Rules[1:] })
	if code := w.run(t.Context(), "net", "remove", "walled", "1"); code != 3 {
		t.Errorf("a rule that somebody else removed: exit code %d, %s", code, w.errors.String())
	}

	once(func(s *vps.GuestSpec) { s.Forwards = []vps.Forward{{Host: 81, Guest: 81, Protocol: vps.ProtoTCP}} })
	w.mustRun(t, "port", "add", "walled", "80:80/tcp")
	if got := forwardTexts(w.guests["walled"].Spec.Forwards); !cmp.Equal(got, []string{"81:81/tcp", "80:80/tcp"}) {
		t.Errorf("forwards are %q", got)
	}
	once(func(s *vps.GuestSpec) {
		s.Forwards = append(s.Forwards, vps.Forward{Host: 82, Guest: 82, Protocol: vps.ProtoTCP})
	})
	w.mustRun(t, "port", "remove", "walled", "80")
	if got := forwardTexts(w.guests["walled"].Spec.Forwards); !cmp.Equal(got, []string{"81:81/tcp", "82:82/tcp"}) {
		t.Errorf("forwards are %q", got)
	}

	// Who is never fast enough is told so in the end.
	n := uint16(1000)
	w.meanwhile = func() {
		n++
		w.guests["walled"].Spec.Forwards = []vps.Forward{{Host: n, Guest: n, Protocol: vps.ProtoTCP}}
	}
	if code := w.run(t.Context(), "port", "add", "walled", "80:80/tcp"); code != 4 || !strings.Contains(w.errors.String(), "the forwards of the guest walled were changed meanwhile") {
		t.Errorf("exit code %d: %s", code, w.errors.String())
	}
}

func TestAddedKeysLoseNothing(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.guests["alice"].Spec.SSHKeys = nil
	w.meanwhile = func() {
		w.meanwhile = nil
		w.guests["alice"].Spec.SSHKeys = []string{"ssh-ed25519 other"}
	}
	file := filepath.Join(t.TempDir(), "id.pub")
	if err := os.WriteFile(file, []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mustRun(t, "update", "alice", "--add-ssh-key", file, "--memory", "1GiB")
	if got := w.guests["alice"].Spec; !cmp.Equal(got.SSHKeys, []string{"ssh-ed25519 other", testKey}) || got.Memory != vps.GiB {
		t.Errorf("%q, %s", got.SSHKeys, got.Memory)
	}
}

func TestPlaceRule(t *testing.T) {
	t.Parallel()
	a, b, c := parseRule(t, "deny in any tcp"), parseRule(t, "deny in any udp"), parseRule(t, "deny in any icmp")
	for _, tt := range []struct {
		have []vps.Rule
		rule vps.Rule
		at   int
		want []vps.Rule
	}{
		{nil, a, 0, []vps.Rule{a}},
		{nil, a, 5, []vps.Rule{a}},
		{[]vps.Rule{a, b}, c, 0, []vps.Rule{a, b, c}},
		{[]vps.Rule{a, b}, c, 1, []vps.Rule{c, a, b}},
		{[]vps.Rule{a, b}, c, 2, []vps.Rule{a, c, b}},
		{[]vps.Rule{a, b}, c, 64, []vps.Rule{a, b, c}},
		{[]vps.Rule{a, b, c}, a, 0, []vps.Rule{a, b, c}},
		{[]vps.Rule{a, b, c}, a, 3, []vps.Rule{b, c, a}},
		{[]vps.Rule{a, b, c}, c, 1, []vps.Rule{c, a, b}},
		{[]vps.Rule{a, b, c}, b, 2, []vps.Rule{a, b, c}},
	} {
		got := placeRule(append([]vps.Rule{}, tt.have...), tt.rule, tt.at)
		if d := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
			t.Errorf("%s into %s at %d (-want +got):\n%s", tt.rule, ruleTexts(tt.have), tt.at, d)
		}
	}
}

// TestUpdateSendsOnlyWhatIsNamed checks that a limit is changed alone.
func TestUpdateSendsOnlyWhatIsNamed(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.mustRun(t, "update", "alice", "--limit-connections", "0", "--io-write", "0", "--cpu-quota", "25", "--ipv6", "auto", "--network-peer=false", "--bandwidth", "0")
	want := []api.UpdateGuest{{
		Limits: &api.SetLimits{Connections: new(0)}, Resources: &api.SetResources{IOWrite: new(vps.Bytes), CPUQuota: new(25)},
		IPv6: new(netip.Prefix), NetworkPeer: new(false), Bandwidth: new(vps.BitRate),
	}}
	if d := cmp.Diff(want, w.updates, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("sent (-want +got):\n%s", d)
	}
}

// TestAuditOnATerminal checks that each result is shown before the next is
// there, with colours.
func TestAuditOnATerminal(t *testing.T) {
	t.Parallel()
	w := populate(t)
	next := make(chan struct{})
	w.audited = func(context.Context) { <-next }
	_, _, screen := terminal(t, w)
	done := start(t.Context(), w, "net", "audit")
	screen.see(t, "attacking this host from a throw-away guest")
	for _, text := range []string{
		paintGreen + "ok  " + paintOff + "  foreign-mac",
		paintRed + "FAIL" + paintOff + "  router-advertisement-in-a-long-name  dropped       at the victim  -",
		"ATTACK ON THE JAIL",
	} {
		next <- struct{}{}
		screen.see(t, text)
	}
	screen.see(t, "1 of 3 attacks were not met as expected:\r\n  router-advertisement-in-a-long-name: a router advertisement to all nodes; expected dropped, seen at the victim")
	if code := awaitChan(t, done, "end of the audit"); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

func TestAuditEnds(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.audit.OK, w.audit.Results = true, w.audit.Results[:1]
	w.mustRun(t, "net", "audit")
	if !strings.HasSuffix(w.out.String(), "\nall 1 attacks were met as expected\n") {
		t.Error(w.out.String())
	}
	w.mustRun(t, "net", "audit", "-q")
	if w.out.Len() > 0 || w.errors.Len() > 0 {
		t.Errorf("quiet says %q, %q", w.out.String(), w.errors.String())
	}
	w.audit.OK = false // what made it fail was no attack
	if code := w.run(t.Context(), "net", "audit"); code != 1 || !strings.Contains(w.out.String(), "the audit failed") {
		t.Errorf("exit code %d: %s", code, w.out.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.audited = func(context.Context) { cancel() }
	if code := w.run(ctx, "net", "audit"); code != 1 || !strings.Contains(w.errors.String(), "sublet: interrupted") {
		t.Errorf("interrupted: exit code %d: %s", code, w.errors.String())
	}
	w.audited = func(ctx context.Context) { <-ctx.Done() }
	if code := w.run(t.Context(), "net", "audit", "--timeout", "1ms"); code != 6 || !strings.Contains(w.errors.String(), "give it longer with --timeout") {
		t.Errorf("too long: exit code %d: %s", code, w.errors.String())
	}
	if code := w.run(t.Context(), "net", "audit", "--timeout", "0s"); code != 2 {
		t.Errorf("no time: exit code %d", code)
	}
	w.audited, w.failure = nil, vps.Errorf(vps.CodeConflict, "another audit runs")
	if code := w.run(t.Context(), "net", "audit"); code != 4 || !strings.Contains(w.errors.String(), "another audit runs") {
		t.Errorf("another one runs: exit code %d: %s", code, w.errors.String())
	}
	w.failure = nil
	w.options.Stdout = failingWriter{}
	if code := w.run(t.Context(), "net", "audit"); code != 1 || !strings.Contains(w.errors.String(), "no room") {
		t.Errorf("a full disk: exit code %d: %s", code, w.errors.String())
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no room") }
