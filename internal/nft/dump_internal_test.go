//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/nstest"
)

// crowd is a set that counts packets by where they go, and somebody who sends
// one packet to each of ever more addresses.
type crowd struct {
	t    *testing.T
	host *nstest.NS
	d    *dumper
	// sent is to how many, and counted to which of them: the kernel may find no
	// room at once.
	sent    atomic.Uint32
	counted [crowdSize]atomic.Bool
}

const (
	crowdSize  = 40_000
	crowdFirst = 127<<24 + 1 // 127.0.0.1
)

const crowdTable = `table inet crowd {
	set met { type ipv4_addr; size 65535; flags dynamic; counter; }
	chain output {
		type filter hook output priority 0; policy accept;
		ip daddr 127.0.0.0/8 meta l4proto udp update @met { ip daddr counter } drop
	}
}
`

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	c := &crowd{t: t, host: nstest.New(t)}
	var err error
	if c.d, err = newDumper(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.d.close)
	return c
}

// gather has packets go to all addresses, while look is called again and again.
func (c *crowd) gather(look func()) {
	c.t.Helper()
	c.host.ExecInput("add table inet crowd\ndelete table inet crowd\n"+crowdTable+small(inet, "crowd", "met", "127.0.0.0"), "nft", "-f", "-")
	c.sent.Store(0)
	done := c.host.Start(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			c.t.Error(err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		for i := range uint32(crowdSize) {
			// What was counted is dropped, which the sender is told of.
			err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: crowdAddress(i)})
			c.counted[i].Store(errors.Is(err, unix.EPERM))
			c.sent.Store(i + 1)
		}
	})
	for {
		select {
		case <-done:
			look()
			return
		default:
			look()
		}
	}
}

func crowdAddress(i uint32) [4]byte {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], crowdFirst+i)
	return a
}

// missing is how many of the first n that were counted are not among elements.
func (c *crowd) missing(found []counter, n uint32) (lost int) {
	var packets [crowdSize]uint64
	for _, e := range found {
		packets[binary.BigEndian.Uint32(e.key[:])-crowdFirst] = e.packets
	}
	for i := range n {
		if c.counted[i].Load() && packets[i] != 1 {
			lost++
		}
	}
	return lost
}

// TestDumpWhileSetGrows reads a set while packets add to it, so that the kernel
// moves it to larger tables: nothing is ever missing. What the kernel itself
// tells is torn at times, and whenever it is an element comes twice.
func TestDumpWhileSetGrows(t *testing.T) {
	t.Parallel()
	const patience = time.Minute
	c := newCrowd(t)
	torn, dumps := 0, 0
	for deadline := time.Now().Add(patience); torn == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("none of %d dumps was torn", dumps)
		}
		c.gather(func() {
			sent := c.sent.Load()
			found, err := c.d.counters(inet, "crowd", "met")
			if err != nil {
				t.Fatal(err)
			}
			if lost := c.missing(found, sent); lost > 0 {
				t.Errorf("of %d elements %d are missing", sent, lost)
			}
			sent = c.sent.Load()
			var raw []counter
			met := map[counterKey]bool{}
			if _, err := c.d.elements(inet, "crowd", "met", func(element []byte) {
				e := counterOf(element)
				raw, met[e.key] = append(raw, e), true
			}); err != nil {
				t.Fatal(err)
			}
			dumps++
			if lost := c.missing(raw, sent); lost > 0 {
				torn++
				if len(met) == len(raw) {
					t.Errorf("%d elements were missing of %d, and none came twice", lost, sent)
				}
			}
		})
	}
	t.Logf("of %d dumps %d were torn", dumps, torn)
}

// TestMerge: what is there twice has counted twice.
func TestMerge(t *testing.T) {
	t.Parallel()
	a, b := counterKey{1}, counterKey{2}
	d := &dumper{found: []counter{{a, amount{1, 10}}, {b, amount{2, 20}}, {a, amount{3, 30}}}}
	d.merge()
	if want := []counter{{a, amount{4, 40}}, {b, amount{2, 20}}}; !slices.Equal(d.found, want) {
		t.Errorf("got %v, want %v", d.found, want)
	}
}
