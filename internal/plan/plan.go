// Package plan compares what a host should be with what was observed of it,
// and says what to do about the difference.
//
// It is pure: the same input gives the same steps, nothing is read or
// changed, and all functions are safe for concurrent use.
package plan

import (
	"slices"
	"strings"

	"sublet/internal/vps"
)

// Observed is what was found on the host. The zero value is an empty host.
type Observed struct {
	// HostBoot is the boot id of the running host.
	HostBoot string
	// Firewall and Network say, a sentence each, how the host differs from
	// the network that is wanted; empty means that it does not.
	Firewall []string
	Network  []string
	// Guests are the parts found of each guest, by guest ID; a guest that is
	// missing here has no parts.
	Guests map[string]Guest
}

// Guest is what was found of one guest. The zero value is a guest of which
// there is nothing.
type Guest struct {
	// Volume is nil when there is none.
	Volume *vps.Volume
	// RescueRoots are the IDs of the disks that rescue systems of the guest
	// have, or had.
	RescueRoots []string
	// Seed tells that the seed disk is what the spec calls for.
	Seed bool
	// Instance is the last life of the guest; nil when this host knows of
	// none since it booted. It runs while its Exit is nil.
	Instance *vps.Instance
	// Detached tells that the guest runs, and that its tap is not the one it
	// holds: somebody deleted the link, and it was made again.
	Detached bool
	// Limits are what bounds the running guest's processes; nil when that is
	// not known.
	Limits *vps.Resources
}

// Running tells whether the guest's process was found alive.
func (g Guest) Running() bool { return g.Instance != nil && g.Instance.Exit == nil }

// Kind is what a step does.
type Kind string

// The kinds of steps, in the order in which a guest's life meets them.
const (
	SetFirewall  Kind = "set-firewall"
	SetNetwork   Kind = "set-network"
	CreateVolume Kind = "create-volume"
	GrowVolume   Kind = "grow-volume"
	CreateDisk   Kind = "create-disk"
	GrowDisk     Kind = "grow-disk"
	DeleteDisk   Kind = "delete-disk"
	WriteSeed    Kind = "write-seed"
	StartGuest   Kind = "start"
	ReplugGuest  Kind = "replug"
	SetLimits    Kind = "set-limits"
	StopGuest    Kind = "stop"
	KillGuest    Kind = "kill"
	DeleteVolume Kind = "delete-volume"
	// ReplaceVolume makes the disk that the guest boots from anew.
	ReplaceVolume Kind = "replace-volume"
	// CreateRescue makes the root of a rescue system, and DeleteRescue removes
	// the one that Disk names.
	CreateRescue Kind = "create-rescue"
	DeleteRescue Kind = "delete-rescue"
	ForgetGuest  Kind = "forget"
)

// Step is one change to the host, as data. Taking a step that was already
// taken changes nothing.
type Step struct {
	Kind Kind
	// GuestID and Guest are empty for a step of the whole host.
	GuestID string
	Guest   string
	// Disk names the guest's extra disk that the step is about, and Size is what
	// that is to have; empty for other steps.
	Disk string
	Size vps.Bytes
	// Why is the reason for it, for people; Detail says what it does.
	Why    string
	Detail string
}

// String says what the step is about to do, in one line.
func (s Step) String() string {
	var b strings.Builder
	b.WriteString(string(s.Kind))
	for _, part := range []string{s.Guest, s.Detail} {
		if part != "" {
			b.WriteByte(' ')
			b.WriteString(part)
		}
	}
	if s.Why != "" {
		b.WriteString(" (")
		b.WriteString(s.Why)
		b.WriteByte(')')
	}
	return b.String()
}

// Participates tells whether a guest takes part in the host's network: all
// do, until one that is being deleted has stopped. Its parts are then removed
// without it having been alive outside the wall for an instant.
func (o Observed) Participates(g *vps.Guest) bool {
	return !g.Deleting || o.Guests[g.ID].Running()
}

// Diff returns the steps that bring the host closer to what is desired, in
// the order in which they are to be taken: the firewall and the network of
// the whole host first, then each guest's own. Steps of different guests do
// not depend on each other. When all of them have been taken the next Diff may
// hold the steps that follow on a stop; after at most three rounds it is
// empty.
func Diff(host vps.Host, o Observed) []Step {
	var steps []Step
	if len(o.Firewall) > 0 {
		steps = append(steps, Step{Kind: SetFirewall, Why: strings.Join(o.Firewall, "; ")})
	}
	if len(o.Network) > 0 {
		steps = append(steps, Step{Kind: SetNetwork, Why: strings.Join(o.Network, "; ")})
	}
	guests := slices.Clone(host.Guests)
	slices.SortFunc(guests, func(a, b vps.Guest) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	for i := range guests {
		steps = append(steps, guestSteps(&guests[i], o.Guests[guests[i].ID], o.HostBoot)...)
	}
	return steps
}

func guestSteps(g *vps.Guest, o Guest, hostBoot string) []Step {
	step := func(k Kind, detail, why string) Step {
		return Step{Kind: k, GuestID: g.ID, Guest: g.Spec.Name, Detail: detail, Why: why}
	}
	if g.Deleting {
		if o.Running() {
			return []Step{step(KillGuest, "", "it is being deleted")}
		}
		var steps []Step
		if o.Volume != nil {
			steps = append(steps, step(DeleteVolume, "", "it is being deleted"))
		}
		for _, id := range o.RescueRoots {
			steps = append(steps, onDisk(step(DeleteRescue, id, "it is being deleted"), id))
		}
		return append(steps, step(ForgetGuest, "", "it is being deleted"))
	}
	if o.Running() {
		return runningSteps(g, o, step)
	}
	var steps []Step
	switch {
	case o.Volume == nil:
		steps = append(steps, step(CreateVolume, g.Spec.Disk.String()+" from "+g.Spec.Image, "it has none"))
	case o.Volume.Generation < g.Generation:
		steps = append(steps, step(ReplaceVolume, g.Spec.Disk.String()+" from "+g.Spec.Image, "it is to be reinstalled"))
	case o.Volume.Size < g.Spec.Disk:
		steps = append(steps, step(GrowVolume, "to "+g.Spec.Disk.String(), "it has "+o.Volume.Size.String()))
	}
	steps = append(steps, diskSteps(g, o, step)...)
	steps = append(steps, rescueSteps(g, o, step)...)
	if !o.Seed {
		steps = append(steps, step(WriteSeed, "", "its identity changed"))
	}
	if why, start := wantsStart(g, o.Instance, hostBoot); start {
		steps = append(steps, step(StartGuest, "", why))
	}
	return steps
}

// diskSteps bring the extra disks of a guest that does not run to what its spec
// calls for.
func diskSteps(g *vps.Guest, o Guest, step func(Kind, string, string) Step) []Step {
	var steps []Step
	of := func(k Kind, name string, size vps.Bytes, detail, why string) {
		s := step(k, name+detail, why)
		s.Disk, s.Size = name, size
		steps = append(steps, s)
	}
	var found []vps.DataVolume
	if o.Volume != nil {
		found = o.Volume.Data
	}
	for _, d := range g.Spec.Disks {
		i := slices.IndexFunc(found, func(f vps.DataVolume) bool { return f.Name == d.Name })
		switch {
		case i < 0:
			of(CreateDisk, d.Name, d.Size, " of "+d.Size.String(), "it has none of that name")
		case found[i].Size < d.Size:
			of(GrowDisk, d.Name, d.Size, " to "+d.Size.String(), "it has "+found[i].Size.String())
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(g.Spec.Disks, func(d vps.DataDisk) bool { return d.Name == f.Name }) {
			of(DeleteDisk, f.Name, 0, "", "it is not asked for any more")
		}
	}
	return steps
}

// rescueSteps make the root of the rescue system that is wanted, and remove
// those of earlier ones.
func rescueSteps(g *vps.Guest, o Guest, step func(Kind, string, string) Step) []Step {
	want := g.RescueID()
	var steps []Step
	for _, id := range o.RescueRoots {
		if id != want {
			steps = append(steps, onDisk(step(DeleteRescue, id, "that rescue is over"), id))
		}
	}
	if want != "" && !slices.Contains(o.RescueRoots, want) {
		steps = append(steps, onDisk(step(CreateRescue, want, "it is to be rescued"), want))
	}
	return steps
}

func onDisk(s Step, id string) Step {
	s.Disk = id
	return s
}

func runningSteps(g *vps.Guest, o Guest, step func(Kind, string, string) Step) []Step {
	stop := func(why string) []Step {
		if g.Abrupt {
			return []Step{step(KillGuest, "", why)}
		}
		return []Step{step(StopGuest, "within "+g.StopDeadline().String(), why)}
	}
	switch {
	case g.Spec.Power == vps.PowerStopped:
		return stop("it was asked to be stopped")
	case g.Restraint.Stops():
		// Nobody asked for the power switch: it is no fault of its programs.
		return []Step{step(StopGuest, "within "+g.StopDeadline().String(), "the quota "+g.Restraint.Quota+" is used up")}
	case o.Instance.Boots < g.Boots:
		return stop("a restart was asked for")
	}
	var steps []Step
	if o.Limits != nil && *o.Limits != g.Spec.Resources {
		steps = append(steps, step(SetLimits, "", "its limits changed"))
	}
	if o.Detached {
		steps = append(steps, step(ReplugGuest, "", "its link was made again"))
	}
	return steps
}

// WillStart tells whether a guest that does not run is to be started.
func WillStart(g *vps.Guest, o Guest, hostBoot string) bool {
	_, start := wantsStart(g, o.Instance, hostBoot)
	return start
}

// wantsStart decides for a guest that does not run whether it should, and
// says why.
func wantsStart(g *vps.Guest, last *vps.Instance, hostBoot string) (string, bool) {
	switch {
	case g.Power() == vps.PowerStopped:
		return "", false
	case last == nil && g.HostBoot == hostBoot:
		return "it was asked to run", true
	case last == nil:
		return "the host was booted", g.Spec.Autostart
	case last.Boots < g.Boots:
		return "a start was asked for", true
	}
	// It ended by itself, or by somebody who went past us.
	failed := last.Exit.Failed()
	switch g.Spec.Restart {
	case vps.RestartAlways:
		return "it ended: " + string(last.Exit.Reason), true
	case vps.RestartOnFailure:
		return "it ended: " + string(last.Exit.Reason), failed
	case vps.RestartNever:
		return "", false
	}
	return "", false
}
