//go:build linux

// The program edgeproxy is the least that a proxy by server name can be: it
// measures package relay by itself.
//
//	edgeproxy ADDRESS NAME=ADDRESS…
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/sys/unix"

	"sublet/internal/edge/relay"
)

// nobody is the user that the proxy runs as: it has no more pipes than others.
const nobody = 65534

func main() {
	fmt.Fprintln(os.Stderr, run(os.Args[1], os.Args[2:]))
	os.Exit(1)
}

func run(address string, routes []string) error {
	table := map[string]*net.TCPAddr{}
	for _, route := range routes {
		name, to, _ := strings.Cut(route, "=")
		target, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		table[name] = net.TCPAddrFromAddrPort(target)
	}
	listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Setgid(nobody), unix.Setuid(nobody)); err != nil {
		return err
	}
	debug.SetGCPercent(400)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		caller, ok := conn.(*net.TCPConn)
		if !ok {
			return errors.New("not TCP")
		}
		go serve(caller, table)
	}
}

var rooms = sync.Pool{New: func() any { return new([16<<10 + 5]byte) }}

func serve(caller *net.TCPConn, table map[string]*net.TCPAddr) {
	r := connect(caller, table)
	if r == nil {
		_ = caller.Close()
		return
	}
	r.Run(context.Background())
}

var dialer = net.Dialer{KeepAlive: -1, Timeout: 10 * time.Second}

func connect(caller *net.TCPConn, table map[string]*net.TCPAddr) *relay.Relay {
	room, ok := rooms.Get().(*[16<<10 + 5]byte)
	if !ok {
		return nil
	}
	defer rooms.Put(room)
	_ = caller.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, want := 0, 5
	for n < want {
		got, err := caller.Read(room[n:])
		if n += got; err != nil {
			return nil
		}
		if n >= 5 {
			want = 5 + int(binary.BigEndian.Uint16(room[3:]))
		}
	}
	_ = caller.SetReadDeadline(time.Time{})
	target := table[serverName(room[5:want])]
	if target == nil {
		return nil
	}
	conn, err := dialer.DialContext(context.Background(), "tcp4", target.String())
	if err != nil {
		return nil
	}
	guest, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	// The first bytes go before the room does.
	if _, err := guest.Write(room[:n]); err != nil {
		return nil
	}
	r, err := relay.New(caller, guest, relay.Options{Idle: time.Hour})
	if err != nil {
		return nil
	}
	return r
}

// serverName of a ClientHello in one record (RFC 8446, 4.1.2; RFC 6066, 3).
func serverName(message cryptobyte.String) string {
	var kind uint8
	var body, session, suites, methods, extensions cryptobyte.String
	if !message.ReadUint8(&kind) || !message.ReadUint24LengthPrefixed(&body) || !body.Skip(34) ||
		!body.ReadUint8LengthPrefixed(&session) || !body.ReadUint16LengthPrefixed(&suites) ||
		!body.ReadUint8LengthPrefixed(&methods) || !body.ReadUint16LengthPrefixed(&extensions) {
		return ""
	}
	for !extensions.Empty() {
		var which uint16
		var data, list, name cryptobyte.String
		if !extensions.ReadUint16(&which) || !extensions.ReadUint16LengthPrefixed(&data) {
			return ""
		}
		if which == 0 && data.ReadUint16LengthPrefixed(&list) && list.Skip(1) && list.ReadUint16LengthPrefixed(&name) {
			return strings.ToLower(string(name))
		}
	}
	return ""
}
