//go:build linux

package export_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/pires/go-proxyproto"
)

func prefixes(all ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// proxyV1 is what a proxy says of a caller, 203.0.113.99.
func proxyV1(port int) string {
	return fmt.Sprintf("PROXY TCP4 203.0.113.99 %s 1234 %d\r\n", host4, port)
}

func proxyV2() string {
	b, err := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 99), Port: 1234}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}).Format()
	if err != nil {
		panic(err)
	}
	return string(b)
}

// recorder keeps what is written to it.
type recorder struct {
	net.Conn
	hello []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.hello = append(r.hello, b...)
	return 0, io.ErrClosedPipe
}

// helloMessage is a ClientHello of crypto/tls, as a handshake message, for a name that
// may be none: it stands in place of one of its length. It is padded to a size, 0 for
// its own.
func helloMessage(name string, size int) []byte {
	alike := strings.Repeat("x", len(name))
	r := &recorder{}
	_ = tls.Client(r, &tls.Config{ServerName: alike, MinVersion: tls.VersionTLS12}).Handshake()
	message := []byte(strings.Replace(string(r.hello[5:]), alike, name, 1))
	if size == 0 {
		return message
	}
	padding := size - len(message) - 4
	// One more extension at the end (RFC 7685): the lengths of the message and of its
	// extensions grow.
	const head = 4 + 2 + 32
	at := head + 1 + int(message[head])
	at += 2 + int(binary.BigEndian.Uint16(message[at:]))
	at += 1 + int(message[at])
	message = append(binary.BigEndian.AppendUint16(append(message, 0, 21), uint16(padding)), make([]byte, padding)...)
	grown := int(binary.BigEndian.Uint16(message[at:])) + 4 + padding
	binary.BigEndian.PutUint16(message[at:], uint16(grown))
	length := len(message) - 4
	message[1], message[2], message[3] = byte(length>>16), byte(length>>8), byte(length)
	return message
}

func record(b []byte) string {
	return string(append(binary.BigEndian.AppendUint16([]byte{22, 3, 1}, uint16(len(b))), b...))
}

func helloFor(name string) string { return record(helloMessage(name, 0)) }

// trickle is a connection whose first bytes go out one by one.
type trickle struct {
	*net.TCPConn
	some int
}

func (s *trickle) Write(b []byte) (int, error) {
	for i := range b {
		if s.some == 0 {
			n, err := s.TCPConn.Write(b[i:])
			return i + n, err
		}
		s.some--
		if _, err := s.TCPConn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// slow sends a hello in segments of one byte.
func (w *world) slow(name string) string {
	c := w.dial(caller4, 443)
	return speakTLS(&trickle{c, 400}, name)
}

func (w *world) large(name string, size int) string {
	return answered(w, record(helloMessage(name, size)))
}

// records sends a hello in two records of TLS.
func (w *world) records(name string) string {
	m := helloMessage(name, 0)
	return answered(w, record(m[:40]), record(m[40:]))
}

// h2c makes a request in HTTP/2 without TLS, of which the caller knows that it is taken.
func (w *world) h2c(host string) string {
	tr := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return w.try(caller4, 80) },
		Protocols:   new(http.Protocols),
	}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+host+"/", http.NoBody)
	if err != nil {
		return err.Error()
	}
	answer, err := tr.RoundTrip(r)
	if err != nil {
		return "closed"
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return "half an answer"
	}
	return strings.ReplaceAll(string(b), caller4, "the caller's address")
}

// websocketTo changes protocols. The guest says in the new one what it hears.
func (w *world) websocketTo(from, host string) net.Conn {
	c := w.dial(from, 80)
	_, _ = io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: "+host+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil) // the guest says nothing by itself
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		w.t.Errorf("no WebSocket: %v %v", answer, err)
	}
	if err == nil {
		_ = answer.Body.Close() // there is none
	}
	return c
}

// websocket says something in a WebSocket.
func (w *world) websocket(host string) string {
	c := w.websocketTo(caller4, host)
	var heard []string
	for _, word := range []string{"ping", "pong"} {
		_, _ = io.WriteString(c, word)
		b := make([]byte, len(word))
		if _, err := io.ReadFull(c, b); err != nil {
			return err.Error()
		}
		heard = append(heard, string(b))
	}
	return strings.Join(heard, " ")
}
