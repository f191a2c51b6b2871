package edge

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"sublet/internal/edge/hello"
)

// terminate ends TLS of a caller here, and leads what is in it to the guest. read is
// the ClientHello, and what else was read.
func (s *Server) terminate(ctx context.Context, call *session, t *table, r *route, name string, read []byte) {
	began := time.Now()
	if s.options.Certificates == nil {
		s.failTLS(r, call, name, began, ReasonCertificate)
		call.alert(hello.AlertInternalError)
		call.end()
		return
	}
	web := newWebConn(call, replay(call.conn, read), t)
	conn := tls.Server(web, s.options.Certificates.TLSConfig(&r.domain))
	if err := conn.HandshakeContext(ctx); err != nil { // until the session's deadline
		s.failTLS(r, call, name, began, ReasonCertificate)
		_ = web.Close()
		return
	}
	_ = call.conn.SetDeadline(time.Time{})
	switch {
	case conn.ConnectionState().NegotiatedProtocol == ChallengeProtocol:
		_ = conn.Close()
	case r.domain.Web():
		s.fronts.serveAs(web, conn)
	default:
		s.passPlain(ctx, call, t, r, name, conn)
		_ = conn.Close()
	}
}

// passPlain leads what is in a caller's TLS to the guest's port.
func (s *Server) passPlain(ctx context.Context, call *session, t *table, r *route, name string, conn *tls.Conn) {
	began := time.Now()
	l, err := s.reach(ctx, t, r, r.domain.TLSPort(), call.visit(name, true))
	if err != nil {
		s.failTLS(r, call, name, began, reasonOf(err))
		return
	}
	up := &upstream{server: s, route: l.route}
	guest := &guestConn{Conn: l.TCPConn, link: l, up: up}
	defer guest.Close() //nolint:errcheck // both directions have ended, and passHalf saw how
	if len(l.header) > 0 {
		if _, err := l.Write(l.header); err != nil {
			s.failTLS(r, call, name, began, ReasonGuestLost)
			return
		}
	}
	var halves sync.WaitGroup
	halves.Go(func() { call.ending.copied(true, passHalf(guest, conn)) })
	call.ending.copied(false, passHalf(conn, guest))
	halves.Wait()
	s.logTLS(l.route, call, name, began, &passed{in: up.in.Load(), out: up.out.Load(), end: call.ending.why().String()})
}

// halfClosable is a connection whose end can be said in one direction.
type halfClosable interface {
	net.Conn
	CloseWrite() error
}

// passHalf copies one direction, and returns how that ended. When one side breaks the
// other one ends, too.
func passHalf(to, from halfClosable) error {
	_, err := copyAll(to, from)
	if err != nil || to.CloseWrite() != nil {
		_ = to.Close()
		_ = from.Close()
	}
	return err
}
