//go:build linux

package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"testing"

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
// moves it to larger tables: nothing is ever missing, or it is said that it could
// not be read. Whenever what the kernel itself tells is torn, which is a matter of
// luck, an element comes twice.
func TestDumpWhileSetGrows(t *testing.T) {
	t.Parallel()
	const rounds = 5
	c := newCrowd(t)
	dumps, torn := 0, 0
	for range rounds {
		c.gather(func() {
			sent := c.sent.Load()
			found, err := c.d.counters(inet, "crowd", "met")
			if errors.Is(err, errInterrupted) && sent < crowdSize {
				return // It grew faster than it can be read.
			}
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

// answering returns a dumper whose kernel gives the answers to its questions in
// turn, each the keys of the elements of one dump in the order in which they come.
func answering(t *testing.T, answers ...string) *dumper {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &dumper{socket: os.NewFile(uintptr(fds[0]), "dumper"), buffer: make([]byte, 1<<16), met: map[counterKey]struct{}{}}
	kernel := os.NewFile(uintptr(fds[1]), "kernel")
	done := make(chan struct{})
	go func() {
		defer close(done)
		question := make([]byte, 1<<12)
		for _, keys := range answers {
			if _, err := kernel.Read(question); err != nil {
				return
			}
			for i := range keys {
				_, _ = kernel.Write(netlinkMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM, elementOf(keys[i], uint64(i)+1)))
			}
			_, _ = kernel.Write(netlinkMessage(unix.NLMSG_DONE, nil))
		}
	}()
	t.Cleanup(func() {
		d.close()
		_ = kernel.Close()
		<-done
	})
	return d
}

// elementOf is a set's element of which so many packets were counted.
func elementOf(key byte, packets uint64) []byte {
	counted := netlinkAttribute(unix.NFTA_COUNTER_PACKETS, binary.BigEndian.AppendUint64(nil, packets))
	element := append(
		netlinkAttribute(unix.NFTA_SET_ELEM_KEY, netlinkAttribute(unix.NFTA_DATA_VALUE, []byte{key})),
		netlinkAttribute(unix.NFTA_SET_ELEM_EXPR, netlinkAttribute(unix.NFTA_EXPR_DATA, counted))...)
	return netlinkAttribute(unix.NFTA_SET_ELEM_LIST_ELEMENTS, netlinkAttribute(unix.NFTA_LIST_ELEM, element))
}

func netlinkMessage(kind uint16, attributes []byte) []byte {
	const head = unix.SizeofNlMsghdr
	m := make([]byte, head+nfgenLen, head+nfgenLen+len(attributes))
	binary.NativeEndian.PutUint32(m, uint32(cap(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	return append(m, attributes...)
}

// TestTornDump gives answers of the kernel of which one is not like the next: what
// was torn is read again, and what is twice there indeed has counted twice.
func TestTornDump(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers []string
		want    string
		packets []uint64
		err     error
	}{
		"whole":           {answers: []string{"abc"}, want: "abc", packets: []uint64{1, 2, 3}},
		"nothing":         {answers: []string{""}},
		"torn":            {answers: []string{"aba", "bca"}, want: "bca", packets: []uint64{1, 2, 3}},
		"torn twice":      {answers: []string{"aba", "bcb", "abc"}, want: "abc", packets: []uint64{1, 2, 3}},
		"twice there":     {answers: []string{"abca", "abca"}, want: "abc", packets: []uint64{5, 2, 3}},
		"torn, and twice": {answers: []string{"abab", "abca", "abca"}, want: "abc", packets: []uint64{5, 2, 3}},
		"never whole":     {answers: slices.Repeat([]string{"aba", "bab"}, 10), err: errInterrupted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := answering(t, c.answers...).counters(inet, "crowd", "met")
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			var keys []byte
			var packets []uint64
			for _, e := range found {
				keys, packets = append(keys, e.key[0]), append(packets, e.packets)
			}
			if string(keys) != c.want || !slices.Equal(packets, c.packets) {
				t.Errorf("got %q with %d packets, want %q with %d", keys, packets, c.want, c.packets)
			}
		})
	}
}

// TestReadPassedAgain reads a set again and again whose elements stay, come, go, and
// are told of in another order.
func TestReadPassedAgain(t *testing.T) {
	t.Parallel()
	rounds := []struct {
		elements string
		again    bool   // one answer is enough
		torn     string // the first answer, when it is not the second
	}{
		{elements: "abc"},
		{elements: "abc", again: true},
		{elements: "abc", torn: "aba"},
		{elements: "abc", torn: "abcb"},
		{elements: "abcd"},
		{elements: "dabc"},
		{elements: "dabc", again: true},
		{elements: "dab"},
		{elements: "dac"},
		{elements: ""},
		{elements: "b"},
		{elements: "b", again: true},
	}
	var answers []string
	for i, r := range rounds {
		if !r.again && i > 0 && rounds[i-1].elements != "" {
			answers = append(answers, cmp.Or(r.torn, r.elements))
		}
		answers = append(answers, r.elements)
		answers = append(answers, slices.Repeat([]string{""}, passedLen-1)...)
	}
	d, sums := answering(t, answers...), &trafficSums{}
	for i, r := range rounds {
		if err := sums.readPassed(d); err != nil {
			t.Fatal(err)
		}
		got, want := map[string]uint64{}, map[string]uint64{}
		for name, l := range sums.links {
			if a := l.passed[0][0]; a.packets > 0 {
				got[name.String()] = a.packets
			}
		}
		for at := range r.elements {
			want[r.elements[at:at+1]] = uint64(at) + 1
		}
		if !maps.Equal(got, want) {
			t.Errorf("round %d: got %v, want %v", i, got, want)
		}
	}
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
