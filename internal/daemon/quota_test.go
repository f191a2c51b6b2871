package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/desired"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// quotaWorld is a host whose kernel and loop only keep what they are told.
type quotaWorld struct {
	t     *testing.T
	state *desired.State
	db    *sqlite.DB
	*enforcer
	clock time.Time

	kicks     int
	snapshot  reconcile.Snapshot
	kernel    string
	broken    error
	mib       int64
	lastEvent int64
}

// plenty is a host with all that guests ask for.
type plenty struct{ desired.Facts }

func (plenty) Image(context.Context, string) (vps.Image, error)          { return vps.Image{ID: "1"}, nil }
func (plenty) Kernel(context.Context, vps.Settings, vps.GuestSpec) error { return nil }
func (plenty) Room(context.Context) (memory, disk vps.Bytes, err error)  { return vps.TiB, vps.TiB, nil }
func (plenty) Listeners(context.Context) ([]desired.Listener, error)     { return nil, nil }
func (plenty) Network(context.Context, vps.Settings, vps.Settings) error { return nil }
func (plenty) HostBoot() string                                          { return "boot" }
func (w *quotaWorld) Kick()                                              { w.kicks++ }
func (w *quotaWorld) Snapshot() (reconcile.Snapshot, <-chan struct{})    { return w.snapshot, nil }
func (w *quotaWorld) SetQuotas(_ context.Context, quotas []vps.NetworkQuota, suspended, uplinks []string) error {
	if w.broken != nil {
		return w.broken
	}
	var lines []string
	for _, q := range quotas {
		line := fmt.Sprintf("%s %v", q.ID, q.Links)
		if q.Block >= 0 {
			line += fmt.Sprintf(" block at %dMiB", vps.Bytes(q.Block)/vps.MiB)
		}
		if q.Throttle >= 0 {
			line += fmt.Sprintf(" throttle at %dMiB to %s", vps.Bytes(q.Throttle)/vps.MiB, q.Rate)
		}
		lines = append(lines, line)
	}
	for _, l := range suspended {
		lines = append(lines, l+" suspended")
	}
	w.kernel = strings.Join(lines, ", ")
	if !cmp.Equal(uplinks, []string{"eth0"}) {
		w.t.Errorf("the public links are %v", uplinks)
	}
	return nil
}

func newQuotaWorld(t *testing.T, steps ...string) *quotaWorld {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := &quotaWorld{t: t, db: db, state: desired.New(db, plenty{}), clock: time.Now()}
	w.restart()
	for _, name := range []string{"alice", "bob"} {
		_, err := w.state.Create(t.Context(), name, func(s vps.GuestSpec) (vps.GuestSpec, error) { return s, nil }, false)
		w.must(err)
	}
	w.quota(steps...)
	w.mib = 0
	w.turn(0)
	return w
}

// restart makes the enforcer of a new daemon.
func (w *quotaWorld) restart() {
	w.enforcer = &enforcer{
		state: w.state, db: w.db, kernel: w, loop: w, log: slog.New(slog.DiscardHandler),
		now:     func() time.Time { return w.clock },
		uplinks: func(context.Context, string) ([]string, error) { return []string{"eth0"}, nil },
		edited:  make(chan struct{}, 1),
	}
}

func (w *quotaWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// withSteps gives a quota these steps in place of its own.
func withSteps(q vps.Quota, steps []string) (vps.Quota, error) {
	q.Steps = nil
	for _, s := range steps {
		step, err := vps.ParseQuotaStep(s)
		if err != nil {
			return q, err
		}
		q.Steps = append(q.Steps, step)
	}
	return q, nil
}

// quota sets alice's to 1000 MiB a month.
func (w *quotaWorld) quota(steps ...string) {
	w.t.Helper()
	_, err := w.state.SetQuota(w.t.Context(), vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) {
		q.Limit = 1000 * vps.MiB
		return withSteps(q, steps)
	}, false)
	w.must(err)
}

func (w *quotaWorld) alice() *vps.Guest {
	w.t.Helper()
	host, err := restrained{w.state, w.enforcer}.Host(w.t.Context())
	w.must(err)
	return host.Guest("alice")
}

// turn is a sample after alice has used so many MiB more. It returns what the
// kernel was told, and the events since the last turn.
func (w *quotaWorld) turn(mib int64) string {
	w.t.Helper()
	w.mib += mib
	err := w.count(w.t.Context(), func(_ context.Context, host *vps.Host) (accounts []vps.QuotaAccount, at time.Time, err error) {
		for i := range host.Quotas {
			start, _ := host.Quotas[i].Period(w.clock)
			accounts = append(accounts, vps.QuotaAccount{ID: host.Quotas[i].ID(), Start: start, Out: w.mib * int64(vps.MiB)})
		}
		return accounts, w.clock, nil
	})
	if !errors.Is(err, w.broken) {
		w.t.Fatal(err)
	}
	events, err := w.db.Events(w.t.Context(), sqlite.EventQuery{})
	w.must(err)
	text := w.kernel
	for _, ev := range events {
		if ev.ID > w.lastEvent {
			message, _, _ := strings.Cut(ev.Message, ";")
			message, _, _ = strings.Cut(message, " since")
			text += "; " + ev.Guest + ": " + message
			w.lastEvent = ev.ID
		}
	}
	return text
}

func (w *quotaWorld) want(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
	}
}

// TestAQuotaStopsAndLetsGo goes through a month with restarts of the daemon at
// each turn: each step is told once, and what is in force is so at once.
func TestAQuotaStopsAndLetsGo(t *testing.T) {
	t.Parallel()
	w := newQuotaWorld(t, "50%=notify", "100%=stop")
	turn := func(what string, mib int64, want string) {
		t.Helper()
		w.want(what, w.turn(mib), want)
		w.restart()
		kernel, _, _ := strings.Cut(want, ";")
		w.want(what+", after a restart", w.turn(0), kernel)
	}
	free := "guest/alice [sl-alice] block at 1000MiB"
	turn("nothing used", 1, free)
	turn("half of it", 500, free+"; alice: 50% of the quota of the guest alice is used: 501MiB of 1000MiB")
	turn("all of it", 500, "sl-alice suspended; alice: 100% of the quota of the guest alice is used: 1001MiB of 1000MiB")
	if g := w.alice(); !g.Restraint.Stops() || g.Power() != vps.PowerStopped || w.kicks == 0 {
		t.Errorf("restraint %v, power %s, %d kicks of the loop", g.Restraint, g.Power(), w.kicks)
	}
	err := w.refuse(t.Context(), "alice")
	if vps.ErrorCode(err) != vps.CodeDenied || !strings.Contains(err.Error(), "guest/alice") {
		t.Errorf("start: %v", err)
	}
	if err := w.refuse(t.Context(), "bob"); err != nil {
		t.Errorf("start of another guest: %v", err)
	}

	w.must(w.state.StoppedByQuota(t.Context(), w.alice().ID, 1)) // as the loop does
	_, err = w.state.TopUpQuota(t.Context(), vps.QuotaGuest, "alice", 500*vps.MiB, false)
	w.must(err)
	turn("topped up", 0, "guest/alice [sl-alice] block at 1500MiB; alice: no quota stops it any more, so it is started again")
	if g := w.alice(); g.Boots != 2 || g.Restraint != nil || g.QuotaStopped != 0 {
		t.Errorf("after the top-up: boots %d, restraint %v, noted %d", g.Boots, g.Restraint, g.QuotaStopped)
	}
	turn("the top-up is used too", 500, "sl-alice suspended; alice: 100% of the quota of the guest alice is used: 1.5GiB of 1.5GiB")
	for _, lifted := range []bool{true, false} {
		_, err = w.state.LiftQuota(t.Context(), vps.QuotaGuest, "alice", lifted, false)
		w.must(err)
		turn("lifted", 0, map[bool]string{true: "", false: "sl-alice suspended"}[lifted])
	}
	if due := w.due(); due > time.Hour {
		t.Errorf("it is looked at again in %s", due)
	}
	w.clock, w.mib = w.current()[0].Next, 0
	turn("a new month", 0, free)
	if err := w.refuse(t.Context(), "alice"); err != nil {
		t.Errorf("start in a new month: %v", err)
	}
	_, err = w.state.RemoveQuota(t.Context(), vps.QuotaGuest, "alice", false)
	w.must(err)
	turn("removed", 0, "")
	if left, err := w.db.QuotaSteps(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("steps of a quota that is gone: %v, %v", left, err)
	}
}

// TestANewQuotaIsCountedAgain: the kernel begins to count a new quota a moment
// after it was counted, so that there is a sample soon.
func TestANewQuotaIsCountedAgain(t *testing.T) {
	t.Parallel()
	w := newQuotaWorld(t, "100%=suspend-network")
	again := func(what string, want int) {
		t.Helper()
		if got := len(w.edited); got != want {
			t.Errorf("%s: %d samples are asked for, want %d", what, got, want)
		}
		select {
		case <-w.edited:
		default:
		}
	}
	again("a new quota", 1)
	w.turn(10)
	again("more of it was used", 0)
	_, err := w.state.TopUpQuota(t.Context(), vps.QuotaGuest, "alice", vps.MiB, false)
	w.must(err)
	w.turn(0)
	again("it was topped up", 1)
	w.turn(2000)
	again("it is used up", 1)
	w.turn(0)
	again("nothing happened", 0)
}

// TestGraceEndsWhereClocksGoBack steps the clock back during grace: the rest of
// it is not longer than all of it, however often quotas are looked at.
func TestGraceEndsWhereClocksGoBack(t *testing.T) {
	t.Parallel()
	w := newQuotaWorld(t, "100%=suspend-network")
	w.clock = time.Date(2026, 10, 20, 12, 0, 0, 0, time.UTC)
	_, err := w.state.SetQuota(t.Context(), vps.QuotaGuest, "alice", func(q vps.Quota) (vps.Quota, error) {
		q.Grace = vps.Duration(time.Hour)
		return q, nil
	}, false)
	w.must(err)
	w.want("used up", w.turn(1000), "; alice: 100% of the quota of the guest alice is used: 1000MiB of 1000MiB")
	for _, step := range []struct {
		what  string
		after time.Duration
		want  string
	}{
		{"grace goes on", 30 * time.Minute, ""},
		{"the clock was stepped back by ten hours", -10 * time.Hour, ""},
		{"a look", 20 * time.Minute, ""},
		{"another", 20 * time.Minute, ""},
		{"before the end", 19 * time.Minute, ""},
		{"the end", time.Minute, "sl-alice suspended"},
		{"much later", 10 * time.Hour, "sl-alice suspended"},
	} {
		w.clock = w.clock.Add(step.after)
		w.want(step.what, w.turn(0), step.want)
		w.restart() // nothing is remembered but by the database
	}
}

// TestTheKernelThrottlesUntilTheLinkDoes follows a throttle from the kernel's
// to the link's, and holds to what is in force when the kernel cannot be told.
func TestTheKernelThrottlesUntilTheLinkDoes(t *testing.T) {
	t.Parallel()
	w := newQuotaWorld(t, "100%=throttle:1Mbit")
	w.want("throttled", w.turn(1000), "guest/alice [sl-alice] throttle at 0MiB to 1Mbit; alice: 100% of the quota of the guest alice is used: 1000MiB of 1000MiB")
	if got := w.alice().Restraint.Throttle(0); got != vps.Mbit {
		t.Errorf("the link is to have %s", got)
	}
	if !w.unshaped {
		t.Error("nobody waits for the link")
	}
	// The loop has seen it, and not done it.
	host, err := restrained{w.state, w.enforcer}.Host(t.Context())
	w.must(err)
	w.snapshot = reconcile.Snapshot{Host: host, Loaded: time.Now()}
	w.snapshot.Observed.Network = []string{"the link sl-alice does not hold it"}
	w.want("not shaped", w.turn(0), "guest/alice [sl-alice] throttle at 0MiB to 1Mbit")
	w.snapshot.Observed.Network = nil
	w.want("shaped", w.turn(0), "")
	if w.unshaped {
		t.Error("it is still waited for")
	}

	w.broken = vps.Errorf(vps.CodeInternal, "the firewall is broken")
	w.mib = 0
	w.turn(0)
	if w.alice().Restraint != nil {
		t.Error("a fault of the kernel keeps the throttle in force")
	}
}

// TestWatchAsksAtOnce: an edit is not left to the next sample.
func TestWatchAsksAtOnce(t *testing.T) {
	t.Parallel()
	w := newQuotaWorld(t, "100%=notify")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sampled, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		_ = w.watch(ctx, func(context.Context) { sampled <- struct{}{} })
	}()
	for range 3 {
		w.touch()
		<-sampled
	}
	cancel()
	<-over
}
