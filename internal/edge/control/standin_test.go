//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"sublet/internal/edge"
)

// standIn leads all calls to the first guest.
type standIn struct {
	config atomic.Pointer[edge.Config]
	work   sync.WaitGroup
	cut    context.Context
	stop   context.CancelFunc
	n      atomic.Int64
}

func newTestServer(e Environment, _ *slog.Logger) (Server, error) {
	if e.LogDir == "" || e.CertDir == "" || e.Wake == nil {
		return nil, fmt.Errorf("not all of the environment is there: %+v", e)
	}
	if err := attackInstead(e); err != nil {
		return nil, err
	}
	s := &standIn{}
	s.cut, s.stop = context.WithCancel(context.Background())
	return s, nil
}

func (s *standIn) Set(c edge.Config) error {
	if len(c.Guests) == 0 {
		return errors.New("no guests")
	}
	s.config.Store(&c)
	return nil
}

func (s *standIn) Serve(_ context.Context, port edge.Port, l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		s.work.Go(func() { s.lead(port, c.(*net.TCPConn)) })
	}
}

func (s *standIn) lead(port edge.Port, caller *net.TCPConn) {
	defer caller.Close()
	s.n.Add(1)
	g := &s.config.Load().Guests[0]
	to := g.Domains[0].PlainPort()
	if port.Kind == edge.KindTLS {
		to = g.Domains[0].TLSPort()
	}
	guest, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.Address, to)))
	if err != nil {
		return
	}
	defer guest.Close()
	stop := context.AfterFunc(s.cut, func() { _, _ = caller.Close(), guest.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(guest, caller)
		_ = guest.CloseWrite()
	}()
	_, _ = io.Copy(caller, guest)
	_ = caller.CloseWrite()
	<-done
}

func (s *standIn) ServeQUIC(_ context.Context, conn net.PacketConn) error {
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		_, _ = conn.WriteTo(b[:n], from)
	}
}

func (s *standIn) Drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.stop)
	defer stop()
	s.work.Wait()
	return ctx.Err()
}

func (s *standIn) Stats() (json.RawMessage, error) {
	return json.Marshal(map[string]int64{"connections": s.n.Load()})
}
