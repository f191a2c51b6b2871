//go:build linux

package control

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"sublet/internal/edge"
)

// testServer is the real one, on a host without UDP.
type testServer struct{ *edge.Server }

func newTestServer(e Environment, log *slog.Logger) (Server, error) {
	if err := attackInstead(e); err != nil {
		return nil, err
	}
	return testServer{edge.New(edge.Options{Log: log, Origin: plainly{}, Logs: edge.OpenLogs(e.LogDir, log), Wake: e.Wake})}, nil
}

func (testServer) ServeQUIC(_ context.Context, conn net.PacketConn) error {
	_, _, err := conn.ReadFrom(make([]byte, 1))
	return err
}

// plainly connects from the host.
type plainly struct{}

func (plainly) Dial(ctx context.Context, _, guest netip.AddrPort) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", guest.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (plainly) DialUDP(ctx context.Context, _, guest netip.AddrPort) (*net.UDPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", guest.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
