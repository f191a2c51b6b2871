package desired_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/desired"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// facts is a host with room for little.
type facts struct {
	boot         string
	memory, disk vps.Bytes
	listeners    []desired.Listener
	kernel       error
	strict       bool
	subnet       error
	// before and after are what Network was asked about last.
	before, after vps.Settings
}

func (f *facts) Image(_ context.Context, name string) (vps.Image, error) {
	if name != vps.DefaultImage {
		return vps.Image{}, vps.Errorf(vps.CodeNotFound, "there is no image %s", name)
	}
	return vps.Image{Name: name, ID: "image-1"}, nil
}

// Kernel knows of one that is elsewhere, and of the default, which is strict.
func (f *facts) Kernel(_ context.Context, _ vps.Settings, s vps.GuestSpec) error {
	if s.Kernel == "uml/elsewhere" || f.strict && s.Isolation != vps.IsolationStrict {
		return vps.Errorf(vps.CodeNotFound, "there is no kernel for it")
	}
	return f.kernel
}

func (f *facts) Room(context.Context) (memory, disk vps.Bytes, err error) {
	return f.memory, f.disk, nil
}
func (f *facts) Listeners(context.Context) ([]desired.Listener, error) { return f.listeners, nil }
func (f *facts) Network(_ context.Context, before, after vps.Settings) error {
	f.before, f.after = before, after
	if after.Uplink != "" {
		return vps.Invalid("settings.uplink", "there is no link %s", after.Uplink)
	}
	return f.subnet
}

func (f *facts) Disk(_ context.Context, _ string, size vps.Bytes) error {
	if size > 64*vps.GiB {
		return vps.Invalid("disk", "the image holds at most 64GiB")
	}
	return nil
}
func (f *facts) HostBoot() string { return f.boot }

func open(tb testing.TB) (*desired.State, *facts) {
	tb.Helper()
	db, err := sqlite.Open(tb.Context(), filepath.Join(tb.TempDir(), "state.db"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	f := &facts{boot: "boot-1", memory: 4 * vps.GiB, disk: 100 * vps.GiB}
	return desired.New(db, f), f
}

var comparePrefixes = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func plain(s vps.GuestSpec) (vps.GuestSpec, error) { return s, nil }

func create(t *testing.T, s *desired.State, name string, shape func(*vps.GuestSpec)) vps.Guest {
	t.Helper()
	e, err := s.Create(t.Context(), name, func(spec vps.GuestSpec) (vps.GuestSpec, error) {
		if shape != nil {
			shape(&spec)
		}
		return spec, nil
	}, false)
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return *e.After.Guest(name)
}

func host(t *testing.T, s *desired.State) *vps.Host {
	t.Helper()
	h, err := s.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

func TestCreateGivesOutAddressesAndPorts(t *testing.T) {
	t.Parallel()
	s, f := open(t)
	f.listeners = []desired.Listener{{Port: 20025, Protocol: vps.ProtoUDP}}
	var got []string
	for _, name := range []string{"a", "b", "c"} {
		g := create(t, s, name, nil)
		got = append(got, fmt.Sprintf("%s %s %s %d %s", name, g.Spec.Address, g.Spec.Ports, g.Index, g.ImageID))
	}
	want := []string{"a 10.213.0.2 20000-20019 1 image-1", "b 10.213.0.3 20040-20059 2 image-1", "c 10.213.0.4 20060-20079 3 image-1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("given out (-want +got):\n%s", diff)
	}
	// What a guest leaves is given out again; its index, and so its uid, never.
	if err := s.Forget(t.Context(), host(t, s).Guest("b").ID); err != nil {
		t.Fatal(err)
	}
	if g := create(t, s, "d", nil); g.Spec.Address.String() != "10.213.0.3" || g.Spec.Ports.First != 20040 || g.Index != 4 {
		t.Errorf("after b is gone d gets %s %s %d", g.Spec.Address, g.Spec.Ports, g.Index)
	}
}

// TestRefused tries what must not be, and checks that nothing changed.
func TestRefused(t *testing.T) {
	t.Parallel()
	create := func(name string, shape func(*vps.GuestSpec)) func(context.Context, *desired.State) error {
		return func(ctx context.Context, s *desired.State) error {
			_, err := s.Create(ctx, name, func(spec vps.GuestSpec) (vps.GuestSpec, error) {
				if shape != nil {
					shape(&spec)
				}
				return spec, nil
			}, false)
			return err
		}
	}
	update := func(shape func(*vps.GuestSpec)) func(context.Context, *desired.State) error {
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
	tests := map[string]struct {
		host func(*facts)
		edit func(context.Context, *desired.State) error
		code vps.Code
		say  string
	}{
		"name taken":       {nil, create("a", nil), vps.CodeConflict, "a guest named a exists already"},
		"bad name":         {nil, create("A!", nil), vps.CodeInvalid, "name: "},
		"no such image":    {nil, create("b", func(s *vps.GuestSpec) { s.Image = "arch/latest" }), vps.CodeNotFound, "arch/latest"},
		"no such tenant":   {nil, create("b", func(s *vps.GuestSpec) { s.Tenant = "bob" }), vps.CodeNotFound, "sublet tenant add bob"},
		"memory short":     {nil, create("b", func(s *vps.GuestSpec) { s.Memory = 4 * vps.GiB }), vps.CodeDenied, "memory_overcommit"},
		"disk full":        {func(f *facts) { f.disk = vps.MiB }, create("b", nil), vps.CodeDenied, "the disk is full"},
		"no kernel":        {func(f *facts) { f.kernel = vps.Errorf(vps.CodeNotFound, "no kernel") }, create("b", nil), vps.CodeNotFound, "no kernel"},
		"port block taken": {nil, create("b", func(s *vps.GuestSpec) { s.Ports = vps.PortBlock{First: 20010, Count: 5} }), vps.CodeConflict, "overlap 20000-20019 of the guest a"},
		"port in use":      {func(f *facts) { f.listeners = []desired.Listener{{Port: 22, Protocol: vps.ProtoTCP}} }, update(func(s *vps.GuestSpec) { s.Forwards = []vps.Forward{{Host: 22, Guest: 22, Protocol: vps.ProtoTCP}} }), vps.CodeConflict, "listens on port 22/tcp"},
		"address taken":    {nil, create("b", func(s *vps.GuestSpec) { s.Address = netip.MustParseAddr("10.213.0.2") }), vps.CodeConflict, "belongs to the guest a"},
		"too many ports":   {nil, create("b", func(s *vps.GuestSpec) { s.Ports.Count = 1001 }), vps.CodeInvalid, "ports: "},
		"shrink":           {nil, update(func(s *vps.GuestSpec) { s.Disk = vps.GiB }), vps.CodeInvalid, "cannot shrink"},
		"beyond the image": {nil, update(func(s *vps.GuestSpec) { s.Disk = 65 * vps.GiB }), vps.CodeInvalid, "at most 64GiB"},
		"no such uplink":   {nil, apply("settings: {uplink: nope0}"), vps.CodeInvalid, "no link nope0"},
		"other uids":       {nil, apply("settings: {first_uid: 5000}"), vps.CodeConflict, "first_uid cannot change"},
		"another image":    {nil, update(func(s *vps.GuestSpec) { s.Image = "debian/13" }), vps.CodeConflict, "for life"},
		"another address":  {nil, update(func(s *vps.GuestSpec) { s.Address = netip.MustParseAddr("10.213.0.9") }), vps.CodeConflict, "for life"},
		"unknown guest": {nil, func(ctx context.Context, s *desired.State) error {
			_, err := s.Stop(ctx, "x", 0, false, false)
			return err
		}, vps.CodeNotFound, "no guest x"},
		"the owner stays":   {nil, func(ctx context.Context, s *desired.State) error { _, err := s.DeleteTenant(ctx, "owner"); return err }, vps.CodeDenied, "stays"},
		"tenant has guests": {nil, func(ctx context.Context, s *desired.State) error { _, err := s.DeleteTenant(ctx, "ann"); return err }, vps.CodeConflict, "still has the guest a"},
		"bad file": {nil, func(ctx context.Context, s *desired.State) error {
			_, err := s.Apply(ctx, strings.NewReader("version: 1\nguests:\n- name: b\n- name: c\n  memory: 1MiB\n"), false, false)
			return err
		}, vps.CodeInvalid, "line 5"},
		"subnet in use": {func(f *facts) { f.subnet = vps.Errorf(vps.CodeConflict, "the route 10.99.0.0/16") }, func(ctx context.Context, s *desired.State) error {
			_, err := s.Apply(ctx, strings.NewReader("version: 1\nsettings:\n  subnet: 10.99.0.0/16\n"), false, false)
			return err
		}, vps.CodeConflict, "10.99.0.0/16"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, f := open(t)
			if _, err := s.PutTenant(t.Context(), "ann", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Create(t.Context(), "a", func(spec vps.GuestSpec) (vps.GuestSpec, error) { spec.Tenant = "ann"; return spec, nil }, false); err != nil {
				t.Fatal(err)
			}
			before := host(t, s)
			if tt.host != nil {
				tt.host(f)
			}
			err := tt.edit(t.Context(), s)
			if vps.ErrorCode(err) != tt.code || !strings.Contains(vps.ErrorMessage(err), tt.say) {
				t.Errorf("got %s: %v; want %s and %q", vps.ErrorCode(err), err, tt.code, tt.say)
			}
			if diff := cmp.Diff(before, host(t, s), comparePrefixes); diff != "" {
				t.Errorf("something changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestOrders(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "a", nil)
	get := func() vps.Guest { return *host(t, s).Guest("a") }
	if _, err := s.Start(ctx, "a", true, false); err != nil || get().Boots != 1 {
		t.Errorf("starting what runs: %v, %d boots; want nothing to change", err, get().Boots)
	}
	if _, err := s.Start(ctx, "a", false, false); err != nil || get().Boots != 2 {
		t.Errorf("starting what ended: %v, %d boots; want 2", err, get().Boots)
	}
	if _, err := s.Stop(ctx, "a", 0, true, false); err != nil || get().Spec.Power != vps.PowerStopped || !get().Abrupt {
		t.Errorf("kill: %v, %+v", err, get())
	}
	if _, err := s.Restart(ctx, "a", 5e9, false); err != nil || get().Spec.Power != vps.PowerRunning || get().Abrupt || get().StopWithin != 5e9 {
		t.Errorf("restart: %v, %+v", err, get())
	}
	if e, err := s.Stop(ctx, "a", 0, false, true); err != nil || len(e.Lines()) != 1 || get().Spec.Power != vps.PowerRunning {
		t.Errorf("a dry run: %v, %q, %+v; want one line and no change", err, e.Lines(), get())
	}
	if _, err := s.Delete(ctx, "a", false); err != nil || !get().Deleting {
		t.Errorf("delete: %v, %+v", err, get())
	}
	if _, err := s.Start(ctx, "a", false, false); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("starting what is being deleted: %v; want a conflict", err)
	}
	if err := s.Forget(ctx, get().ID); err != nil || host(t, s).Guest("a") != nil {
		t.Errorf("forget: %v", err)
	}
}

func TestMemoryOfStoppedGuestsIsNotPromised(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for i := range 100 {
		create(t, s, fmt.Sprintf("g%d", i), func(s *vps.GuestSpec) { s.Power, s.Memory = vps.PowerStopped, 3*vps.GiB })
	}
	if _, err := s.Start(t.Context(), "g1", false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context(), "g2", false, false); vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("promising 6GiB of 4GiB: %v; want it denied", err)
	}
}

// TestZoneAtTheEndOfAMonth: while two zones do not have the same month the host
// does not go from one to the other.
func TestZoneAtTheEndOfAMonth(t *testing.T) {
	t.Parallel()
	const utc, east, west = "Etc/UTC", "Pacific/Kiritimati", "America/New_York"
	at := func(day, hour int) time.Time { return time.Date(2026, 11, day, hour, 43, 0, 0, time.UTC) }
	set := func(s *desired.State, zone string, dryRun bool) error {
		_, err := s.SetSettings(t.Context(), func(settings *vps.Settings) { settings.Timezone = zone }, dryRun)
		return err
	}
	for _, c := range []struct {
		now      time.Time
		was, new string
		want     string // of the error; "" for none
	}{
		{at(30, 9), utc, east, ""},
		{at(30, 10), utc, east, "settings.timezone cannot change from Etc/UTC to Pacific/Kiritimati now: it is November 2026 in one and December 2026 in the other, so November 2026 would end early, and its bill be made for good; change it after 2026-12-01 00:00 UTC, when it is December 2026 in both"},
		{at(30, 13), east, utc, "settings.timezone cannot change from Pacific/Kiritimati to Etc/UTC now: it is December 2026 in one and November 2026 in the other, so November 2026 would go on after its bill was made; change it after 2026-12-01 00:00 UTC, when it is December 2026 in both"},
		{at(31, 3), utc, west, "change it after 2026-12-01 00:00 EST, when it is December 2026 in both"},
		{at(31, 5), utc, west, ""},
		{at(15, 13), utc, east, ""}, // another day is no other month
		{at(30, 13), utc, "Asia/Tokyo", ""},
	} {
		s, _ := open(t)
		s = s.WithClock(func() time.Time { return c.now })
		if err := set(s, c.was, false); err != nil { // there is nothing to bill yet
			t.Fatal(err)
		}
		create(t, s, "alice", nil)
		for _, dryRun := range []bool{true, false} {
			err := set(s, c.new, dryRun)
			if c.want == "" && err != nil || c.want != "" && (vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, %s to %s (dry run %v): %v; want %q", c.now, c.was, c.new, dryRun, err, c.want)
			}
		}
	}
	s, _ := open(t)
	s = s.WithClock(func() time.Time { return at(30, 13) })
	if _, err := s.SetPrice(t.Context(), func(p vps.Price) vps.Price { p.Currency = "CNY"; return p }, false); err != nil {
		t.Fatal(err)
	}
	if err := set(s, east, false); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("with a price, and no guest: %v", err)
	}
}

func TestApplyAfterExportChangesNothing(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	file := `version: 1
settings: {timezone: Asia/Shanghai, dns: [9.9.9.9], services: [], ndp_proxy: off, limits: {packets: 9}}
tenants: [{name: ann, note: next door, network_peer: true}]
guests:
- {name: a, tenant: ann, memory: 256MiB, ports: 40, forwards: ["8443:443/tcp"], autostart: false}
- {name: b, power: stopped, rules: [deny out any 25/tcp, allow in any], bandwidth: 20Mbit, limits: {connections: 100}, resources: {cpu_quota: 150%}}
- {name: c, ipv6: "fd53:4c00:d5::c0/124", network_peer: true, smtp: true, rules: []}
`
	e, err := s.Apply(ctx, strings.NewReader(file), false, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Lines()) == 0 {
		t.Error("applying a file tells of no change")
	}
	before := host(t, s)
	var out bytes.Buffer
	if err := s.Export(ctx, &out); err != nil {
		t.Fatal(err)
	}
	for _, prune := range []bool{false, true} {
		e, err := s.Apply(ctx, bytes.NewReader(out.Bytes()), prune, false)
		if err != nil || len(e.Lines()) > 0 {
			t.Fatalf("apply after export, prune %v: %v, %q", prune, err, e.Lines())
		}
		// The file that was applied first says the same.
		if e, err := s.Apply(ctx, strings.NewReader(file), prune, false); err != nil || len(e.Lines()) > 0 {
			t.Fatalf("apply again, prune %v: %v, %q", prune, err, e.Lines())
		}
	}
	if diff := cmp.Diff(before, host(t, s), comparePrefixes); diff != "" {
		t.Errorf("something changed (-before +after):\n%s", diff)
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	create(t, s, "a", nil)
	create(t, s, "b", nil)
	if _, err := s.Apply(ctx, strings.NewReader("version: 1\nguests: [{name: a}]\n"), false, false); err != nil || host(t, s).Guest("b").Deleting {
		t.Fatalf("without --prune: %v; want b kept", err)
	}
	if _, err := s.Apply(ctx, strings.NewReader("version: 1\nsettings: {locale: C.UTF-8}\n"), true, false); err != nil || host(t, s).Guest("b").Deleting {
		t.Fatalf("a file without guests: %v; want b kept", err)
	}
	e, err := s.Apply(ctx, strings.NewReader("version: 1\nguests: [{name: a}]\n"), true, false)
	if err != nil || !host(t, s).Guest("b").Deleting || host(t, s).Guest("a").Deleting {
		t.Fatalf("with --prune: %v; want b deleted and a kept", err)
	}
	if got := strings.Join(e.Lines(), "\n"); got != "delete the guest b and its disk" {
		t.Errorf("the lines say %q", got)
	}
}

// TestEditsAtTheSameTime lets many guests be made at once: each gets what no
// other has.
func TestEditsAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, err := s.Create(t.Context(), fmt.Sprintf("g%d", i), func(s vps.GuestSpec) (vps.GuestSpec, error) {
				s.Power = vps.PowerStopped
				return s, nil
			}, false)
			if err != nil {
				t.Errorf("g%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	h := host(t, s)
	if err := h.Validate(); err != nil || len(h.Guests) != 16 {
		t.Errorf("%d guests, %v", len(h.Guests), err)
	}
	seen := map[int]bool{}
	for _, g := range h.Guests {
		if seen[g.Index] {
			t.Errorf("the index %d was given out twice", g.Index)
		}
		seen[g.Index] = true
	}
}

func TestUndoIsIdempotent(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	g := create(t, s, "a", nil)
	for range 2 {
		if err := s.Undo(t.Context(), g.ID); err != nil || !host(t, s).Guest("a").Deleting {
			t.Errorf("undo: %v", err)
		}
	}
	if err := s.Undo(t.Context(), "unknown"); err != nil {
		t.Errorf("undo of what never was: %v", err)
	}
	_, err := s.Create(t.Context(), "a", plain, false)
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "still being deleted") {
		t.Errorf("the name of a guest that is being deleted: %v", err)
	}
}
