package guesttest

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/guest"
	"sublet/internal/vps"
)

// FakeHost is a host in memory that Fake drivers run guests on. Many drivers
// may share one, as daemons that come and go do. The zero value is ready.
//
// Its guests are up at once, answer an orderly shutdown at once, and echo
// what is typed on their console, in capitals.
type FakeHost struct {
	mu     sync.Mutex
	guests map[string]*fakeGuest // by name
	lastID int
}

// fakeGuest is the last instance of a guest.
type fakeGuest struct {
	in       vps.Instance
	over     chan struct{}
	said     []byte
	consoles []*fakeConsole
	writer   *fakeConsole
}

// Fake is a guest.Driver and guest.Console without anything behind it.
type Fake struct{ host *FakeHost }

var (
	_ guest.Driver  = (*Fake)(nil)
	_ guest.Console = (*Fake)(nil)
)

// Driver returns another driver on the same host.
func (h *FakeHost) Driver() *Fake { return &Fake{host: h} }

// End ends an instance the way that a guest ends by itself or is killed from
// outside. It says whether the instance was running.
func (h *FakeHost) End(in vps.Instance, e vps.Exit) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.running(in)
	if g == nil {
		return false
	}
	e.At = time.Now().UTC().Round(0)
	g.in.Exit = &e
	for _, c := range g.consoles {
		c.end()
	}
	close(g.over)
	return true
}

// running returns the guest if this very instance runs.
func (h *FakeHost) running(in vps.Instance) *fakeGuest {
	if g := h.find(in); g != nil && g.in.Exit == nil {
		return g
	}
	return nil
}

func (h *FakeHost) find(in vps.Instance) *fakeGuest {
	g := h.guests[in.Name]
	if g == nil || g.in.GuestID != in.GuestID || !g.in.Started.Equal(in.Started) {
		return nil
	}
	return g
}

// Start implements guest.Driver.
func (f *Fake) Start(ctx context.Context, m vps.Machine) (vps.Instance, error) {
	if err := ctx.Err(); err != nil {
		return vps.Instance{}, vps.Wrap(vps.CodeTimeout, err, "gave up starting guest %s", m.Name)
	}
	h := f.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.guests[m.Name]; g != nil && g.in.Exit == nil {
		if g.in.GuestID != m.ID {
			return vps.Instance{}, vps.Errorf(vps.CodeConflict, "another guest with the name %s still runs; kill it first", m.Name)
		}
		return g.in, nil
	}
	if h.guests == nil {
		h.guests = map[string]*fakeGuest{}
	}
	h.lastID++
	g := &fakeGuest{over: make(chan struct{}), said: []byte("fake guest\n"), in: vps.Instance{
		Version: 1, Driver: "fake", GuestID: m.ID, Name: m.Name, Boots: m.Boots,
		Keeper: h.lastID, PID: h.lastID, Started: time.Now().UTC().Round(0),
	}}
	h.guests[m.Name] = g
	return g.in, nil
}

// Attach implements guest.Driver.
func (f *Fake) Attach(_ context.Context, in vps.Instance) error {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.host.running(in) == nil {
		return vps.Errorf(vps.CodeNotFound, "guest %s does not run", in.Name)
	}
	return nil
}

// Wait implements guest.Driver.
func (f *Fake) Wait(ctx context.Context, in vps.Instance) (vps.Exit, error) {
	f.host.mu.Lock()
	g := f.host.find(in)
	f.host.mu.Unlock()
	if g == nil {
		return vps.Exit{}, vps.Errorf(vps.CodeNotFound, "that instance of guest %s is unknown", in.Name)
	}
	select {
	case <-g.over:
		return *g.in.Exit, nil
	case <-ctx.Done():
		return vps.Exit{}, vps.Wrap(vps.CodeTimeout, context.Cause(ctx), "gave up waiting")
	}
}

// Stop implements guest.Driver.
func (f *Fake) Stop(_ context.Context, in vps.Instance) error {
	f.host.End(in, vps.Exit{Reason: vps.ExitPowerOff})
	return nil
}

// Kill implements guest.Driver.
func (f *Fake) Kill(_ context.Context, in vps.Instance) error {
	f.host.End(in, vps.Exit{Reason: vps.ExitKilled, Code: -1, Signal: "SIGKILL"})
	return nil
}

// Inspect implements guest.Driver.
func (f *Fake) Inspect(ctx context.Context, in vps.Instance) (vps.Usage, error) {
	if err := f.Attach(ctx, in); err != nil {
		return vps.Usage{}, err
	}
	return vps.Usage{Memory: vps.MiB, CPUTime: time.Since(in.Started)}, nil
}

// List implements guest.Driver.
func (f *Fake) List(context.Context) ([]vps.Instance, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	var all []vps.Instance
	for _, g := range f.host.guests {
		all = append(all, g.in)
	}
	slices.SortFunc(all, func(a, b vps.Instance) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Console implements guest.Console.
func (f *Fake) Console(_ context.Context, in vps.Instance, o guest.ConsoleOptions) (io.ReadWriteCloser, error) {
	h := f.host
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.running(in)
	if g == nil {
		return nil, vps.Errorf(vps.CodeNotFound, "guest %s does not run", in.Name)
	}
	c := &fakeConsole{host: h, guest: g, wake: sync.NewCond(&h.mu)}
	if !o.NoReplay {
		c.out = slices.Clone(g.said)
	}
	switch {
	case o.Takeover || o.Write && g.writer == nil:
		g.writer = c
	case o.Write:
		c.out = append(c.out, "[somebody else writes]\n"...)
	}
	g.consoles = append(g.consoles, c)
	return c, nil
}

// fakeConsole is one caller on a fake console. Its fields belong to the host's
// lock.
type fakeConsole struct {
	host  *FakeHost
	guest *fakeGuest
	wake  *sync.Cond
	out   []byte
	done  bool
}

func (c *fakeConsole) Read(p []byte) (int, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	for len(c.out) == 0 && !c.done {
		c.wake.Wait()
	}
	if len(c.out) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	return n, nil
}

func (c *fakeConsole) Write(p []byte) (int, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.guest.writer != c {
		return 0, vps.Errorf(vps.CodeConflict, "you only read this console")
	}
	echo := strings.ToUpper(string(p))
	c.guest.said = append(c.guest.said, echo...)
	for _, r := range c.guest.consoles {
		r.out = append(r.out, echo...)
		r.wake.Broadcast()
	}
	return len(p), nil
}

func (c *fakeConsole) Close() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.guest.writer == c {
		c.guest.writer = nil
	}
	c.guest.consoles = slices.DeleteFunc(c.guest.consoles, func(o *fakeConsole) bool { return o == c })
	c.end()
	return nil
}

// end lets a waiting reader go.
func (c *fakeConsole) end() {
	c.done = true
	c.wake.Broadcast()
}
