//go:build linux

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sublet/internal/vps"
)

// Launcher starts keepers. The zero value is not usable; see NewLauncher.
type Launcher struct {
	// Command is the argv that leads to Main in this program, Command[0] being
	// an absolute path: for sublet itself, its own path and the hidden verb.
	Command []string
	// SystemdRun is the path of systemd-run, for hosts that systemd runs on:
	// keepers become units of their own there, because what stays in the
	// daemon's unit is killed with it. Empty means a plain child process in a
	// session of its own.
	SystemdRun string
	// UnitPrefix starts the units' names; empty means "sublet-guest-". It has
	// to differ between daemons on one host.
	UnitPrefix string
	// ReadyTimeout is how long a keeper may take to start its guest; 0 means
	// 20 seconds.
	ReadyTimeout time.Duration
}

const defaultReady = 20 * time.Second

// systemdMark exists where systemd is process 1 (sd_booted(3)).
const systemdMark = "/run/systemd/system"

// NewLauncher returns the launcher that fits this host: through systemd-run
// where systemd runs, and else directly.
func NewLauncher(command []string) Launcher {
	return Launcher{Command: command, SystemdRun: SystemdRun()}
}

// SystemdRun returns the path of systemd-run on a host that systemd runs on, empty
// on others.
func SystemdRun() string {
	if info, err := os.Lstat(systemdMark); err != nil || !info.IsDir() {
		return ""
	}
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return ""
	}
	return path
}

// unitName names the transient unit of a guest.
func (l Launcher) unitName(guest string) string {
	prefix := l.UnitPrefix
	if prefix == "" {
		prefix = "sublet-guest-"
	}
	return prefix + guest + ".service"
}

// stopMargin is what systemd waits beyond the guest's own time, so that the
// keeper gets to kill the guest and to write that down.
const stopMargin = 15 * time.Second

// argv is the whole command line that starts a keeper.
func (l Launcher) argv(c Config, configPath string) []string {
	keep := append(append([]string(nil), l.Command...), configFlag, configPath)
	if l.SystemdRun == "" {
		return keep
	}
	stop := c.StopTimeout
	if stop <= 0 {
		stop = vps.DefaultStopTimeout
	}
	messages := "append:" + filepath.Join(c.RunDir, messagesName)
	args := []string{
		l.SystemdRun, "--quiet", "--collect",
		"--unit=" + l.unitName(c.Name),
		"--description=sublet guest " + c.Name,
		"--slice=sublet.slice",
		"--service-type=exec",
		// On stop only the keeper hears SIGTERM; it shuts the guest down.
		"--property=KillMode=mixed",
		// The keeper makes a control group for the guest below its own.
		"--property=Delegate=yes",
		fmt.Sprintf("--property=TimeoutStopSec=%d", int64((time.Duration(stop)+stopMargin)/time.Second)),
		"--property=StandardOutput=null",
		"--property=StandardError=" + messages,
		// The keeper is what observes how a guest ends. If one of the two has
		// to go, it is not the keeper.
		"--property=OOMPolicy=continue",
		// When the host shuts down the daemon is stopped first: it might take
		// a guest's end for something to repair.
		"--property=Before=sublet.service",
		// And what guests send while they stop is kept last.
		"--property=After=sublet-traffic.service",
		"--",
	}
	return append(args, keep...)
}

// Launch writes the config into its run folder, which exists, starts a keeper,
// and returns the instance once the guest's process runs. When it fails,
// nothing runs; the keeper's own words are part of the cause.
//
// The keeper outlives ctx and this process. Where another keeper holds the
// folder already, its instance is returned when it is for the same guest ID.
func (l Launcher) Launch(ctx context.Context, c Config) (vps.Instance, error) {
	c.Command, c.Delegated = l.Command, l.SystemdRun != ""
	if err := c.check(); err != nil {
		return vps.Instance{}, err
	}
	before, err := Find(c.RunDir)
	if err == nil && before.Exit == nil {
		if now, err := Status(ctx, c.RunDir); err == nil && now.Exit == nil {
			return now, sameGuest(c, now)
		}
		// It is on its way out; the new keeper waits for that.
	}
	path, err := WriteConfig(c)
	if err != nil {
		return vps.Instance{}, err
	}
	p, err := l.start(ctx, c, path)
	if err != nil {
		return vps.Instance{}, vps.Wrap(vps.CodeInternal, err, "cannot start the keeper of guest %s", c.Name)
	}
	in, err := l.ready(ctx, c, before, p)
	if err != nil {
		p.abandon(ctx, c.RunDir)
		return vps.Instance{}, err
	}
	return in, nil
}

// sameGuest refuses an instance of another guest, which an older guest of the
// same name may have left running.
func sameGuest(c Config, in vps.Instance) error {
	if in.GuestID != c.GuestID {
		return vps.Errorf(vps.CodeConflict, "an instance of another guest with the name %s still runs in %s; kill it first", in.Name, c.RunDir)
	}
	return nil
}

// process is a launched keeper as far as its parent knows it.
type process struct {
	direct *os.Process
	// ended is closed when the process has ended; never, for one that systemd
	// started.
	ended chan struct{}
}

func (l Launcher) start(ctx context.Context, c Config, configPath string) (*process, error) {
	argv := l.argv(c, configPath)
	messages := filepath.Join(c.RunDir, messagesName)
	if err := os.Remove(messages); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if l.SystemdRun != "" {
		return &process{}, l.startUnit(ctx, argv)
	}
	stderr, err := os.OpenFile(messages, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{direct: cmd.Process, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // How it ended is in the record.
	}()
	return p, nil
}

// startUnit runs systemd-run. The unit of an instance that has just ended may
// stay for a moment after its keeper, until systemd has seen that: then it is
// tried again.
func (l Launcher) startUnit(ctx context.Context, argv []string) error {
	ctx, cancel := context.WithTimeout(ctx, l.patience())
	defer cancel()
	var failed error
	err := poll(ctx, func() (bool, error) {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err == nil {
			failed = nil
			return true, nil
		}
		failed = fmt.Errorf("systemd-run: %w: %s", err, printable(out))
		if strings.Contains(string(out), unitStays) {
			return false, nil
		}
		return true, failed
	})
	if failed != nil {
		return failed // what it said tells more than that time ran out
	}
	return err
}

// unitStays is what systemd-run says of a unit that is still there
// (BUS_ERROR_UNIT_EXISTS in systemd's dbus-manager.c).
const unitStays = "was already loaded"

// patience is how long a keeper may take to start its guest.
func (l Launcher) patience() time.Duration {
	if l.ReadyTimeout <= 0 {
		return defaultReady
	}
	return l.ReadyTimeout
}

// ready waits until the record names a new instance with a process, or the
// keeper gives up.
func (l Launcher) ready(ctx context.Context, c Config, before vps.Instance, p *process) (vps.Instance, error) {
	limit := l.patience()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var in vps.Instance
	ended := false
	err := poll(ctx, func() (bool, error) {
		select {
		case <-p.ended:
			ended = true // One more look: it may have ended after its guest.
		default:
		}
		r, err := readRecord(c.RunDir)
		switch {
		case err == nil && r.PID > 0 && !same(r.Instance, before):
			in = r.Instance
			return true, sameGuest(c, in)
		case ended:
			return true, fmt.Errorf("the keeper ended: %s", lastWords(c.RunDir))
		}
		return false, nil
	})
	switch {
	case err == nil:
		return in, nil
	case vps.ErrorCode(err) == vps.CodeConflict:
		return in, err
	case ended:
		return in, vps.Wrap(vps.CodeInternal, err, "guest %s could not be started", c.Name)
	case context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return in, vps.Wrap(vps.CodeTimeout, err, "gave up starting guest %s", c.Name)
	default:
		return in, vps.Wrap(vps.CodeTimeout, fmt.Errorf("%w: %s", err, lastWords(c.RunDir)),
			"guest %s did not start within %s", c.Name, limit)
	}
}

const wordsSize = 4 << 10

func lastWords(runDir string) string {
	return strings.TrimSpace(tail(filepath.Join(runDir, messagesName), wordsSize))
}

// abandonTimeout bounds the cleaning up after a start that failed.
const abandonTimeout = 15 * time.Second

// abandon ends what a failed launch left running. The anchor and the guest go
// with the keeper.
func (p *process) abandon(ctx context.Context, runDir string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	if p.direct != nil {
		_ = p.direct.Kill()
		<-p.ended
	} else if in, err := Status(ctx, runDir); err == nil {
		_ = Kill(ctx, in)
	}
	_ = poll(ctx, func() (bool, error) {
		held, err := Running(runDir)
		return !held, err
	})
}
