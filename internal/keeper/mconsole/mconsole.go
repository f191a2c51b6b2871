//go:build linux

// Package mconsole speaks the management console protocol of User Mode Linux:
// one datagram to a unix socket, one or more datagrams back.
//
// The format is that of struct mconsole_request and struct mconsole_reply in
// the kernel's arch/um/drivers/mconsole.h, version 2: native byte order, a
// fixed magic number, and text. What answers is the guest's own process, which
// the guest's root may own, so that replies are bounded and never trusted.
package mconsole

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// From arch/um/drivers/mconsole.h.
const (
	magic     = 0xcafebabe
	version   = 2
	maxData   = 512 // MCONSOLE_MAX_DATA
	headerLen = 12  // magic, version, len; or err, more, len
)

// MaxReply is the longest answer that Do returns, in bytes; the rest is cut.
const MaxReply = 64 << 10

// maxDatagrams bounds the datagrams of one answer, empty ones too.
const maxDatagrams = 1024

// replyTimeout is how long one datagram may take to come when ctx sets no
// nearer deadline. A guest whose kernel is busy answers late.
const replyTimeout = 5 * time.Second

// Console is a guest's management console. Its methods may be called from many
// goroutines.
type Console struct {
	socket *os.File // O_PATH
}

// Open finds the socket at path below root, a folder such as /proc/PID/root:
// the guest's own view of its files. The guest may own what lies there, so
// nothing is followed that could lead out of it: no link, no "..". What is
// found is held, whatever the guest does to the path afterwards.
// vps.CodeUnavailable means that it is not there, as in the first second of a
// guest's life.
func Open(root, path string) (*Console, error) {
	missing := func(err error) error {
		return vps.Wrap(vps.CodeUnavailable, err, "the guest's management console is not there yet")
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, missing(err)
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, missing(err)
	}
	socket := os.NewFile(uintptr(fd), path)
	info, err := socket.Stat()
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		err = fmt.Errorf("%s is not a socket", path)
	}
	if err != nil {
		_ = socket.Close()
		return nil, missing(err)
	}
	return &Console{socket}, nil
}

// Close lets the console go.
func (c *Console) Close() error { return c.socket.Close() }

// Do sends one command and returns the answer's text. It blocks until the
// answer is complete, ctx ends, or the guest has not answered for five seconds
// (vps.CodeTimeout). vps.CodeUnavailable means that nobody listens. A command
// that the guest refuses gives vps.CodeConflict with the guest's words as the
// cause. Only the process behind the socket is heard.
func (c *Console) Do(ctx context.Context, command string) (string, error) {
	if len(command) >= maxData || strings.ContainsRune(command, 0) {
		return "", vps.Errorf(vps.CodeInternal, "a management command has to be shorter than %d bytes", maxData)
	}
	// An empty name makes the kernel pick an abstract address for the answer,
	// which needs no folder.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "cannot make a socket for the guest's management console")
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = conn.SetWriteDeadline(time.Now().Add(replyTimeout)) // a guest that does not read
	err = c.connect(conn)
	if err == nil {
		_, err = conn.Write(request(command))
	}
	if err != nil {
		return "", vps.Wrap(vps.CodeUnavailable, err, "the guest's management console does not listen")
	}
	return collect(ctx, conn)
}

// connect makes a socket hear nobody but the console. The way through the
// descriptor is short enough for the 108 bytes of sockaddr_un, however deep
// the console lies.
func (c *Console) connect(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.Connect(int(fd), &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", c.socket.Fd())})
	})
	return errors.Join(err, failed)
}

func request(command string) []byte {
	b := make([]byte, headerLen, headerLen+len(command)+1)
	binary.NativeEndian.PutUint32(b[0:], magic)
	binary.NativeEndian.PutUint32(b[4:], version)
	binary.NativeEndian.PutUint32(b[8:], uint32(len(command)))
	return append(append(b, command...), 0)
}

func collect(ctx context.Context, conn *net.UnixConn) (string, error) {
	var text bytes.Buffer
	buf := make([]byte, headerLen+maxData)
	for range maxDatagrams {
		if ctx.Err() != nil {
			return "", vps.Wrap(vps.CodeTimeout, context.Cause(ctx), "the guest's management console was not heard out")
		}
		_ = conn.SetReadDeadline(time.Now().Add(replyTimeout))
		n, err := conn.Read(buf)
		if err != nil {
			return "", vps.Wrap(vps.CodeTimeout, err, "the guest's management console does not answer")
		}
		r, err := parseReply(buf[:n])
		if err != nil {
			return "", err
		}
		if room := MaxReply - text.Len(); len(r.data) > room {
			r.data, r.more = r.data[:room], false
		}
		text.Write(r.data)
		switch {
		case r.more:
		case r.failed:
			return "", vps.Wrap(vps.CodeConflict, fmt.Errorf("the guest's kernel says %q", text.String()),
				"the guest refused a management command")
		default:
			return text.String(), nil
		}
	}
	return "", vps.Errorf(vps.CodeInternal, "the guest's management console does not stop answering")
}

type reply struct {
	failed, more bool
	data         []byte
}

// parseReply reads one datagram. The length in it counts a closing zero and
// is not trusted beyond what arrived.
func parseReply(b []byte) (reply, error) {
	if len(b) < headerLen {
		return reply{}, vps.Errorf(vps.CodeInternal, "the guest's management console answered with %d bytes, too few", len(b))
	}
	r := reply{
		failed: binary.NativeEndian.Uint32(b[0:]) != 0,
		more:   binary.NativeEndian.Uint32(b[4:]) != 0,
		data:   b[headerLen:],
	}
	if n := binary.NativeEndian.Uint32(b[8:]); uint64(n) < uint64(len(r.data)) {
		r.data = r.data[:n]
	}
	if i := bytes.IndexByte(r.data, 0); i >= 0 {
		r.data = r.data[:i]
	}
	return r, nil
}
