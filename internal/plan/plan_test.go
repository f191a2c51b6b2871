package plan_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sublet/internal/plan"
	"sublet/internal/vps"
)

const boot = "boot-1"

func guest(name string, change func(*vps.Guest)) vps.Guest {
	g := vps.Guest{ID: "id-" + name, Spec: vps.NewGuestSpec(name), Index: 1, Boots: 1, HostBoot: boot}
	g.Spec.Address = netip.MustParseAddr("10.213.0.2")
	if change != nil {
		change(&g)
	}
	return g
}

func running(boots int64) *vps.Instance { return &vps.Instance{Boots: boots, PID: 7} }

func ended(boots int64, reason vps.ExitReason) *vps.Instance {
	return &vps.Instance{Boots: boots, Exit: &vps.Exit{Reason: reason}}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	whole := &vps.Volume{Size: vps.DefaultDisk}
	policy := func(p vps.RestartPolicy) func(*vps.Guest) {
		return func(g *vps.Guest) { g.Spec.Restart = p }
	}
	disks := func(namesAndSizes ...any) func(*vps.Guest) {
		return func(g *vps.Guest) {
			for i := 0; i < len(namesAndSizes); i += 2 {
				g.Spec.Disks = append(g.Spec.Disks, vps.DataDisk{Name: namesAndSizes[i].(string), Size: namesAndSizes[i+1].(vps.Bytes)})
			}
		}
	}
	used := func(g *vps.Guest) { g.Restraint = &vps.Restraint{Quota: "guest/a", Action: vps.ActionStop} }
	tests := []struct {
		name   string
		change func(*vps.Guest)
		found  plan.Guest
		want   string
	}{
		{"new", nil, plan.Guest{}, `
create-volume a 8GiB from debian/12 (it has none)
write-seed a (its identity changed)
start a (it was asked to run)`},
		{"new and not to run", func(g *vps.Guest) { g.Spec.Power = vps.PowerStopped }, plan.Guest{}, `
create-volume a 8GiB from debian/12 (it has none)
write-seed a (its identity changed)`},
		{"half made: the volume is there", nil, plan.Guest{Volume: whole}, `
write-seed a (its identity changed)
start a (it was asked to run)`},
		{"as it should be", nil, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, ``},
		{"a running guest's seed waits for its next boot", nil, plan.Guest{Volume: whole, Instance: running(1)}, ``},
		{"grown while it runs waits for its next boot", nil, plan.Guest{Volume: &vps.Volume{Size: vps.GiB}, Instance: running(1)}, ``},
		{"grown while stopped", func(g *vps.Guest) { g.Spec.Power = vps.PowerStopped }, plan.Guest{Volume: &vps.Volume{Size: vps.GiB}, Seed: true}, `
grow-volume a to 8GiB (it has 1GiB)`},
		{"disks of a new guest", disks("data", 3*vps.GiB), plan.Guest{}, `
create-volume a 8GiB from debian/12 (it has none)
create-disk a data of 3GiB (it has none of that name)
write-seed a (its identity changed)
start a (it was asked to run)`},
		{"disks that changed", disks("more", 3*vps.GiB, "new", vps.GiB), plan.Guest{Seed: true, Volume: &vps.Volume{Size: vps.DefaultDisk, Data: []vps.DataVolume{{Name: "old", Size: vps.GiB}, {Name: "more", Size: vps.GiB}}}}, `
grow-disk a more to 3GiB (it has 1GiB)
create-disk a new of 1GiB (it has none of that name)
delete-disk a old (it is not asked for any more)
start a (it was asked to run)`},
		{"disks that changed wait for the next boot", disks("more", 3*vps.GiB), plan.Guest{Seed: true, Volume: whole, Instance: running(1)}, ``},
		{"to be reinstalled", func(g *vps.Guest) { g.Generation, g.Boots = 1, 2 }, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, `
replace-volume a 8GiB from debian/12 (it is to be reinstalled)
start a (a start was asked for)`},
		{"to be reinstalled while it runs", func(g *vps.Guest) { g.Generation, g.Boots = 1, 2 }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
stop a within 1m0s (a restart was asked for)`},
		{"another image is no reason to lose a disk", func(g *vps.Guest) { g.ImageID = "newer" }, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, ``},
		{"a disk of a later generation is kept", nil, plan.Guest{Volume: &vps.Volume{Size: vps.DefaultDisk, Generation: 3}, Seed: true, Instance: running(1)}, ``},
		{"to be rescued", func(g *vps.Guest) { g.Boots, g.Rescue = 2, &vps.Rescue{Boots: 2} }, plan.Guest{Volume: whole, Instance: ended(1, vps.ExitPowerOff), RescueRoots: []string{"id-a-rescue-1"}}, `
delete-rescue a id-a-rescue-1 (that rescue is over)
create-rescue a id-a-rescue-2 (it is to be rescued)
write-seed a (its identity changed)
start a (a start was asked for)`},
		{"in rescue", func(g *vps.Guest) { g.Boots, g.Rescue = 2, &vps.Rescue{Boots: 2} }, plan.Guest{Volume: whole, Seed: true, Instance: running(2), RescueRoots: []string{"id-a-rescue-2"}}, ``},
		{"after a rescue", func(g *vps.Guest) { g.Boots = 3 }, plan.Guest{Volume: whole, Instance: ended(2, vps.ExitPowerOff), RescueRoots: []string{"id-a-rescue-2"}}, `
delete-rescue a id-a-rescue-2 (that rescue is over)
write-seed a (its identity changed)
start a (a start was asked for)`},
		{"deleted in rescue", func(g *vps.Guest) { g.Deleting, g.Rescue = true, &vps.Rescue{Boots: 2} }, plan.Guest{Volume: whole, RescueRoots: []string{"id-a-rescue-2"}}, `
delete-volume a (it is being deleted)
delete-rescue a id-a-rescue-2 (it is being deleted)
forget a (it is being deleted)`},
		{"its link was made again", nil, plan.Guest{Volume: whole, Seed: true, Instance: running(1), Detached: true}, `
replug a (its link was made again)`},
		{"other limits while it runs", func(g *vps.Guest) { g.Spec.Resources.CPUQuota = 50 }, plan.Guest{Volume: whole, Seed: true, Instance: running(1), Limits: &vps.Resources{}}, `
set-limits a (its limits changed)`},
		{"the limits that it has", func(g *vps.Guest) { g.Spec.Resources.CPUQuota = 50 }, plan.Guest{Volume: whole, Seed: true, Instance: running(1), Limits: &vps.Resources{CPUQuota: 50}}, ``},
		{"other limits and a new link", nil, plan.Guest{Volume: whole, Seed: true, Instance: running(1), Limits: &vps.Resources{CPUQuota: 50}, Detached: true}, `
set-limits a (its limits changed)
replug a (its link was made again)`},
		{"stop", func(g *vps.Guest) { g.Spec.Power = vps.PowerStopped }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
stop a within 1m0s (it was asked to be stopped)`},
		{"kill", func(g *vps.Guest) { g.Spec.Power, g.Abrupt = vps.PowerStopped, true }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
kill a (it was asked to be stopped)`},
		{"its quota is used up", used, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
stop a within 1m0s (the quota guest/a is used up)`},
		{"its quota is used up, and it was killed before", func(g *vps.Guest) { used(g); g.Abrupt = true }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
stop a within 1m0s (the quota guest/a is used up)`},
		{"its quota is used up, and it is killed", func(g *vps.Guest) { used(g); g.Spec.Power, g.Abrupt = vps.PowerStopped, true }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
kill a (it was asked to be stopped)`},
		{"its quota is used up, and it has crashed", used, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitCrash)}, ``},
		{"its quota is used up, and a start is asked for", func(g *vps.Guest) { used(g); g.Boots = 2 }, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, ``},
		{"its quota is used up, and the host was booted", func(g *vps.Guest) { used(g); g.HostBoot = "boot-0" }, plan.Guest{Volume: whole, Seed: true}, ``},
		{"its network is suspended", func(g *vps.Guest) { g.Restraint = &vps.Restraint{Action: vps.ActionSuspend} }, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitCrash)}, `
start a (it ended: crash)`},
		{"restart, first half", func(g *vps.Guest) { g.Boots, g.StopWithin = 2, vps.Duration(5*time.Second) }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
stop a within 5s (a restart was asked for)`},
		{"restart, second half", func(g *vps.Guest) { g.Boots = 2 }, plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, `
start a (a start was asked for)`},
		{"crash, on-failure", policy(vps.RestartOnFailure), plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitCrash)}, `
start a (it ended: crash)`},
		{"panic, always", policy(vps.RestartAlways), plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPanic)}, `
start a (it ended: panic)`},
		{"crash, never", policy(vps.RestartNever), plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitCrash)}, ``},
		{"power-off inside, on-failure", policy(vps.RestartOnFailure), plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, ``},
		{"power-off inside, always", policy(vps.RestartAlways), plan.Guest{Volume: whole, Seed: true, Instance: ended(1, vps.ExitPowerOff)}, `
start a (it ended: power-off)`},
		{"after a reboot of the host", func(g *vps.Guest) { g.HostBoot = "boot-0" }, plan.Guest{Volume: whole, Seed: true}, `
start a (the host was booted)`},
		{"after a reboot of the host, no autostart", func(g *vps.Guest) { g.HostBoot, g.Spec.Autostart = "boot-0", false }, plan.Guest{Volume: whole, Seed: true}, ``},
		{"delete while it runs", func(g *vps.Guest) { g.Deleting = true }, plan.Guest{Volume: whole, Seed: true, Instance: running(1)}, `
kill a (it is being deleted)`},
		{"delete what is stopped", func(g *vps.Guest) { g.Deleting = true }, plan.Guest{Volume: whole, Instance: ended(1, vps.ExitKilled)}, `
delete-volume a (it is being deleted)
forget a (it is being deleted)`},
		{"delete what is almost gone", func(g *vps.Guest) { g.Deleting = true }, plan.Guest{}, `
forget a (it is being deleted)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := guest("a", tt.change)
			host := vps.Host{Settings: vps.DefaultSettings(), Guests: []vps.Guest{g}}
			got := text(plan.Diff(host, plan.Observed{HostBoot: boot, Guests: map[string]plan.Guest{g.ID: tt.found}}))
			if diff := cmp.Diff(strings.TrimSpace(tt.want), got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostStepsComeFirst(t *testing.T) {
	t.Parallel()
	host := vps.Host{Settings: vps.DefaultSettings(), Guests: []vps.Guest{guest("b", nil), guest("a", nil)}}
	got := text(plan.Diff(host, plan.Observed{
		HostBoot: boot, Firewall: []string{"the table inet sublet is missing"}, Network: []string{"the link sl-a is missing"},
	}))
	want := `set-firewall (the table inet sublet is missing)
set-network (the link sl-a is missing)
create-volume a 8GiB from debian/12 (it has none)
write-seed a (its identity changed)
start a (it was asked to run)
create-volume b 8GiB from debian/12 (it has none)
write-seed b (its identity changed)
start b (it was asked to run)`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

func text(steps []plan.Step) string {
	lines := make([]string, 0, len(steps))
	for _, s := range steps {
		lines = append(lines, s.String())
	}
	return strings.Join(lines, "\n")
}

// TestPlanSettles is the promise that the plan after a successful apply is
// empty: any host in any state settles, within three rounds, whatever part of
// the first plan was taken before a kill.
func TestPlanSettles(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		host := vps.Host{Settings: vps.DefaultSettings()}
		o := plan.Observed{HostBoot: boot, Guests: map[string]plan.Guest{}}
		for _, name := range []string{"a", "b", "c"}[:rapid.IntRange(0, 3).Draw(t, "guests")] {
			g := drawGuest(t, name)
			host.Guests = append(host.Guests, g)
			o.Guests[g.ID] = drawFound(t, name)
		}
		if rapid.Bool().Draw(t, "drift") {
			o.Firewall, o.Network = []string{"drift"}, []string{"drift"}
		}
		first := plan.Diff(host, o)
		killedAfter := rapid.IntRange(0, len(first)).Draw(t, "killed after")
		for _, s := range first[:killedAfter] {
			take(&host, &o, s)
		}
		var steps []plan.Step
		for range 3 {
			steps = plan.Diff(host, o)
			for _, s := range steps {
				take(&host, &o, s)
				take(&host, &o, s) // a step taken twice is a step taken once
			}
		}
		if steps = plan.Diff(host, o); len(steps) > 0 {
			t.Fatalf("the plan does not settle:\n%s", text(steps))
		}
	})
}

func drawGuest(t *rapid.T, name string) vps.Guest {
	return guest(name, func(g *vps.Guest) {
		g.Deleting = rapid.Bool().Draw(t, "deleting")
		g.Abrupt = rapid.Bool().Draw(t, "abrupt")
		g.Spec.Power = rapid.SampledFrom([]vps.Power{vps.PowerRunning, vps.PowerStopped}).Draw(t, "power")
		g.Boots = rapid.Int64Range(1, 3).Draw(t, "boots")
		for _, name := range []string{"data", "logs"} {
			if size := rapid.IntRange(0, 2).Draw(t, "size of "+name); size > 0 {
				g.Spec.Disks = append(g.Spec.Disks, vps.DataDisk{Name: name, Size: vps.Bytes(size) * vps.GiB})
			}
		}
		g.Generation = rapid.Int64Range(0, 2).Draw(t, "generation")
		if began := rapid.Int64Range(0, 3).Draw(t, "rescue"); began > 0 {
			g.Rescue = &vps.Rescue{Boots: began}
		}
		g.Spec.Autostart = rapid.Bool().Draw(t, "autostart")
		if rapid.Bool().Draw(t, "quota used up") {
			g.Restraint = &vps.Restraint{Quota: "host", Action: vps.ActionStop}
		}
		g.HostBoot = rapid.SampledFrom([]string{boot, "boot-0"}).Draw(t, "host boot")
		g.Spec.Restart = rapid.SampledFrom([]vps.RestartPolicy{vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever}).Draw(t, "restart")
	})
}

func drawFound(t *rapid.T, name string) plan.Guest {
	var f plan.Guest
	if rapid.Bool().Draw(t, "volume") {
		f.Volume = &vps.Volume{GuestID: "id-" + name, Size: rapid.SampledFrom([]vps.Bytes{vps.GiB, vps.DefaultDisk}).Draw(t, "size")}
	}
	if f.Volume != nil {
		for _, name := range []string{"data", "logs", "old"} {
			if size := rapid.IntRange(0, 2).Draw(t, "found size of "+name); size > 0 {
				f.Volume.Data = append(f.Volume.Data, vps.DataVolume{Name: name, Size: vps.Bytes(size) * vps.GiB})
			}
		}
	}
	if f.Volume != nil {
		f.Volume.Generation = rapid.Int64Range(0, 2).Draw(t, "generation of the volume")
	}
	for began := range int64(3) {
		if rapid.Bool().Draw(t, "root of a rescue") {
			f.RescueRoots = append(f.RescueRoots, (&vps.Guest{ID: "id-" + name, Rescue: &vps.Rescue{Boots: began}}).RescueID())
		}
	}
	f.Seed = rapid.Bool().Draw(t, "seed")
	switch rapid.IntRange(0, 2).Draw(t, "instance") {
	case 1:
		f.Instance = running(rapid.Int64Range(1, 3).Draw(t, "instance boots"))
		f.Detached = rapid.Bool().Draw(t, "detached")
		if rapid.Bool().Draw(t, "limits") {
			f.Limits = &vps.Resources{CPUQuota: rapid.IntRange(0, 1).Draw(t, "quota")}
		}
	case 2:
		f.Instance = ended(1, rapid.SampledFrom([]vps.ExitReason{vps.ExitPowerOff, vps.ExitKilled, vps.ExitPanic, vps.ExitCrash, vps.ExitLost}).Draw(t, "reason"))
	}
	return f
}

// take does to the model what a step does to a host.
func take(host *vps.Host, o *plan.Observed, s plan.Step) {
	f := o.Guests[s.GuestID]
	switch s.Kind {
	case plan.SetFirewall:
		o.Firewall = nil
		return
	case plan.SetNetwork:
		o.Network = nil
		return
	case plan.ForgetGuest:
		delete(o.Guests, s.GuestID)
		host.Guests = slicesDelete(host.Guests, s.GuestID)
		return
	case plan.CreateVolume, plan.ReplaceVolume:
		if f.Volume == nil {
			f.Volume = &vps.Volume{GuestID: s.GuestID}
		}
		f.Volume.Size = vps.DefaultDisk
		for _, g := range host.Guests {
			if g.ID == s.GuestID {
				f.Volume.Generation = g.Generation
			}
		}
	case plan.CreateRescue, plan.DeleteRescue:
		kept := []string{}
		for _, id := range f.RescueRoots {
			if id != s.Disk {
				kept = append(kept, id)
			}
		}
		if s.Kind == plan.CreateRescue {
			kept = append(kept, s.Disk)
		}
		f.RescueRoots = kept
	case plan.GrowVolume:
		f.Volume.Size = vps.DefaultDisk
	case plan.CreateDisk, plan.GrowDisk, plan.DeleteDisk:
		kept := []vps.DataVolume{}
		for _, d := range f.Volume.Data {
			if d.Name != s.Disk {
				kept = append(kept, d)
			}
		}
		if s.Kind != plan.DeleteDisk {
			kept = append(kept, vps.DataVolume{Name: s.Disk, Size: s.Size})
		}
		f.Volume.Data = kept
	case plan.WriteSeed:
		f.Seed = true
	case plan.StartGuest:
		for _, g := range host.Guests {
			if g.ID == s.GuestID {
				f.Instance, f.Detached, f.Limits = running(g.Boots), false, &g.Spec.Resources
			}
		}
	case plan.ReplugGuest:
		f.Detached = false
	case plan.SetLimits:
		for _, g := range host.Guests {
			if g.ID == s.GuestID {
				f.Limits = &g.Spec.Resources
			}
		}
	case plan.StopGuest:
		f.Instance = ended(f.Instance.Boots, vps.ExitPowerOff)
	case plan.KillGuest:
		f.Instance = ended(f.Instance.Boots, vps.ExitKilled)
	case plan.DeleteVolume:
		f.Volume = nil
	}
	o.Guests[s.GuestID] = f
}

func slicesDelete(guests []vps.Guest, id string) []vps.Guest {
	var kept []vps.Guest
	for _, g := range guests {
		if g.ID != id {
			kept = append(kept, g)
		}
	}
	return kept
}

func BenchmarkDiff(b *testing.B) {
	host := vps.Host{Settings: vps.DefaultSettings()}
	o := plan.Observed{HostBoot: boot, Guests: map[string]plan.Guest{}}
	for i := range 1000 {
		g := guest("g"+strings.Repeat("x", i%20), func(g *vps.Guest) { g.ID += string(rune('a'+i%26)) + time.Duration(i).String() })
		host.Guests = append(host.Guests, g)
		o.Guests[g.ID] = plan.Guest{Volume: &vps.Volume{Size: vps.DefaultDisk}, Seed: true, Instance: running(1)}
	}
	for b.Loop() {
		if len(plan.Diff(host, o)) > 0 {
			b.Fatal("a settled host has steps")
		}
	}
}
