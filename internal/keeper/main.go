//go:build linux

package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sublet/internal/vps"
)

// The arguments that Main reads.
const (
	configFlag = "--config"
	anchorFlag = "--anchor"
)

// Main is the keeper's process: what the program does for its hidden verb. It
// takes the arguments that follow the verb, and logs to stderr. It returns
// when the guest has ended and its end is written down, which is no error
// however it was, or at once when the guest could not be started.
//
// Main changes limits and signals of the whole process and is meant to be the
// only thing that the process does. SIGTERM and SIGINT ask the guest for an
// orderly shutdown and kill it after Config.StopTimeout; SIGHUP does nothing.
func Main(ctx context.Context, args []string, stderr io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == anchorFlag:
		return anchorMain()
	case len(args) == 1 && args[0] == jailFlag:
		return jailMain()
	case len(args) == 2 && args[0] == configFlag:
		c, err := readConfig(args[1])
		if err != nil {
			return err
		}
		k := &keeper{cfg: c, log: slog.New(slog.NewTextHandler(stderr, nil)), over: make(chan struct{}), recorded: make(chan struct{})}
		return k.run(ctx)
	default:
		return vps.Invalid("", "the keeper is started by sublet itself, with %s FILE", configFlag)
	}
}

// anchorMain waits until the keeper is gone.
func anchorMain() error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// keeper is one keeper's state.
type keeper struct {
	cfg Config
	log *slog.Logger

	child  *child
	groups *groups
	hub    *hub

	mu  sync.Mutex
	rec record

	pausing  sync.Mutex // held while the guest stands still
	killed   atomic.Bool
	stopOnce sync.Once
	// over is closed when no process of the guest runs any more, recorded when
	// the end is written down too.
	over, recorded chan struct{}
}

func (k *keeper) run(ctx context.Context) error {
	// A hangup is nobody's wish for the guest. These are caught and forgotten
	// instead of ignored, because the guest would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer cancel()

	lock, err := takeLock(ctx, k.cfg.RunDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := clearAway(ctx, k.cfg.RunDir); err != nil {
		return err
	}
	ln, err := listen(k.cfg.RunDir)
	if err != nil {
		return err
	}
	defer func() {
		_ = os.Remove(filepath.Join(k.cfg.RunDir, socketName))
		_ = ln.Close()
	}()
	if err := limits(&k.cfg); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "cannot set the limits of guest %s", k.cfg.Name)
	}
	if k.cfg.Relay != "" {
		c, err := openCard(k.cfg.RunDir, k.cfg.Relay, k.cfg.UID, func(err error) {
			k.log.WarnContext(ctx, "the guest's link cannot be opened; waiting for it", "guest", k.cfg.Name, "error", err)
		})
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "cannot make the network card of guest %s", k.cfg.Name)
		}
		// Not ctx: the guest's shutdown may need its network.
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		served := make(chan struct{})
		go func() {
			defer close(served)
			c.serve(life)
		}()
		defer func() {
			end()
			<-served
			_ = os.Remove(filepath.Join(k.cfg.RunDir, CardSocket))
		}()
	}
	if err := k.start(lock); err != nil {
		return err
	}
	k.log.InfoContext(ctx, "guest started", "guest", k.cfg.Name, "pid", k.rec.PID)
	return k.attend(ctx, ln)
}

// clearAway makes sure that nothing runs of an instance whose keeper died. Its
// anchor ends by itself; if it does not, it is killed.
func clearAway(ctx context.Context, runDir string) error {
	old, err := readRecord(runDir)
	if err != nil || old.Exit != nil {
		return nil
	}
	old.Anchor.kill(old.BootID)
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	err = poll(ctx, func() (bool, error) { return !old.guestAlive(), nil })
	if err != nil {
		return vps.Wrap(vps.CodeConflict, err, "processes of an earlier instance of guest %s do not end; process %d is the first of them", old.Name, old.Anchor.PID)
	}
	return nil
}

const clearTimeout = 20 * time.Second

// start brings the guest up and writes the record. The record is there before
// the guest's first process, so that whoever comes after a sudden death of
// this keeper knows what to look for.
func (k *keeper) start(lock *os.File) error {
	a, err := startAnchor(&k.cfg, lock)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "cannot start guest %s", k.cfg.Name)
	}
	k.rec = record{
		Instance: vps.Instance{
			Version: recordVersion, Driver: k.cfg.Driver, GuestID: k.cfg.GuestID, Name: k.cfg.Name, Boots: k.cfg.Boots, Kernel: k.cfg.Kernel,
			Keeper: os.Getpid(), Started: now(), Socket: filepath.Join(k.cfg.RunDir, socketName),
		},
		BootID: bootID(), Anchor: markOf(a.cmd.Process.Pid), Self: markOf(os.Getpid()), Mconsole: k.cfg.Mconsole,
		PIDNamespace: a.nsName,
	}
	if err := writeRecord(k.cfg.RunDir, k.rec); err != nil {
		a.end()
		return vps.Wrap(vps.CodeInternal, err, "cannot write the record of guest %s", k.cfg.Name)
	}
	var c *child
	if k.groups, err = k.bound(a.cmd.Process.Pid); err == nil {
		c, err = startChild(&k.cfg, a)
	}
	if err == nil {
		k.child = c
		k.rec.PID = c.cmd.Process.Pid
		if err = writeRecord(k.cfg.RunDir, k.rec); err != nil {
			_ = c.cmd.Process.Kill()
			c.wait()
			_ = c.console.Close()
		}
	}
	if err != nil {
		a.end()
		_ = os.Remove(filepath.Join(k.cfg.RunDir, recordName))
		return vps.Wrap(vps.CodeInternal, err, "cannot start guest %s", k.cfg.Name)
	}
	k.hub = newHub(c.setSize)
	if k.cfg.Leash {
		k.hub.deserted = k.kill
	}
	return nil
}

// attend is the guest's life: serve until it ends, then write that down and
// say goodbye.
func (k *keeper) attend(ctx context.Context, ln net.Listener) error {
	s := newServer(k, ln)
	go s.serve()
	go k.obey(ctx)
	go k.feed()
	go k.outlive()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		k.drain()
	}()

	status := k.child.wait()
	close(k.over)
	// What the guest said last is still in the terminal. All its processes are
	// dead, so the reading ends; a process outside that holds the terminal
	// would be a fault of ours, and must not hold up the record.
	select {
	case <-drained:
	case <-time.After(drainTimeout):
	}
	_ = k.child.console.Close()
	<-drained
	err := k.record(k.groups.outOfMemory(exitOf(status, k.hub.tail(), k.killed.Load())))
	if e := k.groups.Group.Remove(); e != nil {
		k.log.WarnContext(ctx, "a control group stays", "guest", k.cfg.Name, "error", e)
	}
	k.hub.close()
	close(k.recorded)
	s.finish()
	return err
}

const drainTimeout = 2 * time.Second

func (k *keeper) record(e vps.Exit) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rec.Exit = &e
	k.log.Info("guest ended", "guest", k.cfg.Name, "reason", string(e.Reason), "code", e.Code, "signal", e.Signal, "detail", e.Detail)
	if err := writeRecord(k.cfg.RunDir, k.rec); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "cannot write down how guest %s ended", k.cfg.Name)
	}
	return nil
}

func (k *keeper) instance() vps.Instance {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rec.Instance
}

// drain copies the console to its log and its readers until the terminal's
// other side is closed for good.
func (k *keeper) drain() {
	log := &rotated{path: k.cfg.LogPath, size: int64(k.cfg.LogSize), files: k.cfg.LogFiles}
	defer log.close()
	buf := make([]byte, 16<<10)
	for {
		n, err := k.child.console.Read(buf)
		if n > 0 {
			log.write(buf[:n])
			k.hub.publish(buf[:n])
		}
		if err != nil { // EIO when the last slave side is closed (pty(7)).
			return
		}
	}
}

// feed copies what the writer types to the guest.
func (k *keeper) feed() {
	for {
		select {
		case <-k.over:
			return
		case b := <-k.hub.input:
			// A guest that does not read blocks this until it is over; the
			// hub then drops what comes.
			if _, err := k.child.console.Write(b); err != nil && !errors.Is(err, syscall.EIO) {
				return
			}
		}
	}
}

// outlive kills a guest whose time is over.
func (k *keeper) outlive() {
	if k.cfg.Lifetime <= 0 {
		return
	}
	late := time.NewTimer(time.Duration(k.cfg.Lifetime))
	defer late.Stop()
	select {
	case <-k.over:
	case <-late.C:
		k.log.Warn("the guest's lifetime is over; killing it", "guest", k.cfg.Name, "lifetime", k.cfg.Lifetime.String())
		k.kill()
	}
}

// obey waits for a signal to this process, and then ends the guest within the
// time that it has for that.
func (k *keeper) obey(ctx context.Context) {
	select {
	case <-k.over:
		return
	case <-ctx.Done():
	}
	k.log.InfoContext(ctx, "asked to end; shutting the guest down", "guest", k.cfg.Name)
	k.stop()
	late := time.NewTimer(time.Duration(k.cfg.StopTimeout))
	defer late.Stop()
	select {
	case <-k.over:
	case <-late.C:
		k.log.WarnContext(ctx, "the guest does not shut down in time; killing it", "guest", k.cfg.Name, "timeout", k.cfg.StopTimeout.String())
		k.kill()
	}
}

// kill kills all of the guest's processes. It does not wait.
func (k *keeper) kill() {
	k.killed.Store(true)
	_ = k.child.cmd.Process.Kill()
}
