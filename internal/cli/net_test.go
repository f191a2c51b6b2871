package cli

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func mustRule(t *testing.T, text string) vps.Rule {
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

	once(func(s *vps.GuestSpec) { s.Rules = append(s.Rules, mustRule(t, "deny in any udp")) })
	w.mustRun(t, "net", "deny", "walled", "in", "any", "tcp")
	if want := "allow out host 8080/tcp, deny out 192.0.2.0/24, deny in any udp, deny in any tcp"; rules() != want {
		t.Errorf("rules are %s, want %s", rules(), want)
	}
	// The second is meant as it was when it was asked for, wherever it went.
	once(func(s *vps.GuestSpec) { s.Rules = append([]vps.Rule{mustRule(t, "deny out any")}, s.Rules...) })
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
	a, b, c := mustRule(t, "deny in any tcp"), mustRule(t, "deny in any udp"), mustRule(t, "deny in any icmp")
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
		paintGreen + "ok" + paintOff + "    foreign-mac",
		paintRed + "FAIL" + paintOff + "  router-advertisement-in-a-long-name  dropped  at the victim",
		"ATTACK ON THE JAIL",
	} {
		next <- struct{}{}
		screen.see(t, text)
	}
	screen.see(t, "  router-advertisement-in-a-long-name: a router advertisement to all nodes; expected: dropped; seen: at the victim\r\n\r\n3 attacks, 1 got through\r\n")
	if code := awaitChan(t, done, "end of the audit"); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

func TestAuditEnds(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.audit.OK, w.audit.Results = true, w.audit.Results[:1]
	w.mustRun(t, "net", "audit")
	if !strings.HasSuffix(w.out.String(), "\n1 attack, 0 got through\n") {
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

// TestAuditFits checks that lines fit the screen, whatever was seen, and that
// what failed is told in full.
func TestAuditFits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("/etc/shadow by open: no such file or directory; ", 5) + "/etc/passwd by open: permission denied"
	results := []api.AuditResult{
		{Kind: api.AttackNetwork, Attack: "arp-reply-gateway", What: "an ARP reply that says the gateway's address is the guest's", Expected: "dropped: arp", Seen: "dropped", Counter: "arp", OK: true},
		{Kind: api.AttackNetwork, Attack: "neighbour-unsolicited-victim-local", Expected: "dropped", Seen: "dropped", Counter: "neighbour", OK: true},
		{Kind: api.AttackNetwork, Attack: "witnesses", Expected: "passes", Seen: "left by sl-audit-victim, the host heard it, the victim heard it", OK: true},
		{Kind: api.AttackNetwork, Attack: "flood", Expected: "limited", Seen: "limited", Counter: "packets, new-connection, connections", OK: true},
		{Kind: api.AttackNetwork, Attack: "a-name-that-is-longer-than-any-other-one-there-was", Expected: "dropped", Seen: "the victim heard it", Counter: "between-guests", OK: false},
		{Kind: api.AttackNetwork, Attack: "own-packet", What: "its own packet", Expected: "passes", Seen: "did not arrive", OK: false},
		{Kind: api.AttackJail, Attack: "shadow", What: "open /etc/shadow", Expected: "refused", Seen: long, OK: true},
		{Kind: api.AttackJail, Attack: "leftover-descriptors", What: "use what was left open", Expected: "refused", Seen: long + "; it worked", OK: false},
		{Kind: api.AttackJail, Attack: "harm-neighbour", Expected: "unharmed", Seen: "", OK: true},
	}
	for _, width := range []int{40, 80, 120, 200} {
		w := populate(t)
		var out strings.Builder
		table := &auditTable{app: &app{Options: withDefaults(w.options)}, columns: width}
		table.Stdout = &out
		for _, r := range results {
			table.add(r)
		}
		rows := out.String()
		if err := table.sum(api.AuditReport{Results: results}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && width >= 80 {
				t.Errorf("%d columns of %d: %q", n, width, line)
			}
		}
		if !strings.HasSuffix(out.String(), "\n\n7 attacks, 2 got through; of 2 packets that have to pass, 1 did not\n") {
			t.Errorf("the end is %q", out.String()[len(rows):])
		}
		if said := strings.Join(strings.Fields(out.String()[len(rows):]), " "); !strings.Contains(said, long+"; it worked") {
			t.Errorf("what got through is not told: %s", said)
		}
		if width == 80 || width == 120 {
			golden(t, filepath.Join("testdata", "golden", "net.audit."+strconv.Itoa(width)), out.String())
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no room") }
