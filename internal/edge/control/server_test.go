//go:build linux

package control

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"sublet/internal/edge"
)

// newTestServer makes the real one.
func newTestServer(e Environment, log *slog.Logger) (Server, error) {
	if err := attackInstead(e); err != nil {
		return nil, err
	}
	return edge.New(edge.Options{Log: log, Origin: plainly{}, Logs: edge.OpenLogs(e.LogDir, log), Wake: e.Wake}), nil
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
