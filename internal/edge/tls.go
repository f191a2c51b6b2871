package edge

import (
	"context"
	"errors"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge/hello"
	"sublet/internal/edge/relay"
	"sublet/internal/vps"
)

// firstRead is how much is read of a caller at first. A ClientHello has 300 to 2000
// bytes.
const firstRead = 2048

// readHello reads until the ClientHello is whole. It returns all that was read.
// Errors are *hello.RefusalError, or those of the connection.
func (c *session) readHello(first []byte) (hello.Hello, []byte, error) {
	buf := first
	if cap(buf) < firstRead {
		buf = append(make([]byte, 0, firstRead), first...)
	}
	var r hello.Reader
	for {
		h, err := r.Parse(buf)
		if !errors.Is(err, hello.ErrMore) {
			return h, buf, err
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(2*cap(buf), hello.MaxBytes)), buf...)
		}
		n, err := c.conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			return hello.Hello{}, buf, err
		}
	}
}

// serveTLS leads a caller of a port for TLS to the guest that he names, and returns
// when the session has ended. first is what was read of him before.
func (s *Server) serveTLS(ctx context.Context, call *session, first []byte) {
	began := time.Now()
	h, buf, err := call.readHello(first)
	if err != nil {
		s.refuseHello(call, err)
		call.end()
		return
	}
	name := h.ServerName
	t := s.table.Load()
	r := t.ports[call.port].lookup(name)
	if c := s.options.Certificates; c != nil && call.port.Number == vps.HTTPSPort && c.Challenged(name, h.ALPN) {
		r = t.terminated[name] // whatever port the domain is on
	}
	if r != nil && r.domain.Terminate {
		s.terminate(ctx, call, t, r, name, buf)
		return
	}
	defer call.end()
	if r == nil {
		s.refused.add(ReasonName)
		call.alert(hello.AlertUnrecognizedName)
		return
	}
	l, err := s.reach(ctx, t, r, r.domain.TLSPort(), call.visit(name, false))
	if err != nil {
		s.failTLS(r, call, name, began, reasonOf(err))
		call.alert(hello.AlertInternalError)
		return
	}
	defer l.Close() //nolint:errcheck // the relay tells how it ended
	_ = call.conn.SetDeadline(time.Time{})
	run, err := relay.New(call.conn, l.TCPConn, relay.Options{
		Preface: l.header, First: buf, Idle: time.Duration(t.settings.IdleTimeout),
	})
	if err != nil { // one side has hung up by now, or Drain did
		s.failTLS(r, call, name, began, ReasonGuestLost)
		return
	}
	s.sessions.relays(call, run, l.meter)
	why := run.Run(ctx)
	in, out := s.sessions.relayed(call)
	s.logTLS(l.route, call, name, began, &passed{in: in, out: out, end: why.String()})
}

// visit is what a caller for a name wants of a guest, whose TLS ends here or does
// not.
func (c *session) visit(name string, terminated bool) visit {
	return visit{caller: c.caller, gone: c.gone, waited: c.waited, find: func(t *table) (*route, uint16) {
		r := t.ports[c.port].lookup(name)
		if r == nil || r.domain.Terminate != terminated {
			return nil, 0
		}
		return r, r.domain.TLSPort()
	}}
}

// failTLS counts and writes down a caller who does not come to his guest.
func (s *Server) failTLS(r *route, call *session, name string, began time.Time, why Reason) {
	r.meter().refuse(why)
	s.logTLS(r, call, name, began, &passed{reason: why})
}

// refuseHello answers who did not say in TLS whom he wants.
func (s *Server) refuseHello(call *session, err error) {
	refusal, ok := errors.AsType[*hello.RefusalError](err)
	if !ok {
		s.refused.add(ReasonHandshake) // too slow, or gone
		return
	}
	s.refused.add(helloReason(refusal.Reason))
	if word := helloAnswer(refusal); word != nil {
		lastWord(call.conn, word)
	}
}

// helloAnswer is what is said to who did not say in TLS whom he wants, nil for
// nothing.
func helloAnswer(why *hello.RefusalError) []byte {
	switch {
	case why.Reason == hello.ReasonHTTP:
		return rawPage(http.StatusBadRequest)
	case why.Alert != 0:
		return hello.Alert(why.Alert)
	}
	return nil
}

// alert refuses a caller in TLS.
func (c *session) alert(description uint8) { lastWord(c.conn, hello.Alert(description)) }

// gone tells whether the caller has hung up.
func (c *session) gone() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return gone || err != nil
}
