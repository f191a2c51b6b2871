package hello_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sublet/internal/edge/hello"
)

// canned is a connection on which b came, and nothing more.
type canned struct {
	net.Conn
	b *bytes.Reader
}

func (c canned) Read(p []byte) (int, error)  { return c.b.Read(p) }
func (c canned) Write(p []byte) (int, error) { return len(p), nil }
func (c canned) Close() error                { return nil }

var errSeen = errors.New("seen")

// oracle is what crypto/tls reads, if it takes b for a ClientHello.
func oracle(b []byte) (name string, alpn []string, ok bool) {
	server := tls.Server(canned{b: bytes.NewReader(b)}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			name, alpn, ok = info.ServerName, info.SupportedProtos, true
			return nil, errSeen
		},
	})
	_ = server.HandshakeContext(context.Background())
	return name, alpn, ok
}

var hostname = regexp.MustCompile(`^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$`)

// agrees says that ours reads what crypto/tls does. The exceptions are those that
// are documented.
func agrees(t *testing.T, b []byte) {
	t.Helper()
	h, err := hello.Parse(b)
	name, alpn, ok := oracle(b)
	if !ok {
		return // ours leaves more to the server
	}
	var refusal *hello.RefusalError
	if errors.As(err, &refusal) && refusal.Reason == hello.ReasonTooLarge {
		return // ours takes 16 KiB, theirs takes 64
	}
	if errors.As(err, &refusal) && strings.HasPrefix(err.Error(), "too many alerts") {
		return // ours counts them all, theirs those in a row
	}
	want := strings.ToLower(name)
	if _, err := netip.ParseAddr(name); err == nil {
		want = ""
	}
	if want != "" && (!hostname.MatchString(want) || len(want) > 253) {
		if !errors.As(err, &refusal) || refusal.Reason != hello.ReasonName {
			t.Fatalf("%q is read as %+v, %v", name, h, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("crypto/tls reads %q, and we: %v", name, err)
	}
	if h.ServerName != want {
		t.Fatalf("crypto/tls reads %q, and we %q", name, h.ServerName)
	}
	if d := cmp.Diff(alpn, h.ALPN); d != "" {
		t.Fatal(d)
	}
}

// clientHello is what crypto/tls sends as a client.
func clientHello(tb testing.TB, config *tls.Config) []byte {
	tb.Helper()
	var sent bytes.Buffer
	client := tls.Client(recorded{canned{b: bytes.NewReader(nil)}, &sent}, config)
	if err := client.HandshakeContext(tb.Context()); !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	return sent.Bytes()
}

type recorded struct {
	canned
	sent *bytes.Buffer
}

func (r recorded) Write(p []byte) (int, error) { return r.sent.Write(p) }

// seeds are hellos of many kinds, for the fuzz tests.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	plain := message(sni("example.org"))
	return [][]byte{
		clientHello(f, &tls.Config{ServerName: "Example.org", NextProtos: []string{"h2", "http/1.1"}}),
		clientHello(f, &tls.Config{ServerName: "example.org", MaxVersion: tls.VersionTLS12}),
		clientHello(f, &tls.Config{ServerName: "example.org", CurvePreferences: []tls.CurveID{tls.X25519}}),
		clientHello(f, &tls.Config{InsecureSkipVerify: true, ServerName: "192.0.2.1"}),
		records(plain, 1<<14),
		records(plain, 3),
		records(message(names([]byte{7, 0, 1, 'x'}, host("a.example"))), 1<<14),
		records(message(sni("a\x00b"), ext{42, nil}), 1<<14),
		records(message(sni("2001:db8::1%eth0")), 1<<14),
		records(message(sni("example.org"), ext{0xfe0d, []byte{1}}, ext{0xfe0d, nil}), 1<<14),
		join(record(21, []byte{1, 90}), records(plain, 20), record(23, []byte("early"))),
		join(record(22, plain[:9]), record(21, []byte{1, 90}), record(22, plain[9:])),
		record(22, join(plain, handshake(20, make([]byte, 12)))),
		[]byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
		{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10},
	}
}

// FuzzParse: whatever comes, and in whatever segments, is read as one answer that
// agrees with crypto/tls's, and that no later byte changes.
func FuzzParse(f *testing.F) {
	for i, s := range seeds(f) {
		f.Add(s, uint64(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		agrees(t, b)
		h, err := hello.Parse(b)
		if err == nil && (h.Size > len(b) || h.Size > hello.MaxBytes) {
			t.Fatalf("%d bytes of %d are the hello", h.Size, len(b))
		}
		random := rand.New(rand.NewPCG(seed, 1))
		var r hello.Reader
		for end := 0; end < len(b); {
			end = min(end+1+random.IntN(1+random.IntN(len(b))), len(b))
			got, gotErr := r.Parse(b[:end])
			if errors.Is(gotErr, hello.ErrMore) && end < len(b) {
				continue
			}
			if d := cmp.Diff(h, got); d != "" || !errors.Is(gotErr, err) {
				t.Fatalf("whole it is %v, with %d of %d bytes %v: %s", err, end, len(b), gotErr, d)
			}
		}
	})
}

// FuzzMessage: a message is read the same without records, and in whatever
// records.
func FuzzMessage(f *testing.F) {
	for i, s := range seeds(f) {
		f.Add(s[min(5, len(s)):], uint64(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		want, wantErr := hello.ParseMessage(b)
		random := rand.New(rand.NewPCG(seed, 2))
		var all []byte
		for rest := b; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(1+random.IntN(1<<14)))
			all = append(all, record(22, rest[:n])...)
			rest = rest[n:]
		}
		agrees(t, all)
		got, err := hello.Parse(all)
		want.Size, got.Size = 0, 0
		if d := cmp.Diff(want, got); d != "" || !errors.Is(err, wantErr) {
			t.Fatalf("without records %v, with them %v: %s", wantErr, err, d)
		}
	})
}

// Hellos that are nearly right, of all kinds of parts, in all kinds of records.
func TestAgreesWithCryptoTLS(t *testing.T) {
	t.Parallel()
	label := rapid.StringMatching(`[a-zA-Z0-9_-]{0,4}|[a-z]{62,65}|[0-9]{1,3}`)
	name := rapid.OneOf(
		rapid.Map(rapid.SliceOfN(label, 1, 6), func(l []string) string { return strings.Join(l, ".") }),
		rapid.StringMatching(`[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-f:]{2,12}|example\.org[.]?`),
		rapid.String(),
	)
	entry := rapid.Custom(func(t *rapid.T) []byte {
		kind := rapid.SampledFrom([]byte{0, 0, 0, 0, 1}).Draw(t, "kind")
		return append([]byte{kind}, vector16([]byte(name.Draw(t, "name")))...)
	})
	extension := rapid.Custom(func(t *rapid.T) ext {
		switch rapid.IntRange(0, 4).Draw(t, "extension") {
		case 0, 1:
			return names(rapid.SliceOfN(entry, 0, 2).Draw(t, "names")...)
		case 2:
			var list []byte
			for _, p := range rapid.SliceOfN(rapid.StringN(0, 9, 20), 0, 3).Draw(t, "protocols") {
				list = append(list, vector8([]byte(p))...)
			}
			return ext{16, vector16(list)}
		case 3:
			return ext{rapid.SampledFrom([]uint16{42, 0x0a0a, 0xfe0d}).Draw(t, "kind"), rapid.SliceOfN(rapid.Byte(), 0, 1).Draw(t, "data")}
		default:
			return ext{uint16(rapid.IntRange(1000, 1020).Draw(t, "kind")), rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "data")}
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		m := message(rapid.SliceOfN(extension, 0, 4).Draw(rt, "extensions")...)
		if rapid.IntRange(0, 9).Draw(rt, "damaged") == 0 {
			m[rapid.IntRange(0, len(m)-1).Draw(rt, "at")] ^= byte(1) << rapid.IntRange(0, 7).Draw(rt, "bit")
		}
		var all []byte
		for len(m) > 0 {
			if rapid.IntRange(0, 9).Draw(rt, "alert") == 0 {
				all = append(all, warning(90)...)
			}
			n := rapid.IntRange(1, len(m)).Draw(rt, "record")
			all = append(all, record(22, m[:n])...)
			m = m[n:]
		}
		agrees(t, all)
	})
}
