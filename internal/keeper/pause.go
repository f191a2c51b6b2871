//go:build linux

package keeper

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

const (
	// maxPause is how long a guest stands still at most: a caller that hangs
	// does not hold it for ever.
	maxPause = 30 * time.Minute
	// standWithin is how long the kernel may take to stop a process.
	standWithin = 10 * time.Second
)

// pause stops the guest's process until the caller says to go on, leaves, or
// has taken too long. A caller that is killed so lets it go. The answer to "go
// on" tells the caller that the guest stood still all the time.
func (s *server) pause(conn net.Conn, in *bufio.Reader) {
	if !s.k.pausing.TryLock() {
		refuse(conn, vps.CodeConflict, "the guest stands still already, for somebody else")
		return
	}
	defer s.k.pausing.Unlock()
	defer s.k.resume()
	if err := s.k.suspend(); err != nil {
		refuse(conn, vps.ErrorCode(err), vps.ErrorMessage(err))
		return
	}
	s.reply(conn)
	_ = conn.SetReadDeadline(time.Now().Add(maxPause))
	if _, err := in.ReadByte(); err != nil {
		return
	}
	select {
	case <-s.k.over:
		refuse(conn, vps.CodeNotFound, "the guest ended meanwhile")
	default:
		s.reply(conn)
	}
}

// suspend stops the guest's kernel, all its threads. Programs of the guest run
// only when that lets them, and what was on its way to a disk is written by
// then or is not, as at a power cut.
func (k *keeper) suspend() error {
	pid := k.child.cmd.Process.Pid
	// The process is this one's child, and is not reaped as long as over is open.
	select {
	case <-k.over:
		return vps.Errorf(vps.CodeNotFound, "the guest is over")
	default:
	}
	if err := k.child.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the guest's process cannot be stopped")
	}
	ctx, cancel := context.WithTimeout(context.Background(), standWithin)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { return standsStill(pid) }); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the guest's process does not stand still")
	}
	return nil
}

// resume lets the guest go on.
func (k *keeper) resume() { _ = k.child.cmd.Process.Signal(unix.SIGCONT) }

// standsStill tells whether all threads of a process are stopped.
func standsStill(pid int) (bool, error) {
	dir := filepath.Join("/proc", itoa(pid), "task")
	threads, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, t := range threads {
		stat, err := statIn(filepath.Join(dir, t.Name()))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return false, err
		}
		if stat[stateField] != stopped {
			return false, nil
		}
	}
	return true, nil
}

// Pause makes a running guest stand still: nothing of it runs when this
// returns. The returned function lets it go on, and fails when it went on
// before, which it does by itself when this process ends, and after half an
// hour. It is to be called, and only the first call counts.
//
// vps.CodeNotFound: the instance is over. vps.CodeConflict: it stands still
// already. vps.CodeInvalid: its keeper is of a version that cannot do this; a
// restart of the guest gives it a new one.
func Pause(ctx context.Context, in vps.Instance) (resume func() error, err error) {
	conn, err := dial(ctx, runDirOf(in))
	if err != nil {
		return nil, err
	}
	r, _, err := exchange(ctx, conn, request{Op: opPause, Instance: &in})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return sync.OnceValue(func() error {
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(standWithin))
		_, err := conn.Write([]byte("\n"))
		if err == nil {
			_, err = readAnswer(r)
		}
		if err != nil {
			return vps.Wrap(vps.CodeConflict, err, "the guest %s went on before it was to", in.Name)
		}
		return nil
	}), nil
}
