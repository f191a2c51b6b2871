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
	table := map[string]netip.AddrPort{}
	for _, route := range routes {
		name, to, _ := strings.Cut(route, "=")
		target, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		table[name] = target
	}
	listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Setgid(nobody), unix.Setuid(nobody)); err != nil {
		return err
	}
	debug.SetGCPercent(400)
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return errors.New("not TCP")
	}
	return relay.Serve(context.Background(), tcp, func() time.Duration { return 10 * time.Second }, front(table))
}

// front is the table.
type front map[string]netip.AddrPort

// Call is relay.Front's.
func (f front) Call(netip.AddrPort, *relay.Relay) relay.Session { return f }

// Heard is relay.Session's.
func (f front) Heard(said []byte) relay.Answer {
	if len(said) < 5 || len(said) < 5+int(binary.BigEndian.Uint16(said[3:])) {
		return relay.Answer{}
	}
	to, ok := f[serverName(said[5:])]
	if !ok {
		return relay.Answer{Say: []byte{21, 3, 1, 0, 2, 2, 112}}
	}
	return relay.Answer{To: to, Options: relay.Options{Idle: time.Hour}}
}

// Unreached is relay.Session's.
func (f front) Unreached(error) relay.Answer { return relay.Answer{Say: []byte{21, 3, 1, 0, 2, 2, 80}} }

// Ended is relay.Session's.
func (f front) Ended(relay.Reason) {}

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
