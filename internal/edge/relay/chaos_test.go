//go:build linux

package relay_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"sublet/internal/edge/relay"
	"sublet/internal/hang"
)

// chaos ends relays that it knows of at any time, from another goroutine.
type chaos struct {
	front
	answer relay.Answer
}

func (c *chaos) Call(_ netip.AddrPort, r *relay.Relay) relay.Session {
	return &chaosSession{chaos: c, relay: r}
}

type chaosSession struct {
	*chaos
	relay *relay.Relay
}

func (s *chaosSession) Heard(said []byte) relay.Answer {
	if len(said) < idSize {
		return relay.Answer{}
	}
	switch said[idSize-1] % 8 {
	case 0:
		return relay.Answer{Say: bytes.Clone(said[:idSize])}
	case 1:
		return relay.Answer{Take: func(conn *net.TCPConn, said []byte) {
			defer func() { s.Ended(relay.Done) }()
			defer func() { _ = conn.Close() }()
			if _, err := conn.Write(said); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		}}
	case 2:
		go s.relay.Close()
	}
	return s.answer
}

func (s *chaosSession) Unreached(error) relay.Answer { return relay.Answer{Say: []byte{}} }

const idSize = 16

// id is what all that a caller says is made of.
func id(n int) []byte {
	b := make([]byte, idSize)
	binary.BigEndian.PutUint64(b, uint64(n)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(b[8:], uint64(n))
	return b
}

// own checks that a connection gives nothing but copies of one ID, until it ends. A
// first one tells which.
func own(conn net.Conn, id []byte, each func([]byte) error) error {
	b := make([]byte, 64<<10)
	at := 0
	for {
		n, err := conn.Read(b)
		for i, c := range b[:n] {
			if len(id) < idSize {
				id = append(id, c)
			}
			if id[(at+i)%idSize] != c {
				return fmt.Errorf("byte %d is %x and not %x: somebody else's", at+i, c, id[(at+i)%idSize])
			}
		}
		at += n
		if n > 0 && each(b[:n]) != nil || err != nil {
			return nil //nolint:nilerr // how a connection ends is not what this is about
		}
	}
}

// TestNobodyHearsOthers: while connections are reset, closed and given away all at
// once, so that their descriptors are others' a moment later, nobody gets a byte of
// another one.
func TestNobodyHearsOthers(t *testing.T) {
	const workers, each = 24, 60
	guests, to := listen(t)
	failed := make(chan error, 2*workers*each)
	go func() {
		for n := 0; ; n++ {
			guest, err := guests.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				left := -1
				if n%3 == 0 {
					left = rand.IntN(300 << 10) // then it resets
				}
				failed <- own(guest, nil, func(b []byte) error {
					if left -= len(b); left < 0 && n%3 == 0 {
						_ = guest.SetLinger(0)
						return io.ErrClosedPipe
					}
					_, err := guest.Write(b)
					return err
				})
				_ = guest.Close()
			}()
		}
	}()
	c := &chaos{answer: relay.Answer{To: to, Options: relay.Options{Idle: time.Hour}}}
	address, stop := doorOf(t, &c.front, c, time.Hour)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				n := w*each + i
				conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(address))
				if err != nil {
					failed <- err
					return
				}
				_ = conn.SetDeadline(time.Now().Add(hang.After))
				go func() {
					_, _ = conn.Write(bytes.Repeat(id(n), 1+rand.IntN(20<<10)))
					switch rand.IntN(3) {
					case 0:
						_ = conn.SetLinger(0)
						_ = conn.Close()
					default:
						_ = conn.CloseWrite()
					}
				}()
				failed <- own(conn, id(n), func([]byte) error { return nil })
				_ = conn.Close()
			}
		})
	}
	all.Wait()
	for range workers * each {
		<-c.ended
	}
	stop()
	for {
		select {
		case err := <-failed:
			if err != nil {
				t.Fatal(err)
			}
		default:
			return
		}
	}
}
