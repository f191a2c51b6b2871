//go:build linux

package keeper

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sublet/internal/keeper/mconsole" //nolint:depguard // a part of this package
	"sublet/internal/vps"
)

// Times between two requests for an orderly shutdown. A request is lost when
// the guest's init does not hear it yet. The pauses after a request grow, so
// that a guest that boots slowly gets through, and are long enough not to
// count as the seven presses in two seconds at which systemd reboots at once.
const (
	notYet   = 300 * time.Millisecond
	nextAsk  = 4 * time.Second
	askRises = 2
	longAsk  = 30 * time.Second
	// deafLimit is after what time a guest that does not show what it does on
	// Ctrl-Alt-Del is asked all the same.
	deafLimit = 20 * time.Second
)

// stop asks the guest to shut down, and goes on asking until it is over.
func (k *keeper) stop() {
	k.stopOnce.Do(func() { go k.keepAsking() })
}

func (k *keeper) keepAsking() {
	// The guest's life is the bound of all this.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-k.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	since := time.Now()
	pause := nextAsk
	told := false
	for ctx.Err() == nil {
		wait := pause
		if err := k.ask(ctx, time.Since(since) > deafLimit); err != nil {
			wait = notYet
			if !told {
				k.log.InfoContext(ctx, "the guest does not hear yet that it shall shut down; trying on", "guest", k.cfg.Name, "error", err)
				told = true
			}
		} else if pause = pause * (askRises + 1) / askRises; pause > longAsk {
			pause = longAsk
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// cadFile is where a guest's kernel says what Ctrl-Alt-Del does: "0" tells
// init, "1" reboots at once, with nothing synced (proc_sys_kernel(5)).
const cadFile = "sys/kernel/ctrl-alt-del"

// ask asks once. A guest that would reboot at once is not asked: at best it
// would come up again, and a kernel that reboots while it starts its first
// process may leave a helper behind that locks its own disks.
func (k *keeper) ask(ctx context.Context, force bool) error {
	if k.cfg.Mconsole == "" {
		return k.child.cmd.Process.Signal(syscall.SIGTERM)
	}
	// The guest's process is this one's child, and not reaped as long as over
	// is open, so its number is nobody else's.
	console, err := mconsole.Open(GuestRoot(k.child.cmd.Process.Pid), filepath.Join(k.cfg.RunDir, k.cfg.Mconsole))
	if err != nil {
		return err
	}
	defer func() { _ = console.Close() }()
	text, err := console.Do(ctx, "proc "+cadFile)
	switch {
	case err != nil && (!force || vps.ErrorCode(err) != vps.CodeConflict):
		return err // Not up yet, or a kernel that does not show it.
	case err == nil && strings.TrimSpace(text) != "0":
		return vps.Errorf(vps.CodeConflict, "the guest reboots on Ctrl-Alt-Del instead of telling its init")
	}
	// Ctrl-Alt-Del: the guest's init decides, and powers off.
	_, err = console.Do(ctx, "cad")
	return err
}
