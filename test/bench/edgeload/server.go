//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"sync"
	"time"
)

// Sizes of a TLS 1.3 handshake with an ECDSA certificate and of a short
// exchange after it, in bytes.
const (
	serverFlight = 1200
	clientFlight = 180
	answer       = 400
	pingSize     = 100
)

// Orders are the byte that follows the caller's ClientHello.
const (
	orderSend    = 's' // sends without end
	orderReceive = 'r' // receives to the end, tells how much it was
	orderShort   = 'c' // the bytes of a handshake and a short exchange
	orderEcho    = 'e' // answers each ping
)

// serve answers callers until it fails. Those of plain begin with a ClientHello
// and an order, and those of real speak TLS in earnest.
func serve(plain, real string) error {
	failed := make(chan error)
	listen := func(address string, attend func(net.Conn)) {
		listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", address)
		for err == nil {
			var conn net.Conn
			if conn, err = listener.Accept(); err == nil {
				go func() {
					defer conn.Close() //nolint:errcheck // the other side judges
					attend(conn)
				}()
			}
		}
		failed <- err
	}
	go listen(plain, attend)
	go listen(real, speak)
	return <-failed
}

var small = sync.Pool{New: func() any { return new([8192]byte) }}

// hello reads a whole record and the order after it.
func hello(conn net.Conn, room []byte) (order byte, err error) {
	n, want := 0, 6
	for n < want {
		got, err := conn.Read(room[n:want])
		if n += got; err != nil {
			return 0, err
		}
		if n >= 5 {
			want = 5 + int(binary.BigEndian.Uint16(room[3:])) + 1
		}
	}
	return room[n-1], nil
}

func attend(conn net.Conn) {
	room, ok := small.Get().(*[8192]byte)
	if !ok {
		return
	}
	defer small.Put(room)
	order, err := hello(conn, room[:])
	if err != nil {
		return
	}
	switch order {
	case orderSend:
		for buffer := make([]byte, 256<<10); err == nil; {
			_, err = conn.Write(buffer)
		}
	case orderReceive:
		n, _ := io.CopyBuffer(onlyWriter{}, onlyReader{conn}, make([]byte, 256<<10))
		_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	case orderShort:
		if _, err = conn.Write(room[:serverFlight]); err != nil {
			return
		}
		if _, err = io.ReadFull(conn, room[:clientFlight]); err != nil {
			return
		}
		if _, err = conn.Write(room[:answer]); err != nil {
			return
		}
		_, _ = conn.Read(room[:]) // the caller ends
	case orderEcho:
		for err == nil {
			if _, err = io.ReadFull(conn, room[:pingSize]); err == nil {
				_, err = conn.Write(room[:pingSize])
			}
		}
	}
}

// Without the methods that would let the kernel move the bytes.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{}
)

func (onlyWriter) Write(p []byte) (int, error) { return len(p), nil }

// speak answers one ping over TLS.
func speak(conn net.Conn) {
	c := tls.Server(conn, serverTLS())
	if _, err := io.CopyN(c, c, pingSize); err == nil {
		_, _ = c.Read(make([]byte, 1)) // the caller ends
	}
}

var serverTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"example.org"}, NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true,
	}
})
