package hello_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/edge/hello"
)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func warning(description byte) []byte { return record(21, []byte{1, description}) }

// readIn reads b in pieces of n bytes, as they would come in segments.
func readIn(b []byte, n int) (hello.Hello, error) {
	var r hello.Reader
	for end := 0; ; {
		end = min(end+n, len(b))
		h, err := r.Parse(b[:end])
		if !errors.Is(err, hello.ErrMore) || end == len(b) {
			return h, err
		}
	}
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61)
	plain := records(message(sni("example.org")), 1<<14)
	version := func(major, minor byte) []byte {
		b := bytes.Clone(plain)
		b[1], b[2] = major, minor
		return b
	}
	old := handshake(1, head())
	old[5] = 0 // SSLv3
	for name, c := range map[string]struct {
		in   []byte
		want hello.Hello
	}{
		"plain":                       {plain, hello.Hello{ServerName: "example.org"}},
		"record version of SSLv3":     {version(3, 0), hello.Hello{ServerName: "example.org"}},
		"record version of TLS 1.2":   {version(3, 3), hello.Hello{ServerName: "example.org"}},
		"no extensions, SSLv3":        {records(old, 1<<14), hello.Hello{}},
		"no server name":              {records(message(ext{43, []byte{2, 3, 4}}), 1<<14), hello.Hello{}},
		"upper case":                  {records(message(sni("EXAMPLE.Org")), 1<<14), hello.Hello{ServerName: "example.org"}},
		"final dot":                   {records(message(sni("example.org.")), 1<<14), hello.Hello{ServerName: "example.org"}},
		"underscore and digits":       {records(message(sni("_a1.7-9.x")), 1<<14), hello.Hello{ServerName: "_a1.7-9.x"}},
		"digits that are no address":  {records(message(sni("1.2.3")), 1<<14), hello.Hello{ServerName: "1.2.3"}},
		"longest":                     {records(message(sni(long)), 1<<14), hello.Hello{ServerName: long}},
		"an address":                  {records(message(sni("192.0.2.1")), 1<<14), hello.Hello{}},
		"an address of IPv6":          {records(message(sni("2001:db8::1")), 1<<14), hello.Hello{}},
		"a name of another type":      {records(message(names([]byte{7, 0, 1, 'x'}, host("example.org"))), 1<<14), hello.Hello{ServerName: "example.org"}},
		"only a name of another type": {records(message(names([]byte{7, 0, 1, 'x'})), 1<<14), hello.Hello{}},
		"ALPN": {
			records(message(ext{16, vector16(join(vector8([]byte("h2")), vector8([]byte("acme-tls/1"))))}), 1<<14),
			hello.Hello{ALPN: []string{"h2", "acme-tls/1"}},
		},
		"ECH, outer": {
			records(message(sni("public.example"), ext{0xfe0d, []byte{0, 0, 1, 0, 1, 9, 0, 0, 0, 1, 5}}), 1<<14),
			hello.Hello{ServerName: "public.example", ECH: true},
		},
		"ECH, inner": {
			records(message(sni("example.org"), ext{0xfe0d, []byte{1}}), 1<<14),
			hello.Hello{ServerName: "example.org"},
		},
		"GREASE": {
			records(message(ext{0x0a0a, nil}, sni("example.org"), ext{0xfafa, []byte{0}}), 1<<14),
			hello.Hello{ServerName: "example.org"},
		},
		"early data": {
			join(records(message(sni("example.org"), ext{42, nil}), 1<<14), record(23, []byte("early"))),
			hello.Hello{ServerName: "example.org", EarlyData: true},
		},
		"after warnings": {
			join(bytes.Repeat(warning(90), 16), plain),
			hello.Hello{ServerName: "example.org"},
		},
		"warning within": {
			join(record(22, message(sni("example.org"))[:50]), warning(90), record(22, message(sni("example.org"))[50:])),
			hello.Hello{ServerName: "example.org"},
		},
		"records of a byte": {
			records(message(sni("example.org")), 1),
			hello.Hello{ServerName: "example.org"},
		},
		"longest message":                      {records(padded("example.org", hello.MaxSize), 1<<14), hello.Hello{ServerName: "example.org"}},
		"longest message, in records of bytes": {records(padded("example.org", hello.MaxSize), 1), hello.Hello{ServerName: "example.org"}},
		"another message in the record": {
			record(22, join(message(sni("example.org")), handshake(20, make([]byte, 12)))),
			hello.Hello{ServerName: "example.org"},
		},
		"another message in the record of the end": {
			join(record(22, message(sni("example.org"))[:3]), record(22, join(message(sni("example.org"))[3:], handshake(20, make([]byte, 12))))),
			hello.Hello{ServerName: "example.org"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.want.Size = len(c.in)
			if c.want.EarlyData {
				c.want.Size -= len(record(23, []byte("early")))
			}
			if c.want.Size > hello.MaxBytes {
				t.Errorf("%d bytes are more than MaxBytes", len(c.in))
			}
			for _, n := range []int{1, 2, 7, 1000, len(c.in)} {
				got, err := readIn(c.in, n)
				if err != nil {
					t.Fatalf("in pieces of %d: %v", n, err)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Fatalf("in pieces of %d: %s", n, d)
				}
			}
			for n := range c.want.Size {
				if h, err := hello.Parse(c.in[:n]); !errors.Is(err, hello.ErrMore) {
					t.Fatalf("%d of %d bytes are read as %+v, %v", n, len(c.in), h, err)
				}
				if n > 2000 {
					break // the rest is alike, and would take a while
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	valid := message(sni("example.org"))
	in := func(b []byte) []byte { return record(22, b) }
	cut := func(n int) []byte { return in(handshake(1, valid[4:len(valid)-n])) }
	label := strings.Repeat("a", 63)
	for name, c := range map[string]struct {
		in     []byte
		reason hello.Reason
		alert  uint8
	}{
		"zeros":                    {make([]byte, 10), hello.ReasonGarbage, 0},
		"SSH":                      {[]byte("SSH-2.0-OpenSSH_9.2\r\n"), hello.ReasonGarbage, 0},
		"a method that is not one": {[]byte("GETTING "), hello.ReasonGarbage, 0},
		"PROXY protocol":           {[]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"), hello.ReasonGarbage, 0},
		"a version far off":        {[]byte{22, 16, 0, 0, 1, 1}, hello.ReasonGarbage, 0},
		"GET":                      {[]byte("GET / HTTP/1.1\r\n"), hello.ReasonHTTP, 0},
		"OPTIONS":                  {[]byte("OPTIONS * HTTP/1.1\r\n"), hello.ReasonHTTP, 0},
		"h2c":                      {[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), hello.ReasonHTTP, 0},
		"SSLv2":                    {[]byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10}, hello.ReasonSSLv2, hello.AlertProtocolVersion},
		"SSLv2, for SSLv3":         {[]byte{0x80, 0x67, 1, 3, 0, 0, 0x4e, 0, 0, 0, 0x10}, hello.ReasonSSLv2, hello.AlertProtocolVersion},
		"high bit, but not SSLv2":  {[]byte{0x80, 0x2e, 4, 0, 2}, hello.ReasonGarbage, 0},
		"high bit, odd version":    {[]byte{0x80, 0x2e, 1, 9, 9}, hello.ReasonGarbage, 0},

		"application data":      {record(23, []byte("early")), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"change of cipher":      {join(record(20, []byte{1}), in(valid)), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"heartbeat":             {record(24, []byte{1, 0x40, 0}), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"unknown type within":   {join(in(valid[:9]), record(99, valid[9:])), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"data within":           {join(in(valid[:9]), record(23, valid[9:])), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"an empty record":       {join(in(nil), in(valid)), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"an empty record later": {join(in(valid[:9]), in(nil), in(valid[9:])), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"a record too long":     {[]byte{22, 3, 1, 0x40, 1}, hello.ReasonRecord, hello.AlertRecordOverflow},
		"17 warnings":           {join(bytes.Repeat(warning(90), 17), in(valid)), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"an empty alert":        {record(21, nil), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"an alert of no level":  {record(21, []byte{3, 90}), hello.ReasonRecord, hello.AlertUnexpectedMessage},
		"a fatal alert":         {record(21, []byte{2, 40}), hello.ReasonClosed, 0},
		"close_notify":          {join(warning(90), warning(0)), hello.ReasonClosed, 0},

		"ServerHello":     {in(handshake(2, valid[4:])), hello.ReasonMessage, hello.AlertUnexpectedMessage},
		"HelloRequest":    {in(handshake(0, nil)), hello.ReasonMessage, hello.AlertUnexpectedMessage},
		"too large":       {in([]byte{1, 0, 0x40, 1}), hello.ReasonTooLarge, hello.AlertIllegalParameter},
		"far too large":   {records([]byte{1, 0xff, 0xff, 0xff}, 1), hello.ReasonTooLarge, hello.AlertIllegalParameter},
		"empty":           {in(handshake(1, nil)), hello.ReasonMalformed, hello.AlertDecodeError},
		"cut by one":      {cut(1), hello.ReasonMalformed, hello.AlertDecodeError},
		"cut in the head": {cut(60), hello.ReasonMalformed, hello.AlertDecodeError},
		"one byte more":   {in(handshake(1, append(bytes.Clone(valid[4:]), 0))), hello.ReasonMalformed, hello.AlertDecodeError},
		"half a cipher suite": {
			in(handshake(1, join([]byte{3, 3}, make([]byte, 32), []byte{0, 0, 1, 0x13, 1, 0}))),
			hello.ReasonMalformed, hello.AlertDecodeError,
		},
		"an extension cut": {
			in(handshake(1, join(head(), vector16([]byte{0, 0, 0, 9, 0})))),
			hello.ReasonMalformed, hello.AlertDecodeError,
		},
		"two of an unknown kind": {in(message(ext{999, nil}, sni("example.org"), ext{999, nil})), hello.ReasonMalformed, hello.AlertIllegalParameter},
		"two server_name":        {in(message(sni("a.example"), sni("b.example"))), hello.ReasonMalformed, hello.AlertIllegalParameter},
		"two equal server_name":  {in(message(sni("a.example"), sni("a.example"))), hello.ReasonMalformed, hello.AlertIllegalParameter},
		"several names":          {in(message(names(host("a.example"), host("b.example")))), hello.ReasonMalformed, hello.AlertIllegalParameter},
		"no data for names":      {in(message(ext{0, nil})), hello.ReasonMalformed, hello.AlertDecodeError},
		"no names":               {in(message(names())), hello.ReasonMalformed, hello.AlertDecodeError},
		"an empty name":          {in(message(sni(""))), hello.ReasonMalformed, hello.AlertDecodeError},
		"an empty name after":    {in(message(names(host("a.example"), host("")))), hello.ReasonMalformed, hello.AlertDecodeError},
		"a list too long":        {in(message(ext{0, []byte{0, 9, 0, 0, 1, 'a'}})), hello.ReasonMalformed, hello.AlertDecodeError},
		"a list too short":       {in(message(ext{0, []byte{0, 3, 0, 0, 1, 'a'}})), hello.ReasonMalformed, hello.AlertDecodeError},
		"a name too long for it": {in(message(ext{0, []byte{0, 4, 0, 0, 2, 'a'}})), hello.ReasonMalformed, hello.AlertDecodeError},
		"more after the list":    {in(message(ext{0, append(vector16(host("a")), 0)})), hello.ReasonMalformed, hello.AlertDecodeError},
		"no protocols":           {in(message(ext{16, vector16(nil)})), hello.ReasonMalformed, hello.AlertDecodeError},
		"an empty protocol":      {in(message(ext{16, vector16([]byte{0})})), hello.ReasonMalformed, hello.AlertDecodeError},
		"early data with data":   {in(message(ext{42, []byte{1}})), hello.ReasonMalformed, hello.AlertDecodeError},

		"NUL":             {in(message(sni("example.org\x00.evil.example"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"NUL at the end":  {in(message(sni("example.org\x00"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"UTF-8":           {in(message(sni("bücher.example"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a space":         {in(message(sni("example.org "))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a star":          {in(message(sni("*.example.org"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a port":          {in(message(sni("example.org:443"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a dot":           {in(message(sni("."))), hello.ReasonName, hello.AlertUnrecognizedName},
		"two final dots":  {in(message(sni("example.org.."))), hello.ReasonName, hello.AlertUnrecognizedName},
		"an empty label":  {in(message(sni("example..org"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a first dot":     {in(message(sni(".example.org"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"a label of 64":   {in(message(sni(label + "a.org"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"254 bytes":       {in(message(sni(strings.Repeat("a.", 126) + "bc"))), hello.ReasonName, hello.AlertUnrecognizedName},
		"very many bytes": {in(message(sni(strings.Repeat("a.", 6000) + "bc"))), hello.ReasonName, hello.AlertUnrecognizedName},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, n := range []int{1, 3, len(c.in)} {
				h, err := readIn(c.in, n)
				var refusal *hello.RefusalError
				if !errors.As(err, &refusal) {
					t.Fatalf("in pieces of %d it is %+v, %v", n, h, err)
				}
				if refusal.Reason != c.reason || refusal.Alert != c.alert || refusal.Error() == "" {
					t.Fatalf("in pieces of %d it is refused as %s with alert %d (%v), want %s, %d", n, refusal.Reason, refusal.Alert, err, c.reason, c.alert)
				}
				if d := cmp.Diff(hello.Hello{}, h); d != "" {
					t.Fatalf("it is refused, but %s", d)
				}
			}
		})
	}
}

// What is refused is refused with the first bytes that show it.
func TestRefusedEarly(t *testing.T) {
	t.Parallel()
	for _, b := range [][]byte{
		{0},
		{'X'},
		[]byte("GET "),
		{22, 0x10},
		{22, 3, 1, 0x40, 1},
		{22, 3, 1, 0x40, 0, 2},
		{22, 3, 1, 0x40, 0, 1, 1, 0, 0},
		{22, 3, 1, 0, 0},
		{23, 3, 3, 0x40, 0},
		{21, 3, 1, 0, 3},
	} {
		if h, err := readIn(b, 1); err == nil || errors.Is(err, hello.ErrMore) {
			t.Errorf("% x is read as %+v, %v", b, h, err)
		}
		if h, err := readIn(b[:len(b)-1], 1); !errors.Is(err, hello.ErrMore) {
			t.Errorf("% x is read as %+v, %v", b[:len(b)-1], h, err)
		}
	}
}

// A message without records, as QUIC has it.
func TestParseMessage(t *testing.T) {
	t.Parallel()
	m := message(sni("Example.org"), ext{42, nil})
	for n := range m {
		if _, err := hello.ParseMessage(m[:n]); !errors.Is(err, hello.ErrMore) {
			t.Fatalf("%d bytes of %d: %v", n, len(m), err)
		}
	}
	want := hello.Hello{ServerName: "example.org", EarlyData: true, Size: len(m)}
	got, err := hello.ParseMessage(append(m, "more"...))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var refusal *hello.RefusalError
	if _, err := hello.ParseMessage(message(sni("a\x00b"))); !errors.As(err, &refusal) || refusal.Reason != hello.ReasonName {
		t.Error(err)
	}
}

func TestAlert(t *testing.T) {
	t.Parallel()
	if got := hello.Alert(hello.AlertUnrecognizedName); !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 112}) {
		t.Errorf("% x", got)
	}
}

// What nearly every caller sends costs two pieces of memory: the name, and the
// list of protocols.
func TestAllocations(t *testing.T) {
	b := records(message(sni("Example.org"), ext{16, vector16([]byte("\x02h2\x08http/1.1"))}), 1<<14)
	if n := testing.AllocsPerRun(100, func() {
		if h, err := hello.Parse(b); err != nil || h.ServerName != "example.org" {
			t.Fatal(h, err)
		}
	}); n > 2 {
		t.Errorf("%v pieces of memory", n)
	}
}

func BenchmarkParse(b *testing.B) {
	in := records(message(sni("www.example.org"), ext{16, vector16([]byte("\x02h2\x08http/1.1"))}, ext{51, make([]byte, 1300)}), 1<<14)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := hello.Parse(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWorst is a sender of the longest hello, byte by byte, each in a record
// of its own.
func BenchmarkWorst(b *testing.B) {
	in := records(padded("www.example.org", hello.MaxSize), 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readIn(in, 1); err != nil {
			b.Fatal(err)
		}
	}
}
