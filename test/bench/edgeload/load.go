//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	workers    = 64              // callers at a time, each of which connects again and again
	concurrent = 1000            // open connections of those that measure latency
	idle       = 10_000          // open connections that do nothing
	pace       = time.Second / 4 // from one ping of a connection to the next
	warmUp     = 300 * time.Millisecond
)

// seen is what callers have seen.
type seen struct {
	// Rate is per second: bits, connections, pings.
	Rate float64
	// P50 and P99 of the time from a ping to its answer, in microseconds.
	P50, P99 float64
	Failures int64
}

// call takes a number of seconds, or of connections that do nothing.
func call(what, address string, number float64) error {
	record, err := helloFor("example.org")
	if err != nil {
		return err
	}
	l := &load{address: address, hello: record, during: time.Duration(number * float64(time.Second))}
	switch what {
	case "send":
		return l.send()
	case "receive":
		return l.receive()
	case "connect":
		return l.again(l.exchange)
	case "tls":
		return l.again(l.tls)
	case "pace":
		return l.pings(pace)
	case "full":
		return l.pings(0)
	case "idle":
		return l.idle(int(number))
	}
	return fmt.Errorf("nothing is called %q", what)
}

type load struct {
	address string
	hello   []byte
	during  time.Duration
}

// helloFor is the ClientHello that Go's TLS writes to this server.
func helloFor(name string) ([]byte, error) {
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}}).Handshake()
	}()
	defer client.Close() //nolint:errcheck // in memory
	header := make([]byte, 5)
	if _, err := io.ReadFull(server, header); err != nil {
		return nil, err
	}
	record := append(header, make([]byte, binary.BigEndian.Uint16(header[3:]))...)
	_, err := io.ReadFull(server, record[5:])
	return record, err
}

func (l *load) dial() (*net.TCPConn, error) {
	dialer := net.Dialer{KeepAlive: -1}
	conn, err := dialer.DialContext(context.Background(), "tcp4", l.address)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.New("not TCP")
	}
	return tcp, nil
}

// open connects and gives the server an order.
func (l *load) open(order byte) (*net.TCPConn, error) {
	conn, err := l.dial()
	if err == nil {
		_, err = conn.Write(append(slices.Clip(l.hello), order))
	}
	return conn, err
}

// receive counts what arrives.
func (l *load) receive() error {
	conn, err := l.open(orderSend)
	if err != nil {
		return err
	}
	buffer := make([]byte, 256<<10)
	read := func(until time.Duration) (rate float64, err error) {
		total, start := 0, time.Now()
		for time.Since(start) < until {
			n, err := conn.Read(buffer)
			if total += n; err != nil {
				return 0, err
			}
		}
		return 8 * float64(total) / time.Since(start).Seconds(), nil
	}
	if _, err := read(warmUp); err != nil {
		return err
	}
	rate, err := read(l.during)
	return errors.Join(err, tell(seen{Rate: rate}))
}

// send lets the server count, from the first byte to the last.
func (l *load) send() error {
	conn, err := l.open(orderReceive)
	if err != nil {
		return err
	}
	buffer := make([]byte, 256<<10)
	start := time.Now()
	for time.Since(start) < l.during {
		if _, err := conn.Write(buffer); err != nil {
			return err
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		return err
	}
	return tell(seen{Rate: 8 * float64(binary.BigEndian.Uint64(count[:])) / time.Since(start).Seconds()})
}

// again lets workers do something again and again.
func (l *load) again(something func(room []byte) error) error {
	var did, failed atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for range workers {
		all.Go(func() {
			for room := make([]byte, 8192); time.Since(start) < l.during; {
				if err := something(room); err != nil {
					if failed.Add(1) == 1 {
						fmt.Fprintln(os.Stderr, err)
					}
					continue
				}
				did.Add(1)
			}
		})
	}
	all.Wait()
	return tell(seen{Rate: float64(did.Load()) / time.Since(start).Seconds(), Failures: failed.Load()})
}

// exchange moves the bytes of a TLS 1.3 handshake and a short exchange, without
// what cryptography costs the callers and the server.
func (l *load) exchange(room []byte) error {
	conn, err := l.open(orderShort)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // all was read
	if _, err := io.ReadFull(conn, room[:serverFlight]); err != nil {
		return err
	}
	if _, err := conn.Write(room[:clientFlight]); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, room[:answer])
	return err
}

var callerTLS = tls.Config{
	ServerName: "tls.example.org", MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
	CurvePreferences: []tls.CurveID{tls.X25519},
}

// tls makes a connection in earnest.
func (l *load) tls(room []byte) error {
	conn, err := l.dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // all was read
	c := tls.Client(conn, &callerTLS)
	if _, err := c.Write(room[:pingSize]); err != nil {
		return err
	}
	_, err = io.ReadFull(c, room[:pingSize])
	return err
}

// many opens n connections on which pings are answered.
func (l *load) many(n int) ([]*net.TCPConn, error) {
	conns := make([]*net.TCPConn, n)
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			room := make([]byte, pingSize)
			for i := w; i < n && errs[w] == nil; i += workers {
				var err error
				if conns[i], err = l.open(orderEcho); err == nil {
					err = ping(conns[i], room)
				}
				errs[w] = err
			}
		})
	}
	all.Wait()
	return conns, errors.Join(errs...)
}

func ping(conn *net.TCPConn, room []byte) error {
	if _, err := conn.Write(room[:pingSize]); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, room[:pingSize])
	return err
}

// pings lets many connections ping, each once in every, or as fast as it can.
func (l *load) pings(every time.Duration) error {
	conns, err := l.many(concurrent)
	if err != nil {
		return err
	}
	took := make([][]float64, len(conns))
	var failed atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for i, conn := range conns {
		all.Go(func() {
			room := make([]byte, pingSize)
			next := start.Add(rand.N(max(every, time.Millisecond)))
			for {
				if every > 0 {
					time.Sleep(time.Until(next))
					next = next.Add(every)
				}
				before := time.Now()
				if before.Sub(start) > l.during {
					return
				}
				if err := ping(conn, room); err != nil {
					failed.Add(1)
					return
				}
				took[i] = append(took[i], float64(time.Since(before))/float64(time.Microsecond))
			}
		})
	}
	all.Wait()
	times := slices.Concat(took...)
	if len(times) == 0 {
		return errors.New("no ping was answered")
	}
	slices.Sort(times)
	return tell(seen{
		Rate: float64(len(times)) / time.Since(start).Seconds(), Failures: failed.Load(),
		P50: times[len(times)/2], P99: times[len(times)*99/100],
	})
}

// idle opens connections, says so, and holds them until its input ends.
func (l *load) idle(n int) error {
	conns, err := l.many(n)
	if err != nil {
		return err
	}
	if err := tell(seen{Rate: float64(len(conns))}); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	room := make([]byte, pingSize)
	for _, conn := range conns {
		if err := ping(conn, room); err != nil {
			return fmt.Errorf("a connection did not live: %w", err)
		}
	}
	return tell(seen{Rate: float64(len(conns))})
}
