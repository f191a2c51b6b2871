package quic

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"sublet/internal/edge/hello"
	"sublet/internal/hang"
)

// The keys of RFC 9001, A.1, and RFC 9369, A.1.
func TestKeys(t *testing.T) {
	t.Parallel()
	dcid, _ := hex.DecodeString("8394c8f03e515708")
	for _, c := range []struct {
		version     uint32
		label       string
		key, iv, hp string
	}{
		{Version1, "client in", "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"},
		{Version1, "server in", "cf3a5331653c364c88f0f379b6067e37", "0ac1493ca1905853b0bba03e", "c206b8d9b9f0f37644430b490eeaa314"},
		{Version2, "client in", "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"},
		{Version2, "server in", "82db637861d55e1d011f19ea71d5d2a7", "dd13c276499c0249d3310652", "edf6d05c83121201b436e16877593c3a"},
	} {
		k, err := initialKeys(c.version, dcid, c.label)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k.iv[:]); got != c.iv {
			t.Errorf("%x %s: iv %s", c.version, c.label, got)
		}
		want := keysOf(t, c.key, c.iv, c.hp)
		frames := []byte("some frames that are long enough")
		head := []byte{0xc1, 1, 2, 3, 4, 0, 0}
		if a, b := k.seal(bytes.Clone(head), 0, frames), want.seal(bytes.Clone(head), 0, frames); !bytes.Equal(a, b) {
			t.Errorf("%x %s: other keys", c.version, c.label)
		}
	}
}

// keysOf are keys as the RFCs print them.
func keysOf(t *testing.T, key, iv, hp string) *keys {
	t.Helper()
	var b [3][]byte
	for i, s := range []string{key, iv, hp} {
		b[i], _ = hex.DecodeString(s)
	}
	packet, err := aes.NewCipher(b[0])
	if err != nil {
		t.Fatal(err)
	}
	k := &keys{iv: [nonceSize]byte(b[1])}
	if k.packet, err = cipher.NewGCM(packet); err != nil {
		t.Fatal(err)
	}
	if k.header, err = aes.NewCipher(b[2]); err != nil {
		t.Fatal(err)
	}
	return k
}

// client is a client's side of a connection, for packets that are made by hand.
type client struct {
	version    uint32
	dcid, scid []byte
}

func newClient(version uint32) client {
	return client{version: version, dcid: []byte("a client's guess"), scid: []byte("me")}
}

// initial is an Initial packet.
func (c client) initial(tb testing.TB, number uint16, frames []byte) []byte {
	tb.Helper()
	k, err := clientKeys(c.version, c.dcid)
	if err != nil {
		tb.Fatal(err)
	}
	first := byte(0xc1)
	if c.version == Version2 {
		first = 0xd1
	}
	frames = append(frames, make([]byte, max(0, 4-len(frames)))...)
	head := binary.BigEndian.AppendUint32([]byte{first}, c.version)
	head = append(append(head, byte(len(c.dcid))), c.dcid...)
	head = append(append(head, byte(len(c.scid))), c.scid...)
	head = append(head, 0)
	head = binary.BigEndian.AppendUint16(head, 0x4000|uint16(2+len(frames)+tagSize))
	head = binary.BigEndian.AppendUint16(head, number)
	return k.seal(head, number, frames)
}

// early is a packet of early data, for those who cannot read it.
func (c client) early() []byte {
	first := byte(0xd1)
	if c.version == Version2 {
		first = 0xe1
	}
	b := binary.BigEndian.AppendUint32([]byte{first}, c.version)
	b = append(append(b, byte(len(c.dcid))), c.dcid...)
	b = append(append(b, byte(len(c.scid))), c.scid...)
	return append(append(b, 40), make([]byte, 40)...)
}

// datagram is an Initial packet with padding, as large as a client's has to be.
func (c client) datagram(tb testing.TB, number uint16, frames []byte) []byte {
	tb.Helper()
	empty := len(c.initial(tb, number, make([]byte, 4))) - 4
	return c.initial(tb, number, append(frames, make([]byte, max(0, MinDatagram-empty-len(frames)))...))
}

func crypto(offset int, data []byte) []byte {
	b := []byte{frameCrypto}
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(offset))
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(data)))
	return append(b, data...)
}

// message is a ClientHello for a name, of about n bytes.
func message(tb testing.TB, name string, n int) []byte {
	tb.Helper()
	v16 := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	ext := v16(v16(append([]byte{0}, v16([]byte(name))...)))
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	all := append([]byte{0, 0}, ext...)
	all = append(append(all, 0, 21), v16(make([]byte, max(0, n-len(body)-len(all)-10)))...)
	body = append(body, v16(all)...)
	b := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	if h, err := hello.ParseMessage(b); err != nil || h.ServerName != name {
		tb.Fatalf("%+v, %v", h, err)
	}
	return b
}

// wants adds datagrams: only the last one makes the hello whole.
func wants(t *testing.T, name string, datagrams ...[]byte) {
	t.Helper()
	var r Reader
	for i, d := range datagrams {
		before := bytes.Clone(d)
		h, err := r.Add(d)
		if !bytes.Equal(before, d) {
			t.Fatal("the datagram was changed")
		}
		if i < len(datagrams)-1 {
			if !errors.Is(err, hello.ErrMore) && !errors.Is(err, ErrIgnored) {
				t.Fatalf("datagram %d: %+v, %v", i, h, err)
			}
			continue
		}
		if err != nil || h.ServerName != name {
			t.Fatalf("it is read as %+v, %v", h, err)
		}
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	for _, version := range []uint32{Version1, Version2} {
		c := newClient(version)
		m := message(t, "example.org", 1800)
		one, two := crypto(0, m[:1000]), crypto(1000, m[1000:])
		other := c
		other.dcid = []byte("another guess")

		wants(t, "example.org", c.datagram(t, 0, crypto(0, message(t, "example.org", 300))))
		wants(t, "example.org", c.datagram(t, 0, one), c.datagram(t, 1, two))
		wants(t, "example.org", c.datagram(t, 1, two), c.datagram(t, 0, one))
		wants(t, "example.org", c.datagram(t, 1, two), c.datagram(t, 1, two), c.datagram(t, 7, two), c.datagram(t, 0, one))
		// Overlaps that agree, and what was lost comes again in another cut.
		wants(t, "example.org", c.datagram(t, 0, crypto(0, m[:700])), c.datagram(t, 1, crypto(500, m[500:1500])), c.datagram(t, 3, crypto(1400, m[1400:])))
		// Several packets in a datagram, of which one is of another kind.
		early := c.early()
		wants(t, "example.org", slices.Concat(c.initial(t, 0, one), early, c.initial(t, 1, two), make([]byte, 50)))
		// PING, padding and acknowledgements between.
		wants(t, "example.org", c.datagram(t, 0, slices.Concat(
			[]byte{framePing, 0, 0, frameACK, 0x40, 9, 5, 1, 2, 3, 4, framePing}, crypto(0, m[:300]),
			[]byte{frameACKECN, 1, 1, 0, 0, 7, 8, 9}, crypto(300, m[300:1000]))), c.datagram(t, 1, two))
		// What does not belong to it changes nothing.
		forged := c.datagram(t, 9, crypto(0, message(t, "evil.example", 300)))
		forged[len(forged)-1] ^= 1
		wants(t, "example.org", c.datagram(t, 0, one), forged, other.datagram(t, 1, two), []byte("garbage"), nil, c.datagram(t, 1, two))
		// Packets with frames that may not be there are as good as lost.
		wants(t, "example.org", c.datagram(t, 0, one), c.datagram(t, 1, append([]byte{0x08, 0}, two...)),
			c.datagram(t, 2, []byte{frameCrypto, 0x40}), c.datagram(t, 2, []byte{frameACK, 1, 1, 0x80, 0, 0xff, 0xff}), c.datagram(t, 1, two))

		// As long as may be, byte by byte in disorder.
		long := message(t, "example.org", hello.MaxSize)
		order := rand.New(rand.NewPCG(1, 2)).Perm(len(long))
		var all [][]byte
		for i := 0; i < len(order); i += 100 {
			var frames []byte
			for _, at := range order[i:min(i+100, len(order))] {
				frames = append(frames, crypto(at, long[at:at+1])...)
			}
			all = append(all, c.datagram(t, uint16(i), frames))
		}
		wants(t, "example.org", all...)
	}
}

func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	c := newClient(Version1)
	m := message(t, "example.org", 300)
	contrary := bytes.Clone(m)
	contrary[50] ^= 1
	short := c
	short.dcid = []byte("seven b")
	for name, x := range map[string]struct {
		datagrams [][]byte
		reason    hello.Reason
		err       error
	}{
		"two contents":     {[][]byte{c.datagram(t, 0, crypto(0, m[:200])), c.datagram(t, 1, crypto(0, contrary))}, hello.ReasonMalformed, nil},
		"no ClientHello":   {[][]byte{c.datagram(t, 0, crypto(0, []byte{2, 0, 0, 9}))}, hello.ReasonMessage, nil},
		"too large":        {[][]byte{c.datagram(t, 0, crypto(0, []byte{1, 0, 0x40, 1}))}, hello.ReasonTooLarge, nil},
		"malformed":        {[][]byte{c.datagram(t, 0, crypto(0, []byte{1, 0, 0, 2, 3, 3}))}, hello.ReasonMalformed, nil},
		"closed":           {[][]byte{c.datagram(t, 0, crypto(0, m[:9])), c.datagram(t, 1, []byte{frameClose, 0, 0, 0})}, "", ErrGone},
		"far off":          {[][]byte{c.datagram(t, 0, crypto(1<<29, m))}, "", hello.ErrMore},
		"a short ID":       {[][]byte{short.datagram(t, 0, crypto(0, m))}, "", ErrIgnored},
		"a short header":   {[][]byte{append([]byte{0x40}, make([]byte, 1300)...)}, "", ErrIgnored},
		"another version":  {[][]byte{client{0xff00001d, c.dcid, c.scid}.datagram(t, 0, crypto(0, m))}, "", ErrIgnored},
		"a packet cut off": {[][]byte{c.datagram(t, 0, crypto(0, m))[:1000]}, "", ErrIgnored},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var (
				r   Reader
				err error
			)
			for _, d := range x.datagrams {
				_, err = r.Add(d)
			}
			var refusal *hello.RefusalError
			if errors.As(err, &refusal) != (x.err == nil) || refusal != nil && (refusal.Reason != x.reason || err.Error() == "") || x.err != nil && !errors.Is(err, x.err) {
				t.Errorf("%v", err)
			}
		})
	}
}

// sent is what quic-go sends before it has an answer, at least as much as makes a
// hello.
func sent(tb testing.TB, version quicgo.Version, config *tls.Config) [][]byte {
	tb.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	go func() {
		_, _ = quicgo.DialAddr(ctx, socket.LocalAddr().String(), config, &quicgo.Config{Versions: []quicgo.Version{version}})
	}()
	_ = socket.SetReadDeadline(time.Now().Add(hang.After))
	var (
		r   Reader
		all [][]byte
	)
	for {
		b := make([]byte, maxDatagram)
		n, err := socket.Read(b)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, b[:n])
		if _, err := r.Add(b[:n]); err == nil {
			return all
		} else if !errors.Is(err, hello.ErrMore) {
			tb.Fatal(err)
		}
	}
}

func TestReaderReadsQuicGo(t *testing.T) {
	t.Parallel()
	for _, version := range []quicgo.Version{quicgo.Version1, quicgo.Version2} {
		all := sent(t, version, &tls.Config{ServerName: "example.org", NextProtos: []string{"h3"}, CurvePreferences: []tls.CurveID{tls.X25519}})
		wants(t, "example.org", all...)
		all = sent(t, version, &tls.Config{ServerName: "example.org", NextProtos: []string{"h3"}})
		if len(all) < 2 {
			t.Error("a post-quantum hello came in one datagram")
		}
		wants(t, "example.org", all...)
		slices.Reverse(all)
		wants(t, "example.org", all...)
	}
}

// FuzzReader: whatever comes is read without harm, also inside of packets.
func FuzzReader(f *testing.F) {
	m := message(f, "example.org", 300)
	c := newClient(Version1)
	f.Add([]byte(nil), c.datagram(f, 0, crypto(0, m)))
	f.Add(crypto(0, m), newClient(Version2).datagram(f, 0, crypto(0, m)))
	f.Add(slices.Concat(crypto(100, m[100:]), []byte{framePing, frameACK, 1, 1, 1, 1, 1, 1}, crypto(0, m[:100])), []byte{0xc0, 0, 0, 0, 1, 0, 0})
	f.Add([]byte{frameClose, 0, 0, 0}, versionNegotiation(header{dcid: c.dcid, scid: c.scid}))
	f.Fuzz(func(t *testing.T, frames, raw []byte) {
		var plain, sealed Reader
		_, _ = plain.Add(raw)
		parseHeader(raw)
		if len(frames) > 10000 {
			return
		}
		// A message in the frames is read as it is without QUIC.
		h, err := sealed.Add(c.datagram(t, 1, slices.Clone(frames)))
		if err == nil {
			want, wantErr := hello.ParseMessage(sealed.data[:sealed.whole])
			if wantErr != nil || want.ServerName != h.ServerName {
				t.Fatalf("%+v, %v; without QUIC %+v, %v", h, err, want, wantErr)
			}
		}
		if len(sealed.data) > maxCrypto || len(sealed.have) != len(sealed.data) {
			t.Fatalf("%d bytes are kept", len(sealed.data))
		}
		_, _ = sealed.Add(raw)
	})
}
