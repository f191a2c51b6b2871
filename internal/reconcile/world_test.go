package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sublet/internal/plan"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

const boot = "boot-1"

// world is a host in memory: it keeps state, refuses nonsense and prints
// itself. It stands for the store and for every mechanism.
type world struct {
	t         *testing.T // of a story that withGuest runs
	mu        sync.Mutex
	host      vps.Host
	volumes   map[string]vps.Volume
	seeds     map[string]string
	instances map[string]*instance
	network   *vps.Network // what the links are
	firewall  *vps.Network // what the rules are
	events    []string
	steps     []string
	fail      map[plan.Kind]error // the next tries of a step fail with this
	detached  map[string]bool     // guests, by ID, whose link was made again
	rescues   []string            // the roots of rescue systems
	stubborn  bool                // they do not plug in
	broken    bool                // the network cannot be looked at
	deaf      map[string]bool     // guests that do not hear an orderly shutdown
	dead      bool                // the daemon is: nothing that it does reaches the host
	armed     bool                // the daemon is to die at its next hooks
	pid       int
	loop      *reconcile.Loop
	wakes     chan struct{}
}

type instance struct {
	vps.Instance
	over   chan struct{}
	limits vps.Resources
}

func newWorld() *world {
	return &world{
		host:    vps.Host{Settings: vps.DefaultSettings()},
		volumes: map[string]vps.Volume{}, seeds: map[string]string{}, instances: map[string]*instance{},
		fail: map[plan.Kind]error{}, deaf: map[string]bool{}, detached: map[string]bool{}, wakes: make(chan struct{}, 1),
	}
}

// run starts a daemon's loop and returns how it is ended.
func (w *world) run(t *testing.T, change func(*reconcile.Options)) (end func()) {
	t.Helper()
	o := reconcile.Options{
		Desired: w, Volumes: fakeVolumes{w}, Rescues: fakeRescues{w}, Images: w, Seeds: fakeSeeds{w}, Machines: w,
		Network: fakeNet{w, plan.SetNetwork, &w.network}, Firewall: fakeNet{w, plan.SetFirewall, &w.firewall}, Driver: w, Replug: w, Limits: w, Events: w,
		HostBoot: boot,
		AfterStep: func(s plan.Step) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.steps = append(w.steps, s.String())
		},
	}
	if change != nil {
		change(&o)
	}
	w.loop = reconcile.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.loop.Run(ctx); err != nil {
			t.Errorf("the loop ended with %v", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// withGuest runs a story on a host where the guest a was made and runs, under
// a fake clock.
func withGuest(t *testing.T, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		defer w.run(t, nil)()
		w.edit(func(*vps.Host) { w.add("a", nil) })
		settle()
		w.took()
		w.t = t
		story(w)
	})
}

// edit changes the desired state as an edit of the owner does.
func (w *world) edit(change func(h *vps.Host)) {
	w.mu.Lock()
	w.host.Guests = slices.Clone(w.host.Guests)
	change(&w.host)
	w.mu.Unlock()
	w.loop.Kick()
}

func (w *world) add(name string, change func(*vps.Guest)) {
	g := vps.Guest{ID: "id-" + name, Spec: vps.NewGuestSpec(name), Index: len(w.host.Guests) + 1, Boots: 1, HostBoot: boot}
	if change != nil {
		change(&g)
	}
	w.host.Guests = append(w.host.Guests, g)
}

func (w *world) status(name string) vps.GuestStatus {
	s, _ := w.loop.Snapshot()
	return s.Status["id-"+name]
}

// took returns the steps taken since the last call.
func (w *world) took() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.steps = nil }()
	return strings.Join(w.steps, "\n")
}

// end lets a guest's instance end.
func (w *world) end(name string, reason vps.ExitReason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.instances["id-"+name]
	if i == nil || i.Exit != nil {
		return
	}
	i.Exit = &vps.Exit{Reason: reason, At: time.Now()}
	close(i.over)
}

var errDead = errors.New("the daemon is dead")

func (w *world) failure(k plan.Kind) error {
	if w.dead {
		return errDead
	}
	return w.fail[k]
}

// settle waits until nothing moves any more short of the passing of time.
func settle() { synctest.Wait() }

// count returns how many guests run.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.instances)
}

// elapse lets d pass on the fake clock.
func elapse(d time.Duration) { <-time.After(d) }

// The store.

func (w *world) Host(context.Context) (vps.Host, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.host
	h.Guests = slices.Clone(h.Guests)
	return h, nil
}

func (w *world) Forget(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := w.instances[id]; i != nil && i.Exit == nil {
		return fmt.Errorf("%s still runs", id)
	}
	if err := w.failure(plan.ForgetGuest); err != nil {
		return err
	}
	delete(w.instances, id)
	w.host.Guests = slices.DeleteFunc(slices.Clone(w.host.Guests), func(g vps.Guest) bool { return g.ID == id })
	return nil
}

// StoppedByQuota keeps the note in the desired state.
func (w *world) StoppedByQuota(_ context.Context, id string, boots int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.host.Guests = slices.Clone(w.host.Guests)
	for i := range w.host.Guests {
		if g := &w.host.Guests[i]; g.ID == id && g.Boots == boots {
			g.QuotaStopped = boots
		}
	}
	return nil
}

func (w *world) AddEvent(_ context.Context, e vps.Event) (vps.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e.Kind+" "+e.Guest+": "+e.Message)
	return e, nil
}

// Images, machines and run folders.

func (w *world) ByID(context.Context, string) (vps.Image, error) { return vps.Image{}, nil }

func (w *world) Machine(_ context.Context, _ vps.Host, g vps.Guest, v vps.Volume) (vps.Machine, error) {
	m := vps.Machine{ID: g.ID, Name: g.Spec.Name, Boots: g.Boots, Root: v.Disk, Resources: g.Spec.Resources}
	for _, d := range v.Data {
		m.Data = append(m.Data, d.Disk)
	}
	return m, nil
}

func (w *world) Clear(g vps.Guest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errDead
	}
	delete(w.instances, g.ID)
	return nil
}

type fakeVolumes struct{ *world }

func (v fakeVolumes) Create(_ context.Context, id string, _ vps.Image, want vps.VolumeSpec) (vps.Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.failure(plan.CreateVolume); err != nil {
		return vps.Volume{}, err
	}
	v.volumes[id] = vps.Volume{GuestID: id, Size: want.Size, Generation: want.Generation, Disk: vps.Disk{Path: "/" + id}}
	return v.volumes[id], nil
}

func (v fakeVolumes) List(context.Context) ([]vps.Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []vps.Volume
	for _, volume := range v.volumes {
		all = append(all, volume)
	}
	return all, nil
}

// change is a step on a disk of a guest that does not run.
func (v fakeVolumes) change(id string, kind plan.Kind, do func(*vps.Volume)) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := v.instances[id]; i != nil && i.Exit == nil {
		return fmt.Errorf("%s runs", id)
	}
	if err := v.failure(kind); err != nil {
		return err
	}
	volume := v.volumes[id]
	volume.Data = slices.Clone(volume.Data)
	do(&volume)
	v.volumes[id] = volume
	return nil
}

func (v fakeVolumes) Grow(_ context.Context, id, name string, size vps.Bytes) error {
	if name == "" {
		return v.change(id, plan.GrowVolume, func(volume *vps.Volume) { volume.Size = size })
	}
	return v.change(id, plan.GrowDisk, func(volume *vps.Volume) {
		for i := range volume.Data {
			if volume.Data[i].Name == name {
				volume.Data[i].Size = size
			}
		}
	})
}

func (v fakeVolumes) CreateDisk(_ context.Context, id, name string, want vps.VolumeSpec) error {
	return v.change(id, plan.CreateDisk, func(volume *vps.Volume) {
		volume.Data = append(volume.Data, vps.DataVolume{Name: name, Size: want.Size})
	})
}

func (v fakeVolumes) DeleteDisk(_ context.Context, id, name string) error {
	return v.change(id, plan.DeleteDisk, func(volume *vps.Volume) {
		volume.Data = slices.DeleteFunc(volume.Data, func(d vps.DataVolume) bool { return d.Name == name })
	})
}

func (v fakeVolumes) Check(_ context.Context, id string, _ vps.Image, _ uint32) (vps.Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.volumes[id], nil
}

func (v fakeVolumes) Delete(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := v.instances[id]; i != nil && i.Exit == nil {
		return fmt.Errorf("%s runs", id)
	}
	if err := v.failure(plan.DeleteVolume); err != nil {
		return err
	}
	delete(v.volumes, id)
	return nil
}

type fakeSeeds struct{ *world }

func (s fakeSeeds) Current(_ vps.Host, g vps.Guest) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seeds[g.ID] == g.Spec.Hostname, nil
}

func (s fakeSeeds) Write(_ context.Context, _ vps.Host, g vps.Guest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure(plan.WriteSeed); err != nil {
		return err
	}
	s.seeds[g.ID] = g.Spec.Hostname
	return nil
}

func (s fakeSeeds) Delete(g vps.Guest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errDead
	}
	delete(s.seeds, g.ID)
	return nil
}

// fakeNet is the links or the rules.
type fakeNet struct {
	*world
	kind plan.Kind
	is   **vps.Network
}

func (n fakeNet) Diff(_ context.Context, wanted vps.Network) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.broken:
		return nil, errors.New("nft is broken")
	case *n.is == nil:
		return []string{"missing"}, nil
	case !reflect.DeepEqual(**n.is, wanted):
		return []string{"different"}, nil
	}
	return nil, nil
}

func (n fakeNet) Set(_ context.Context, wanted vps.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failure(n.kind); err != nil {
		return err
	}
	*n.is = &wanted
	return nil
}

func (n fakeNet) Watch(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.wakes:
				select {
				case out <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// The driver.

func (w *world) Start(_ context.Context, m vps.Machine) (vps.Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failure(plan.StartGuest); err != nil {
		return vps.Instance{}, err
	}
	if i := w.instances[m.ID]; i != nil && i.Exit == nil {
		return i.Instance, nil
	}
	if w.volumes[m.ID].GuestID == "" || w.seeds[m.ID] == "" || len(w.volumes[m.ID].Data) != len(m.Data) {
		return vps.Instance{}, fmt.Errorf("%s has no disk or no seed", m.Name)
	}
	for what, n := range map[string]*vps.Network{"firewall": w.firewall, "link": w.network} {
		if n == nil || !slices.ContainsFunc(n.Guests, func(g vps.NetworkGuest) bool { return g.Name == m.Name }) {
			return vps.Instance{}, fmt.Errorf("%s was started before its %s", m.Name, what)
		}
	}
	w.pid++
	w.instances[m.ID] = &instance{
		vps.Instance{GuestID: m.ID, Name: m.Name, Boots: m.Boots, PID: w.pid, Keeper: w.pid, Started: time.Now()}, make(chan struct{}), m.Resources,
	}
	return w.instances[m.ID].Instance, nil
}

func (w *world) Wait(ctx context.Context, i vps.Instance) (vps.Exit, error) {
	w.mu.Lock()
	found := w.instances[i.GuestID]
	w.mu.Unlock()
	if found == nil || found.PID != i.PID {
		return vps.Exit{}, vps.Errorf(vps.CodeNotFound, "%s is gone", i.Name)
	}
	select {
	case <-found.over:
		return *found.Exit, nil
	case <-ctx.Done():
		return vps.Exit{}, ctx.Err()
	}
}

func (w *world) Stop(_ context.Context, i vps.Instance) error {
	w.mu.Lock()
	deaf, dead := w.deaf[i.Name], w.dead
	w.mu.Unlock()
	if dead {
		return errDead
	}
	if !deaf {
		w.end(i.Name, vps.ExitPowerOff)
	}
	return nil
}

func (w *world) Kill(_ context.Context, i vps.Instance) error {
	w.mu.Lock()
	dead := w.dead
	w.mu.Unlock()
	if dead {
		return errDead
	}
	w.end(i.Name, vps.ExitKilled)
	return nil
}

func (w *world) List(context.Context) ([]vps.Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []vps.Instance
	for _, i := range w.instances {
		all = append(all, i.Instance)
	}
	return all, nil
}

func (w *world) Detached(_ context.Context, _ vps.Network, running []vps.Instance) (map[string]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[string]bool{}
	for _, i := range running {
		if w.detached[i.GuestID] {
			found[i.GuestID] = true
		}
	}
	return found, nil
}

func (w *world) Replug(_ context.Context, i vps.Instance, _ vps.NetworkGuest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failure(plan.ReplugGuest); err != nil {
		return err
	}
	if !w.stubborn {
		delete(w.detached, i.GuestID)
	}
	return nil
}

func (w *world) Limits(_ context.Context, i vps.Instance) (*vps.Resources, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	limits := w.instances[i.GuestID].limits
	return &limits, nil
}

func (w *world) SetLimits(_ context.Context, i vps.Instance, r vps.Resources) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failure(plan.SetLimits); err != nil {
		return err
	}
	w.instances[i.GuestID].limits = r
	return nil
}

// fakeRescues keeps the roots of rescue systems.
type fakeRescues struct{ w *world }

func (r fakeRescues) Create(_ context.Context, g vps.Guest, _ uint32) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if !slices.Contains(r.w.rescues, g.RescueID()) {
		r.w.rescues = append(r.w.rescues, g.RescueID())
	}
	return nil
}

func (r fakeRescues) Delete(_ context.Context, id string) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.rescues = slices.DeleteFunc(r.w.rescues, func(have string) bool { return have == id })
	return nil
}

func (r fakeRescues) List(context.Context) ([]string, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return slices.Clone(r.w.rescues), nil
}

func (v fakeVolumes) Reset(_ context.Context, id string, _ vps.Image, want vps.VolumeSpec) (vps.Volume, error) {
	err := v.change(id, plan.ReplaceVolume, func(have *vps.Volume) { have.Size, have.Generation = want.Size, want.Generation })
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.volumes[id], err
}
