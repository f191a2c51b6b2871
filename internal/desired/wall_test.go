package desired_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/desired"
	"sublet/internal/vps"
)

func rules(t *testing.T, texts ...string) []vps.Rule {
	t.Helper()
	var out []vps.Rule
	for _, text := range texts {
		r, err := vps.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// TestWallChangesAreTold changes everything that the wall is made from and
// reads what people are told.
func TestWallChangesAreTold(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "a", func(s *vps.GuestSpec) {
		s.Rules = rules(t, "allow in any 22/tcp", "deny in any tcp", "deny out any 6667/tcp")
	})
	e, err := s.Update(ctx, "a", func(s vps.GuestSpec) (vps.GuestSpec, error) {
		s.IPv6 = netip.MustParsePrefix("fd53:4c00:d5::99/128")
		s.NetworkPeer, s.SMTP, s.Bandwidth = true, true, 20*vps.Mbit
		s.Limits.Packets, s.Resources.CPUQuota, s.Resources.IORead = 5000, 150, 50*vps.MiB
		// In place: what is edited must not be what is compared with.
		s.Rules[0], s.Rules[1] = s.Rules[1], s.Rules[0]
		s.Rules[2] = rules(t, "deny out 2001:db8::/32")[0]
		return s, nil
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"guest a: ipv6 none -> fd53:4c00:d5::99/128",
		"guest a: network_peer false -> true",
		"guest a: smtp false -> true",
		"guest a: bandwidth 0 -> 20Mbit",
		"guest a: limits.packets 0 -> 5000",
		"guest a: remove the rule `deny out any 6667/tcp`",
		"guest a: add the rule `deny out 2001:db8::/32` as number 3",
		"guest a: rules in the order `deny in any tcp`, `allow in any 22/tcp`, `deny out 2001:db8::/32`",
		"guest a: resources.cpu_quota 0 -> 150",
		"guest a: resources.io_read 0B -> 50MiB",
	}
	if diff := cmp.Diff(want, e.Lines()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	e, err = s.Apply(ctx, strings.NewReader("version: 1\nsettings: {subnet6: '', services: [], limits: {packets: 7}}\ntenants: [{name: owner, network_peer: true}]\n"), false, false)
	if err != nil {
		t.Fatal(err)
	}
	want = []string{
		"settings: subnet6 fd53:4c00:d5::/64 -> none",
		"settings: services [53/tcp 53/udp 80/tcp 443/tcp 443/udp] -> []",
		"settings: limits.packets 100000 -> 7",
		"tenant owner: network_peer false -> true",
	}
	if diff := cmp.Diff(want, e.Lines()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// TestWallIsRefused tries walls that must not be, and checks that nothing
// changed.
func TestWallIsRefused(t *testing.T) {
	t.Parallel()
	guest := func(shape func(*vps.GuestSpec)) func(context.Context, *desired.State) error {
		return func(ctx context.Context, s *desired.State) error {
			_, err := s.Update(ctx, "a", func(spec vps.GuestSpec) (vps.GuestSpec, error) { shape(&spec); return spec, nil }, false)
			return err
		}
	}
	apply := func(file string) func(context.Context, *desired.State) error {
		return func(ctx context.Context, s *desired.State) error {
			_, err := s.Apply(ctx, strings.NewReader("version: 1\n"+file+"\n"), false, false)
			return err
		}
	}
	prefix := func(text string) func(*vps.GuestSpec) {
		return func(s *vps.GuestSpec) { s.IPv6 = netip.MustParsePrefix(text) }
	}
	for name, tt := range map[string]struct {
		edit func(context.Context, *desired.State) error
		code vps.Code
		says string
	}{
		"outside of the pool":   {guest(prefix("fd00::1/128")), vps.CodeInvalid, "ipv6: fd00::1/128 of the guest a is not in the host's pool fd53:4c00:d5::/64"},
		"larger than the pool":  {guest(prefix("fd53:4c00::/32")), vps.CodeInvalid, "not in the host's pool"},
		"another guest's":       {guest(prefix("fd53:4c00:d5::3/128")), vps.CodeConflict, "overlaps fd53:4c00:d5::3/128 of the guest b"},
		"around another guest":  {guest(prefix("fd53:4c00:d5::/120")), vps.CodeConflict, "of the guest b"},
		"bits behind":           {guest(prefix("fd53:4c00:d5::1/64")), vps.CodeInvalid, "bits set behind its length"},
		"a rule twice":          {guest(func(s *vps.GuestSpec) { s.Rules = rules(t, "deny in any", "deny in any") }), vps.CodeInvalid, "rules[1]: the rule \"deny in any\" is there twice"},
		"a trickle":             {guest(func(s *vps.GuestSpec) { s.Bandwidth = 1 }), vps.CodeInvalid, "bandwidth: "},
		"a file's rule":         {apply("guests: [{name: a, rules: [deny everything]}]"), vps.CodeInvalid, "line 2"},
		"a file's prefix":       {apply("guests:\n- name: a\n  ipv6: fd00::/64"), vps.CodeInvalid, "not in the host's pool"},
		"a pool too small":      {apply("settings: {subnet6: 'fd53:4c00:d5::/120', guest_bits6: 121}"), vps.CodeInvalid, "settings.subnet6: "},
		"a pool that is public": {apply("settings: {subnet6: 'fe80::/64'}"), vps.CodeInvalid, "neither global"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := open(t)
			create(t, s, "a", nil)
			create(t, s, "b", nil)
			before := host(t, s)
			err := tt.edit(t.Context(), s)
			if vps.ErrorCode(err) != tt.code || !strings.Contains(vps.ErrorMessage(err), tt.says) {
				t.Errorf("got %s: %v; want %s and %q", vps.ErrorCode(err), err, tt.code, tt.says)
			}
			if diff := cmp.Diff(before, host(t, s), comparePrefixes); diff != "" {
				t.Errorf("something changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestNetworkIsAskedAboutBothPools checks that the host has its say when the
// pool of IPv6 changes, with what was and what is to be.
func TestNetworkIsAskedAboutBothPools(t *testing.T) {
	t.Parallel()
	s, f := open(t)
	f.subnet = vps.Errorf(vps.CodeConflict, "the route overlaps")
	_, err := s.Apply(t.Context(), strings.NewReader("version: 1\nsettings: {subnet6: 'fd00:1::/64'}\n"), false, false)
	if vps.ErrorCode(err) != vps.CodeConflict || host(t, s).Settings.Subnet6.String() != "fd53:4c00:d5::/64" {
		t.Errorf("%v; want the host's no", err)
	}
	if f.before.Subnet6.String() != "fd53:4c00:d5::/64" || f.after.Subnet6.String() != "fd00:1::/64" {
		t.Errorf("asked about %s -> %s", f.before.Subnet6, f.after.Subnet6)
	}
}

// TestProbesAreTheAuditsOwn checks that throw-away guests are in no file, and
// that no file removes or changes them.
func TestProbesAreTheAuditsOwn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "a", nil)
	create(t, s, "audit-1", func(s *vps.GuestSpec) { s.Probe = "victim" })
	var file bytes.Buffer
	if err := s.Export(ctx, &file); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(file.String(), "audit-1") || strings.Contains(file.String(), "probe") {
		t.Errorf("the export has the audit's guest:\n%s", file.String())
	}
	e, err := s.Apply(ctx, bytes.NewReader(file.Bytes()), true, false)
	if err != nil || len(e.Lines()) > 0 || host(t, s).Guest("audit-1").Deleting {
		t.Errorf("apply --prune of an export: %v, %q", err, e.Lines())
	}
	_, err = s.Apply(ctx, strings.NewReader("version: 1\nguests: [{name: audit-1, memory: 1GiB}]\n"), false, false)
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "sublet net audit") {
		t.Errorf("a file that names it: %v", err)
	}
	if _, err := s.Delete(ctx, "audit-1", false); err != nil {
		t.Errorf("one that was left over cannot be deleted: %v", err)
	}
}

func TestPutTenantKeepsWhatIsNotChanged(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	for range 2 { // making it, and changing it
		if _, err := s.PutTenant(ctx, "ann", func(t vps.Tenant) vps.Tenant { t.Note = "n"; t.Name = "other"; return t }); err != nil {
			t.Fatal(err)
		}
	}
	e, err := s.PutTenant(ctx, "ann", func(t vps.Tenant) vps.Tenant { t.NetworkPeer = true; return t })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"tenant ann: network_peer false -> true"}, e.Lines()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if got := host(t, s).Tenant("ann"); got.Note != "n" || !got.NetworkPeer || got.Created.IsZero() || len(host(t, s).Tenants) != 2 {
		t.Errorf("%+v", got)
	}
}

// TestListsEditedAtTheSameTime lets many edit one list, each on condition that
// it is still what they read: in the end all edits are there. What is compared
// is what the edit starts from, so nobody can come in between.
func TestListsEditedAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "a", nil)
	changed := errors.New("changed meanwhile")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				h, err := s.Host(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				seen := h.Guest("a").Spec.Rules
				_, err = s.Update(ctx, "a", func(spec vps.GuestSpec) (vps.GuestSpec, error) {
					if !slices.Equal(spec.Rules, seen) {
						return spec, changed
					}
					spec.Rules = append(slices.Clone(seen), rules(t, fmt.Sprintf("deny out any %d/tcp", 1000+i))...)
					return spec, nil
				}, false)
				if errors.Is(err, changed) {
					continue
				}
				if err != nil {
					t.Errorf("edit %d: %v", i, err)
				}
				return
			}
		})
	}
	wg.Wait()
	if got := host(t, s).Guest("a").Spec.Rules; len(got) != 8 {
		t.Errorf("of 8 rules there are %v", got)
	}
}

// TestTenantsAnewWait is about security: who takes the name of a tenant that is
// gone does not get its guests that are still being deleted.
func TestTenantsAnewWait(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	same := func(t vps.Tenant) vps.Tenant { return t }
	if _, err := s.PutTenant(ctx, "ann", same); err != nil {
		t.Fatal(err)
	}
	g := create(t, s, "a", func(spec *vps.GuestSpec) { spec.Tenant = "ann" })
	if _, err := s.Delete(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeleteTenant(ctx, "ann"); err != nil {
		t.Fatal(err)
	}
	file := "version: 1\ntenants:\n  - name: ann\n"
	_, put := s.PutTenant(ctx, "ann", same)
	_, applied := s.Apply(ctx, strings.NewReader(file), false, false)
	for _, err := range []error{put, applied} {
		if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(vps.ErrorMessage(err), "guest a of the old tenant ann is still being deleted") {
			t.Errorf("got %v", err)
		}
	}
	if err := s.Forget(ctx, g.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, strings.NewReader(file), false, false); err != nil || host(t, s).Tenant("ann") == nil {
		t.Errorf("when it is gone: %v", err)
	}
}
