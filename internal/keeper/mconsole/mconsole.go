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
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

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

// Do sends one command to the mconsole socket at path and returns the answer's
// text. It blocks until the answer is complete, ctx ends, or the guest has not
// answered for five seconds (vps.CodeTimeout). vps.CodeUnavailable means that
// nobody listens, as in the first second of a guest's life. A command that the
// guest refuses gives vps.CodeConflict with the guest's words as the cause.
// Paths of any length work.
func Do(ctx context.Context, path, command string) (string, error) {
	if len(command) >= maxData || strings.ContainsRune(command, 0) {
		return "", vps.Errorf(vps.CodeInternal, "a management command has to be shorter than %d bytes", maxData)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", vps.Wrap(vps.CodeUnavailable, err, "the guest's management console is not there yet")
	}
	defer func() { _ = dir.Close() }()
	// An empty name makes the kernel pick an abstract address, which needs no
	// folder that the guest's process may write to.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "cannot make a socket for the guest's management console")
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	// Through the folder's descriptor the path is short enough for the 108
	// bytes of sockaddr_un, however deep the folder is.
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if _, err := conn.WriteToUnix(request(command), &net.UnixAddr{Name: short, Net: "unixgram"}); err != nil {
		return "", vps.Wrap(vps.CodeUnavailable, err, "the guest's management console does not listen")
	}
	return collect(ctx, conn)
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
