package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// fromHost connects to guests from the host's own address.
type fromHost struct{}

func (fromHost) Dial(ctx context.Context, _, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("a connection of TCP is a %T", conn)
	}
	return tcp, nil
}

func (fromHost) DialUDP(_ context.Context, _, to netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}
