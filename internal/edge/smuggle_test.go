package edge_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"sublet/internal/vps"
)

// rawGuest is a guest's port that writes down all that comes to it, and answers
// each request of HTTP/1.1 that it can see in the way that answer says.
type rawGuest struct {
	port uint16
	mu   sync.Mutex
	got  []string // of each connection
}

func newRawGuest(t *testing.T, answer string) *rawGuest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	g := &rawGuest{port: port(l.Addr())}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.got = append(g.got, "")
			i := len(g.got) - 1
			g.mu.Unlock()
			go func() {
				defer c.Close() //nolint:errcheck // the caller has gone
				b := make([]byte, 64<<10)
				for {
					n, err := c.Read(b)
					g.mu.Lock()
					g.got[i] += string(b[:n])
					heads := strings.Count(string(b[:n]), "HTTP/1.1\r\n")
					g.mu.Unlock()
					for range heads {
						_, _ = io.WriteString(c, answer)
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return g
}

func (g *rawGuest) all() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.got, "|")
}

// TestSmuggling: what one reader takes for a body and another one for a request
// comes to nobody whom it does not name.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	const hidden = "GET /hidden HTTP/1.1\r\nHost: victim.example.org\r\n\r\n"
	for name, request := range map[string]string{
		"CL and TE":              "POST / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE and CL":              "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
		"two CL":                 "POST / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n" + hidden,
		"list of CL":             "POST / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: 0, 60\r\n\r\n" + hidden,
		"signed CL":              "POST / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: +5\r\n\r\nhello" + hidden,
		"TE not last":            "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
		"two TE":                 "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"TE with a tab":          "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"TE with vertical tab":   "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"TE in HTTP/1.0":         "POST / HTTP/1.0\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"space before the colon": "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"folded TE":              "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"bad chunk size":         "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + hidden,
		"huge chunk size":        "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff5\r\nhello\r\n0\r\n\r\n" + hidden,
		"chunk without its end":  "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloGET /hidden",
		"chunk ended by LF":      "POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n" + hidden,
		"LF in a header":         "GET / HTTP/1.1\r\nHost: a.example.org\r\nX: y\n\nGET /hidden HTTP/1.1\r\nHost: victim.example.org\r\n\r\n",
		"CR in a header":         "GET / HTTP/1.1\r\nHost: a.example.org\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n",
		"NUL in a header":        "GET / HTTP/1.1\r\nHost: a.example.org\r\nX: y\x00\r\n\r\n",
		"CRLF in the target":     "GET /%0d%0aHost:victim.example.org HTTP/1.1\r\nHost: a.example.org\r\n\r\n",
		"body of GET":            "GET / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: 60\r\n\r\n" + hidden,
		"upgrade to h2c":         "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"CL is hop-by-hop":       "POST / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Content-Length\r\nContent-Length: 60\r\n\r\n" + hidden,
		"Host is hop-by-hop":     "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Host\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			alice, victim := newRawGuest(t, ok), newRawGuest(t, ok)
			s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: alice.port})
			s.guest("victim", vps.Domain{Name: "victim.example.org", HTTPPort: victim.port})
			s.set()
			answers := strings.Count(s.raw(web, request), "HTTP/1.")
			got := alice.all()
			// alice reads as the strictest server does: what she takes for a request
			// must be one that the edge took for one, which it answered.
			heads := 0
			r := bufio.NewReader(strings.NewReader(got))
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					break
				}
				heads++
				if req.Host != "a.example.org" {
					t.Errorf("alice got a request for %s: %q", req.Host, got)
				}
				if len(req.Header["Content-Length"]) > 0 && len(req.TransferEncoding) > 0 || req.Header.Get("Upgrade") != "" {
					t.Errorf("alice got what is not clear: %q", got)
				}
				_, _ = io.Copy(io.Discard, req.Body)
			}
			if heads > answers || heads > 1 {
				t.Errorf("alice got %d requests, %d answers came: %q", heads, answers, got)
			}
			if strings.Contains(got, "\nHost: victim") && !strings.Contains(got, "Content-Length: ") && !strings.Contains(got, "chunked") {
				t.Errorf("alice got the victim's: %q", got)
			}
		})
	}
}
