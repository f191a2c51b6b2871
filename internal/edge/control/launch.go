//go:build linux

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// unitName names the unit of a process. One that takes over runs beside the one
// before it, so that the number is part of it.
func unitName(number int) string { return fmt.Sprintf("sublet-edge-%d.service", number) }

// argv is the whole command line that starts a process.
func argv(o *Order, systemdRun string) []string {
	edge := append(append([]string(nil), o.Command...), orderFlag, o.path(orderExt))
	if systemdRun == "" {
		return edge
	}
	args := []string{
		systemdRun, "--quiet", "--collect",
		"--unit=" + unitName(o.Number),
		"--description=sublet edge",
		"--slice=sublet.slice",
		"--service-type=exec",
		fmt.Sprintf("--property=TimeoutStopSec=%d", int64((quitTime+stopMargin)/time.Second)),
		"--property=StandardOutput=null",
		"--property=StandardError=append:" + o.path(messagesExt),
		fmt.Sprintf("--property=LimitNOFILE=%d", maxOpenFiles),
		// It has threads only, a few for each processor.
		"--property=TasksMax=1024",
		// When the host shuts down the daemon is stopped first: it would start the
		// edge again.
		"--property=Before=sublet.service",
		"--property=After=network-online.target",
	}
	if o.Memory > 0 {
		args = append(args, fmt.Sprintf("--property=MemoryMax=%d", int64(o.Memory)))
	}
	return append(append(args, "--"), edge...)
}

// stopMargin is what systemd waits beyond quitTime.
const stopMargin = 5 * time.Second

// readyTime is how long a process may take to answer after its start.
const readyTime = 20 * time.Second

// pollEvery is the pause between two looks for a socket that is about to be.
const pollEvery = 2 * time.Millisecond

// launch starts a process and returns when it answers. It outlives ctx and this
// process. When it fails, nothing runs, and what the process said is part of
// the error.
func launch(ctx context.Context, o *Order, systemdRun string, wake func(string)) (*client, *Hello, error) {
	if err := durable.WriteJSON(o.path(orderExt), o); err != nil {
		return nil, nil, fmt.Errorf("write what to start: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	ended, kill, err := start(ctx, o, systemdRun)
	if err != nil {
		forget(o.Dir, o.Number)
		return nil, nil, err
	}
	c, h, err := greet(ctx, o, wake, ended)
	if err != nil {
		kill()
		said := lastWords(o)
		forget(o.Dir, o.Number)
		return nil, nil, vps.Wrap(vps.CodeInternal, err, "the edge could not be started: %s", said)
	}
	return c, h, nil
}

// start starts the process. ended is closed when it has, as far as that is seen
// from here.
func start(ctx context.Context, o *Order, systemdRun string) (ended <-chan struct{}, kill func(), err error) {
	args := argv(o, systemdRun)
	if systemdRun != "" {
		kill := func() {
			// What failed to start has ended; what hangs has not.
			systemctl := filepath.Join(filepath.Dir(systemdRun), "systemctl")
			_ = exec.CommandContext(context.WithoutCancel(ctx), systemctl, "kill", "--signal=KILL", unitName(o.Number)).Run()
		}
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			kill()
			return nil, nil, vps.Wrap(vps.CodeInternal, err, "systemd-run does not start the edge: %s", strings.TrimSpace(string(out)))
		}
		return nil, kill, nil
	}
	stderr, err := os.OpenFile(o.path(messagesExt), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = stderr.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = "/", stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = cmd.Wait() // how it ended is in its messages
	}()
	return over, func() { _ = cmd.Process.Kill(); <-over }, nil
}

// greet connects to a process that has just been started.
func greet(ctx context.Context, o *Order, wake func(string), ended <-chan struct{}) (*client, *Hello, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		c, err := dial(ctx, o.Number, o.path(socketExt), wake)
		if err == nil {
			h, err := c.hello(ctx)
			if err == nil {
				return c, h, nil
			}
			_ = c.conn.Close()
			return nil, nil, err
		}
		select {
		case <-ended:
			return nil, nil, errors.New("the process ended")
		case <-ctx.Done():
			return nil, nil, vps.Wrap(vps.CodeTimeout, ctx.Err(), "the edge did not start within %s", readyTime)
		case <-tick.C:
		}
	}
}

// lastWords returns the end of what a process wrote.
func lastWords(o *Order) string {
	const enough = 2 << 10
	text, _ := heard(o, 0)
	if text = printable(text[max(0, len(text)-enough):]); text == "" {
		return "it said nothing"
	}
	return text
}

// heard returns what a process wrote from some byte on, and where that ends.
func heard(o *Order, from int64) (text string, to int64) {
	f, err := os.Open(o.path(messagesExt))
	if err != nil {
		return "", from
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.NewSectionReader(f, from, 2*maxMessages))
	if err != nil {
		return "", from
	}
	return string(b), from + int64(len(b))
}

// printable leaves out of a text what is of no use in a log: the process may be in
// strangers' hands.
func printable(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case !strconv.IsPrint(r):
			return -1
		}
		return r
	}, text))
}

// forget removes the files of a process that has ended.
func forget(dir string, number int) {
	o := Order{Dir: dir, Number: number}
	for _, extension := range []string{socketExt, orderExt, messagesExt} {
		_ = os.Remove(o.path(extension))
	}
}

// numbers returns those of processes that may run, by their files.
func numbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []int
	for _, e := range entries {
		// A process whose daemon was killed as it began may have either.
		name, extension := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name())
		n, err := strconv.Atoi(name)
		if err == nil && n > 0 && (extension == orderExt || extension == socketExt) && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all, nil
}
