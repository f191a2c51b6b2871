package proof

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"sublet/internal/hang"
	"sublet/internal/proof/prooftest"
	"sublet/internal/vps"
)

// freePort returns a port of 127.0.0.1 that is free for UDP and TCP.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		_ = l.Close()
		if err == nil {
			_ = p.Close()
			return netip.MustParseAddrPort(l.Addr().String()).Port()
		}
	}
	t.Fatal("no port is free")
	return 0
}

// TestResolver asks a real server.
func TestResolver(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	var big []string
	for i := range 40 {
		big = append(big, fmt.Sprintf("--txt-record=big.example.org,%02d%s", i, strings.Repeat("x", 200)))
	}
	prooftest.Start(t, nil, "127.0.0.1", port, append(big,
		"--txt-record=one.example.org,sublet=abc",
		"--txt-record=two.example.org,first", "--txt-record=two.example.org,second",
		"--txt-record=long.example.org,sublet=,ab,c",
		"--host-record=www.example.org,192.0.2.1,2001:db8::1",
		"--host-record=four.example.org,192.0.2.4",
		"--host-record=six.example.org,2001:db8::6",
		"--cname=alias.example.org,www.example.org",
		"--cname=other.example.org,alias.example.org",
	)...)
	r := &Resolver{Servers: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}, Patience: hang.After}
	texts := func(name string) ([]string, error) {
		a, err := r.Texts(t.Context(), name)
		slices.Sort(a.Texts)
		return a.Texts, err
	}
	for name, want := range map[string][]string{
		"one.example.org": {"sublet=abc"}, "ONE.example.org": {"sublet=abc"}, "one.example.org.": {"sublet=abc"},
		"two.example.org": {"first", "second"}, "long.example.org": {"sublet=abc"},
	} {
		if got, err := texts(name); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// Which does not fit into a datagram.
	if got, err := texts("big.example.org"); err != nil || len(got) != 40 || got[39] != "39"+strings.Repeat("x", 200) {
		t.Errorf("%d texts, %v", len(got), err)
	}
	for name, want := range map[string]Answer{
		"www.example.org":   {nil, addresses("192.0.2.1", "2001:db8::1"), nil},
		"four.example.org":  {nil, addresses("192.0.2.4"), nil},
		"six.example.org":   {nil, addresses("2001:db8::6"), nil},
		"alias.example.org": {[]string{"www.example.org"}, addresses("192.0.2.1", "2001:db8::1"), nil},
		"other.example.org": {[]string{"alias.example.org", "www.example.org"}, addresses("192.0.2.1", "2001:db8::1"), nil},
	} {
		got, err := r.Addresses(t.Context(), name)
		if err != nil || !slices.Equal(got.Addresses, want.Addresses) || !slices.Equal(got.Names, want.Names) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	// What is not there is told from what nobody knows about.
	for name, exists := range map[string]bool{"none.example.org": false, "www.example.org": true, "alias.example.org": true} {
		_, err := r.Texts(t.Context(), name)
		if none, ok := errors.AsType[*NotFoundError](err); !ok || none.Exists != exists {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Addresses(t.Context(), "one.example.org"); !isNotFound(err) {
		t.Errorf("a name without addresses: %v", err)
	}
	if _, err := r.Texts(t.Context(), "elsewhere.example.com"); !isSilent(err) || !strings.Contains(err.Error(), "REFUSED") {
		t.Errorf("a name that the server refuses: %v", err)
	}
	for _, name := range []string{"", "a..example.org", strings.Repeat("a", 64) + ".example.org", strings.Repeat("a.", 127) + "org"} {
		if _, err := r.Texts(t.Context(), name); vps.ErrorCode(err) != vps.CodeInvalid && !isNotFound(err) && !isSilent(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func addresses(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func isNotFound(err error) bool { _, ok := errors.AsType[*NotFoundError](err); return ok }
func isSilent(err error) bool   { _, ok := errors.AsType[*SilentError](err); return ok }

// fakeServer answers each query with what reply makes of it, packet by packet.
func fakeServer(t *testing.T, reply func(h dnsmessage.Header, q dnsmessage.Question) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-ended })
	go func() {
		defer close(ended)
		packet := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(packet)
			if err != nil {
				return
			}
			var p dnsmessage.Parser
			h, err := p.Start(packet[:n])
			if err != nil {
				continue
			}
			q, err := p.Question()
			if err != nil {
				continue
			}
			for _, out := range reply(h, q) {
				_, _ = c.WriteTo(out, from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// pack makes an answer with TXT records and CNAMEs, "NAME TEXT" and "NAME -> NAME".
func pack(tb testing.TB, h dnsmessage.Header, q dnsmessage.Question, records ...string) []byte {
	tb.Helper()
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{q}}
	m.Response = true
	for _, r := range records {
		name, rest, _ := strings.Cut(r, " ")
		head := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET}
		var body dnsmessage.ResourceBody = &dnsmessage.TXTResource{TXT: []string{rest}}
		if to, is := strings.CutPrefix(rest, "-> "); is {
			body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: body})
	}
	out, err := m.Pack()
	if err != nil {
		tb.Error(err)
	}
	return out
}

// timedOut is a connection on which nothing came in time.
type timedOut struct{ net.Conn }

func (timedOut) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestResolverOddServers has servers fail, lie and loop.
func TestResolverOddServers(t *testing.T) {
	t.Parallel()
	const name = "x.example.org"
	one := func(make func(h dnsmessage.Header, q dnsmessage.Question) []byte) netip.AddrPort {
		return fakeServer(t, func(h dnsmessage.Header, q dnsmessage.Question) [][]byte { return [][]byte{make(h, q)} })
	}
	coded := func(code dnsmessage.RCode) netip.AddrPort {
		return one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			h.RCode, h.RecursionAvailable = code, true
			return pack(t, h, q)
		})
	}
	good := one(func(h dnsmessage.Header, q dnsmessage.Question) []byte { return pack(t, h, q, q.Name.String()+" yes") })
	silent := fakeServer(t, func(dnsmessage.Header, dnsmessage.Question) [][]byte { return nil })
	for what, c := range map[string]struct {
		servers []netip.AddrPort
		says    string // of the error; "" for an answer of "yes"
	}{
		"a good one":            {[]netip.AddrPort{good}, ""},
		"failure":               {[]netip.AddrPort{coded(dnsmessage.RCodeServerFailure)}, "127.0.0.1 answers SERVFAIL"},
		"refusal":               {[]netip.AddrPort{coded(dnsmessage.RCodeRefused)}, "REFUSED"},
		"not understood":        {[]netip.AddrPort{coded(dnsmessage.RCodeFormatError)}, "answers FORMERR"},
		"not done there":        {[]netip.AddrPort{coded(dnsmessage.RCodeNotImplemented)}, "answers NOTIMP"},
		"another error":         {[]netip.AddrPort{coded(9)}, "answers with error 9"},
		"failure, then good":    {[]netip.AddrPort{coded(dnsmessage.RCodeServerFailure), good}, ""},
		"no name":               {[]netip.AddrPort{coded(dnsmessage.RCodeNameError), good}, "there is no name x.example.org"},
		"no record":             {[]netip.AddrPort{coded(dnsmessage.RCodeSuccess), good}, "x.example.org has no such record"},
		"a referral, then good": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte { return pack(t, h, q) }), good}, ""},
		"silence":               {[]netip.AddrPort{silent}, "127.0.0.1 does not answer"},
		"silence, then good":    {[]netip.AddrPort{silent, good}, ""},
		"nobody there":          {[]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))}, "cannot be reached"},
		"garbage behind a good head": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			out := pack(t, h, q, q.Name.String()+" yes")
			return out[:len(out)-2]
		})}, "answers nonsense"},
		"somebody else's first": {[]netip.AddrPort{fakeServer(t, func(h dnsmessage.Header, q dnsmessage.Question) [][]byte {
			forged, other := h, q
			forged.ID++
			other.Name = dnsmessage.MustNewName("y.example.org.")
			return [][]byte{{1, 2, 3}, pack(t, forged, q, q.Name.String()+" no"), pack(t, h, other, q.Name.String()+" no"), pack(t, h, q, q.Name.String()+" yes")}
		})}, ""},
		"records of other names": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			h.RecursionAvailable = true
			return pack(t, h, q, "y.example.org. yes")
		})}, "x.example.org has no such record"},
		"CNAMEs in bits": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			if q.Name.String() == "y.example.org." {
				return pack(t, h, q, "y.example.org. yes")
			}
			return pack(t, h, q, q.Name.String()+" -> y.example.org.")
		})}, ""},
		"a loop": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			return pack(t, h, q, q.Name.String()+" -> "+q.Name.String())
		})}, "do not end"},
		"a CNAME to nowhere": {[]netip.AddrPort{one(func(h dnsmessage.Header, q dnsmessage.Question) []byte {
			h.RCode = dnsmessage.RCodeNameError
			return pack(t, h, q, q.Name.String()+" -> gone.example.org.")
		})}, "there is no name gone.example.org"},
	} {
		r := &Resolver{Servers: c.servers, Patience: hang.After}
		if len(c.servers) == 1 && c.servers[0] == silent {
			r.Patience = time.Millisecond
		}
		r.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if len(c.servers) > 1 && address == silent.String() {
				return timedOut{conn}, err // without the wait for it
			}
			return conn, err
		}
		got, err := r.Texts(t.Context(), name)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) || err == nil && !slices.Equal(got.Texts, []string{"yes"}) {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	// A caller who does not wait any longer is not kept.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &Resolver{Servers: []netip.AddrPort{silent}, Patience: hang.After}
	if _, err := r.Addresses(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
}

func TestHostServers(t *testing.T) {
	t.Parallel()
	if got := hostServers("/nowhere"); len(got) != 1 || got[0].String() != "127.0.0.1:53" {
		t.Errorf("%v", got)
	}
	if got := hostServers("testdata/resolv.conf"); len(got) != 3 || got[0].String() != "192.0.2.53:53" || got[1].String() != "[2001:db8::53]:53" || got[2].String() != "[fe80::1%eth0]:53" {
		t.Errorf("%v", got)
	}
}

// FuzzParse reads what anybody may have sent.
func FuzzParse(f *testing.F) {
	q, err := newQuery("x.example.org", typeTXT)
	if err != nil {
		f.Fatal(err)
	}
	q.id = 7
	h := dnsmessage.Header{ID: q.id}
	f.Add([]byte{})
	f.Add(pack(f, h, q.question))
	f.Add(pack(f, h, q.question, "x.example.org. sublet=abc"))
	f.Add(pack(f, h, q.question, "x.example.org. -> y.example.org.", "y.example.org. -> x.example.org.", "y.example.org. a"))
	h.Truncated = true
	f.Add(pack(f, h, q.question))
	f.Fuzz(func(t *testing.T, packet []byte) {
		a, err := q.parse(packet)
		if len(a.Names) > maxChain || len(a.Texts) > maxRecords || len(a.Addresses) > maxRecords {
			t.Errorf("%d names, %d texts, %d addresses", len(a.Names), len(a.Texts), len(a.Addresses))
		}
		if err != nil && (len(a.Texts) > 0 || len(a.Addresses) > 0 || a.truncated) {
			t.Errorf("%v, and still %v", err, a)
		}
		failed, isFailed := errors.AsType[*failedError](err)
		if err != nil && !isNotFound(err) && !errors.Is(err, errNotOurs) && !errors.Is(err, errNonsense) && !isFailed {
			t.Errorf("an error of its own: %v, %v", err, failed)
		}
		for _, s := range append(slices.Clone(a.Names), why(err)) {
			if p := printable(s); strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q is not printable", p)
			}
		}
	})
}
