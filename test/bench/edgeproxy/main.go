//go:build linux

// The program edgeproxy is the edge as the benchmark runs it: what the edge's
// process runs, as a user without rights and with the same filter of system calls,
// but without a daemon.
//
//	edgeproxy ADDRESS NAME=ADDRESS…
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/keeper/jail"
	"sublet/internal/vps"
)

const (
	// nobody is the user that it runs as: it has no more pipes than others.
	nobody = 65534
	// unlimited is more than the benchmark asks for.
	unlimited = 1 << 20
)

func main() {
	fmt.Fprintln(os.Stderr, run(os.Args[1], os.Args[2:]))
	os.Exit(1)
}

func run(address string, routes []string) error {
	port := edge.Port{Number: vps.HTTPSPort, Kind: edge.KindTLS}
	c := edge.Config{Settings: vps.DefaultEdgeSettings(), Ports: []edge.Port{port}}
	c.Settings.CallerConnections, c.Settings.CallerRate, c.Settings.AccessLog = unlimited, unlimited, vps.AccessOff
	for i, route := range routes {
		name, to, _ := strings.Cut(route, "=")
		guest, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		c.Guests = append(c.Guests, edge.Guest{
			ID: fmt.Sprintf("guest%d", i), Name: name, Address: guest.Addr(), Running: true,
			Limits:  vps.NetworkLimits{Connections: unlimited, NewConnections: unlimited},
			Domains: []vps.Domain{{Name: name, Port: guest.Port()}},
		})
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	// This thread's lack of new privileges lets it filter the others.
	runtime.LockOSThread()
	if err := errors.Join(unix.Setgid(nobody), unix.Setuid(nobody), unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), jail.FilterServer()); err != nil {
		return err
	}
	runtime.UnlockOSThread()
	server := edge.New(edge.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Origin: nowhere{}})
	if err := server.Set(c); err != nil {
		return err
	}
	return server.Serve(context.Background(), port, listener)
}

// nowhere is for callers who could not be connected otherwise: here all can.
type nowhere struct{}

// Dial is edge.Origin's.
func (nowhere) Dial(context.Context, netip.AddrPort, netip.AddrPort) (*net.TCPConn, error) {
	return nil, unix.EHOSTUNREACH
}

// DialUDP is edge.Origin's.
func (nowhere) DialUDP(context.Context, netip.AddrPort, netip.AddrPort) (*net.UDPConn, error) {
	return nil, unix.EHOSTUNREACH
}
