package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// twoGuests is a stand with alice, who speaks HTTP/1.1, and bob, who speaks HTTP/2 as
// well.
func twoGuests(t *testing.T) *stand {
	t.Helper()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, named("alice"), false)})
	s.guest("bob", vps.Domain{Name: "*.b.example.org", HTTPPort: serve(t, named("bob"), true)})
	s.set()
	return s
}

func TestHTTPGoesByHost(t *testing.T) {
	t.Parallel()
	s := twoGuests(t)
	for _, c := range []struct{ what, version, url, want string }{
		{"HTTP/1.1", "1", "http://a.example.org/x?y", "alice HTTP/1.1 GET a.example.org /x?y"},
		{"HTTP/1.1", "1", "http://x.b.example.org/x%2f?", "bob HTTP/1.1 GET x.b.example.org /x%2f?"},
		{"h2c", "2", "http://a.example.org/x?y", "alice HTTP/1.1 GET a.example.org /x?y"},
		{"h2c", "2", "http://x.b.example.org/x%7cy?a;b=%zz", "bob HTTP/2.0 GET x.b.example.org /x%7cy?a;b=%zz"},
	} {
		client := s.client()
		if c.version == "2" {
			client = s.client(h2c)
		}
		for range 2 {
			if code, got := get(t, client, c.url); code != 200 || got != c.want {
				t.Errorf("%s: %s: %d %q, want %q", c.what, c.url, code, got, c.want)
			}
		}
	}
}

// TestForms: ways to say whom a request is for.
func TestForms(t *testing.T) {
	t.Parallel()
	s := twoGuests(t)
	alice := func(target string) string { return "alice HTTP/1.1 GET a.example.org " + target }
	for request, want := range map[string]string{
		"GET /x HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                              alice("/x"),
		"GET /x HTTP/1.0\r\nHost: a.example.org\r\n\r\n":                              alice("/x"),
		"GET http://a.example.org/x?y HTTP/1.1\r\nHost: x.b.example.org\r\n\r\n":      alice("/x?y"),
		"GET http://a.example.org HTTP/1.1\r\nHost: a.example.org\r\n\r\n":            alice("/"),
		"GET http://a.example.org?q HTTP/1.1\r\nHost: a.example.org\r\n\r\n":          alice("/?q"),
		"GET //x//y/../z HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                     alice("//x//y/../z"),
		"GET /%41%zz|\"<> HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                    "400 Bad Request",
		"GET /%41|\"<>{}^`' HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                  alice("/%41|\"<>{}^`'"),
		"GET /\xc3\xa4 HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                       alice("/\xc3\xa4"),
		"GET /x HTTP/1.1\r\nHost: A.Example.ORG\r\n\r\n":                              "alice HTTP/1.1 GET A.Example.ORG /x",
		"GET /x HTTP/1.1\r\nHost: a.example.org.\r\n\r\n":                             "alice HTTP/1.1 GET a.example.org. /x",
		"GET /x HTTP/1.1\r\nHost: a.example.org:80\r\n\r\n":                           "alice HTTP/1.1 GET a.example.org:80 /x",
		"GET /x HTTP/1.1\r\nHost: a.example.org:8080\r\n\r\n":                         "alice HTTP/1.1 GET a.example.org:8080 /x",
		"OPTIONS * HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                           "alice HTTP/1.1 OPTIONS a.example.org *",
		"TRACE /x HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                            "alice HTTP/1.1 TRACE a.example.org /x",
		"BREW /x HTTP/1.1\r\nHost: a.example.org\r\n\r\n":                             "alice HTTP/1.1 BREW a.example.org /x",
		"GET /.well-known/acme-challenge/t HTTP/1.1\r\nHost: q.b.example.org\r\n\r\n": "bob HTTP/1.1 GET q.b.example.org /.well-known/acme-challenge/t",
		"GET /x HTTP/1.1\r\nHost: b.example.org\r\n\r\n":                              "421 Misdirected",
		"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n":                                  "421 Misdirected",
		"GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n":                                   "421 Misdirected",
		"GET /x HTTP/1.0\r\n\r\n":                                                     "421 Misdirected",
		"GET /x HTTP/1.1\r\n\r\n":                                                     "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost:\r\n\r\n":                                            "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: a.example.org\r\nHost: x.b.example.org\r\n\r\n":     "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: a.example.org, x.b.example.org\r\n\r\n":             "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: a.example.org/x\r\n\r\n":                            "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: a.example.org@x.b.example.org\r\n\r\n":              "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost : a.example.org\r\n\r\n":                             "400 Bad Request",
		"CONNECT a.example.org:443 HTTP/1.1\r\nHost: a.example.org:443\r\n\r\n":       "405 Method Not Allowed",
		"GET /x HTTP/3.7\r\nHost: a.example.org\r\n\r\n":                              "505 HTTP Version",
		"GET /x\r\n\r\n":                    "400 Bad Request",
		"\x16\x03\x01\x00\x05hello\r\n\r\n": "400 Bad Request",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n":      "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: a.example.org\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n": "431 Request Header",
	} {
		got := s.raw(web, request)
		if !strings.Contains(got, want) {
			t.Errorf("%.200q: got %q, want %q", request, got, want)
		}
		if strings.HasPrefix(want, "421") && (strings.Contains(got, "alice") || strings.Contains(got, "bob")) {
			t.Errorf("the page says something about others: %q", got)
		}
	}
}

// TestDefaultGuestOfHTTP: who has all other names has calls without one, too.
func TestDefaultGuestOfHTTP(t *testing.T) {
	t.Parallel()
	s := twoGuests(t)
	s.guest("rest", vps.Domain{Name: "*", HTTPPort: serve(t, named("rest"), false)})
	s.set()
	for request, want := range map[string]string{
		"GET /x HTTP/1.0\r\n\r\n":                                "rest HTTP/1.1 GET 127.0.0.1:",
		"GET /x HTTP/1.1\r\nHost: [::1]\r\n\r\n":                 "rest HTTP/1.1 GET [::1] /x",
		"GET /x HTTP/1.1\r\nHost: other.example.org\r\n\r\n":     "rest HTTP/1.1 GET other.example.org /x",
		"GET /x HTTP/1.1\r\nHost: a.example.org\r\n\r\n":         "alice HTTP/1.1",
		"GET /x HTTP/1.1\r\nHost: exa mple.org\r\n\r\n":          "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: example..org\r\n\r\n":          "400 Bad Request",
		"GET /x HTTP/1.1\r\nHost: under_score.example\r\n\r\n":   "rest HTTP/1.1",
		"GET /x HTTP/1.1\r\nHost: b\xc3\xbccher.example\r\n\r\n": "400 Bad Request",
	} {
		if got := s.raw(web, request); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", request, got, want)
		}
	}
}

// TestOneConnection: the requests of a caller's connection go by their own Host each,
// and those for a guest by one connection, in order.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	seen := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host+" "+r.RemoteAddr) }
	a := serve(t, seen, false)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: a}, vps.Domain{Name: "a2.example.org", HTTPPort: a})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: serve(t, seen, false)})
	s.set()
	c := s.dial(web)
	order := []string{"a.example.org", "b.example.org", "a2.example.org", "a.example.org", "b.example.org"}
	for _, host := range order { // all at once
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	}
	from := map[string]string{}
	r := bufio.NewReader(c)
	for _, host := range order {
		_, _, got := readAnswer(t, r)
		name, address, _ := strings.Cut(got, " ")
		guest := name[:1]
		if name != host {
			t.Errorf("%s answered instead of %s", name, host)
		}
		if from[guest] != "" && from[guest] != address {
			t.Errorf("%s: another connection to the guest", host)
		}
		from[guest] = address
	}
	if n := len(s.origin.dialed()); n != 2 {
		t.Errorf("%d connections to guests, want 2", n)
	}
}

// TestMovesWithTheTable: the next request on a connection goes where the name leads
// by then.
func TestMovesWithTheTable(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	a, b := serve(t, named("alice"), false), serve(t, named("bob"), false)
	s.guest("alice", vps.Domain{Name: "x.example.org", HTTPPort: a})
	s.guest("bob")
	s.set()
	client := s.client()
	if _, got := get(t, client, "http://x.example.org/"); !strings.HasPrefix(got, "alice") {
		t.Fatal(got)
	}
	s.config.Guests[0].Domains = nil
	s.config.Guests[1].Domains = []vps.Domain{{Name: "x.example.org", HTTPPort: b}}
	s.set()
	if _, got := get(t, client, "http://x.example.org/"); !strings.HasPrefix(got, "bob") {
		t.Fatal(got)
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		sum := sha256.New()
		_ = http.NewResponseController(w).EnableFullDuplex()
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
		}
		_, _ = io.Copy(w, io.TeeReader(r.Body, sum))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Header().Set(http.TrailerPrefix+"X-Caller-Trailer", r.Trailer.Get("X-Mine"))
	}
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, h, false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: serve(t, h, true)})
	s.set()
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<16) // 4 MiB
	want := fmt.Sprintf("%x", sha256.Sum256(content))
	for _, version := range []string{"1.1", "2"} {
		client := s.client()
		if version == "2" {
			client = s.client(h2c)
		}
		for _, host := range []string{"a.example.org", "b.example.org"} {
			for _, path := range []string{"/known", "/chunked"} {
				body := io.Reader(bytes.NewReader(content))
				if path == "/chunked" {
					body = struct{ io.Reader }{body}
				}
				req, _ := http.NewRequest(http.MethodPost, "http://"+host+path, body)
				if path == "/chunked" {
					req.Trailer = http.Header{"X-Mine": {"caller's"}}
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("HTTP/%s %s%s: %d bytes came back, %v", version, host, path, len(got), err)
				}
				if path == "/chunked" && (resp.Trailer.Get("X-Sum") != want || resp.Trailer.Get("X-Caller-Trailer") != "caller's") {
					t.Errorf("HTTP/%s %s: trailers %v", version, host, resp.Trailer)
				}
			}
		}
	}
}

// TestFlushed: an event comes to the caller before the guest has said more.
func TestFlushed(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	next := make(chan bool)
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
		case "/known":
			w.Header().Set("Content-Length", "20")
		}
		for range 2 {
			_, _ = io.WriteString(w, "data: xxx\n")
			w.(http.Flusher).Flush()
			<-next
		}
	}
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, h, false)})
	s.set()
	for _, path := range []string{"/events", "/known", "/chunked"} {
		resp, err := s.client().Get("http://a.example.org" + path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			b := make([]byte, 10)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			next <- true
		}
		_ = resp.Body.Close()
	}
}

// TestExpect: a body that the guest does not want is not sent.
func TestExpect(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "got %d", len(b))
	}, false)})
	s.set()
	c := s.dial(web)
	_, _ = io.WriteString(c, "POST /yes HTTP/1.1\r\nHost: a.example.org\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	r := bufio.NewReader(c)
	if code, _, _ := readAnswer(t, r); code != http.StatusContinue {
		t.Fatal(code)
	}
	_, _ = io.WriteString(c, "hello")
	if code, _, got := readAnswer(t, r); code != http.StatusOK || got != "got 5" {
		t.Errorf("%d %q", code, got)
	}
	c = s.dial(web)
	_, _ = io.WriteString(c, "POST /no HTTP/1.1\r\nHost: a.example.org\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if code, _, _ := readAnswer(t, bufio.NewReader(c)); code != http.StatusExpectationFailed {
		t.Error(code)
	}
}

// echoUpgrade is a guest that speaks something else on, and greets first.
func echoUpgrade(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close() //nolint:errcheck // all is said
	_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\nwelcome", r.Header.Get("Upgrade"))
	_, _ = io.Copy(c, rw)
}

// TestUpgrade: WebSocket and the like, also with what comes early, and much of it,
// and when one side has ended.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, echoUpgrade, false)})
	s.set()
	c := s.dial(web)
	_, _ = io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: a.example.org\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly")
	r := bufio.NewReader(c)
	if code, h, _ := readAnswer(t, r); code != http.StatusSwitchingProtocols || h.Get("Upgrade") != "websocket" {
		t.Fatal(code, h)
	}
	much := bytes.Repeat([]byte("websocket"), 1<<17)
	go func() {
		_, _ = c.Write(much)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(r)
	if want := "welcomeearly" + string(much); err != nil || string(got) != want {
		t.Errorf("%d bytes %.40q, %v; want %d", len(got), got, err, len(want))
	}
	line := s.logs.wait(t, 1)[0]
	if !strings.Contains(line, `"GET /chat HTTP/1.1" 101 `) {
		t.Error(line)
	}
}

// TestHeadersPass: what the caller and the guest say is what the other one hears.
func TestHeadersPass(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var got http.Header
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.Header()["Content-Type"] = nil
		w.Header()["Date"] = nil
		w.Header()["X-Two"] = []string{"1", "2"}
		w.Header().Set("Server", "alice's")
		w.Header().Set("Keep-Alive", "timeout=7")
		_, _ = io.WriteString(w, "<html>")
	}, false)})
	s.set()
	text := s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\nAccept-Encoding: br\r\nX-Two: 1\r\nX-Two: 2\r\nCookie: a=b\r\nX-Hop: y\r\nConnection: X-Hop, close\r\nProxy-Authorization: z\r\nTE: gzip\r\n\r\n")
	if _, h, _ := readAnswer(t, bufio.NewReader(strings.NewReader(text))); len(h["X-Two"]) != 2 || h.Get("Server") != "alice's" || h["Content-Type"] != nil || h["Keep-Alive"] != nil || h["Via"] != nil {
		t.Errorf("the caller got %v", h)
	}
	for _, h := range []string{"User-Agent", "X-Hop", "Proxy-Authorization", "Te", "Via"} {
		if v, ok := got[h]; ok {
			t.Errorf("the guest got %s: %q", h, v)
		}
	}
	if len(got["X-Two"]) != 2 || got.Get("Accept-Encoding") != "br" || got.Get("Cookie") != "a=b" {
		t.Errorf("the guest got %v", got)
	}
}

// TestGuestFaults: what goes wrong in a guest is said at once, and counted.
func TestGuestFaults(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for i, c := range []struct {
		answer string
		status int
		reason edge.Reason
	}{
		{"SSH-2.0-OpenSSH_9.2\r\n", 502, edge.ReasonGuestAnswer},
		{"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 502, edge.ReasonGuestAnswer},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10) + "\r\n\r\n", 502, edge.ReasonGuestAnswer},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", 502, edge.ReasonGuestAnswer},
	} {
		id := fmt.Sprintf("guest%d", i)
		s.guest(id, vps.Domain{Name: id + ".example.org", HTTPPort: newRawGuest(t, c.answer).port})
		s.set()
		resp, err := s.client().Get("http://" + id + ".example.org/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%.40q: %s", c.answer, resp.Status)
		}
		eventually(t, "counted", func() bool { return s.server.Stats().Guests[id].Refused[c.reason] == 1 })
	}
}

// TestCallerBreaksOff: a body that ends too early is the caller's fault.
func TestCallerBreaksOff(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}, false)})
	s.set()
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: a.example.org\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"POST / HTTP/1.1\r\nHost: a.example.org\r\nContent-Length: 100\r\n\r\nhello",
	} {
		if got := s.raw(web, request); got != "" && !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%q: %q", request, got)
		}
	}
	eventually(t, "it ends", func() bool { return s.server.Stats().Guests["alice"].Open == 0 })
	if refused := s.server.Stats().Guests["alice"].Refused; refused[edge.ReasonGuestAnswer] > 0 {
		t.Errorf("the guest is blamed: %v", refused)
	}
}

// TestStreams: many requests at once on one connection of HTTP/2.
func TestStreams(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var here atomic.Int32
	all := make(chan struct{})
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/first" {
			if here.Add(1) == 50 {
				close(all)
			}
			<-all
		}
		_, _ = io.WriteString(w, r.URL.Path)
	}
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, h, true)})
	s.set()
	client := s.client(h2c)
	get(t, client, "http://a.example.org/first") // or the client makes many connections
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			path := fmt.Sprintf("/%d", i)
			resp, err := client.Get("http://a.example.org" + path)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close() //nolint:errcheck // only read from
			if b, _ := io.ReadAll(resp.Body); string(b) != path {
				t.Errorf("%q", b)
			}
		})
	}
	wg.Wait()
	if n := len(s.origin.dialed()); n != 1 {
		t.Errorf("%d connections to the guest", n)
	}
}

// TestCurl: the command that people try things with.
func TestCurl(t *testing.T) {
	t.Parallel()
	s := twoGuests(t)
	_, p, _ := net.SplitHostPort(s.address(web))
	for _, flags := range [][]string{{"--http1.0"}, {"--http1.1"}, {"--http2"}, {"--http2-prior-knowledge"}, {"--http1.1", "-x", "http://" + s.address(web)}, {"-d", "x=y"}, {"-T", "http_test.go"}} {
		for host, want := range map[string]string{"a.example.org": "alice HTTP/", "x.b.example.org": "bob HTTP/"} {
			ctx, cancel := context.WithTimeout(t.Context(), hang.After)
			defer cancel()
			args := append([]string{"-sS"}, flags...)
			if !slices.Contains(flags, "-x") {
				args = append(args, "--connect-to", "::127.0.0.1:"+p)
			}
			out, err := exec.CommandContext(ctx, "curl", append(args, "http://"+host+"/x")...).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), want) {
				t.Errorf("curl %s %s: %v %s", flags, host, err, out)
			}
		}
	}
}

// TestSilentCallers: who does not say what he wants is not waited for.
func TestSilentCallers(t *testing.T) {
	t.Parallel()
	s := twoGuests(t)
	s.config.Settings.HandshakeTimeout = vps.Duration(50 * time.Millisecond)
	s.set()
	for _, begin := range []string{"", "GET / HTTP/1.1\r\nHost: a.exa", "PRI * HTTP/2.0\r\n"} {
		c := s.dial(web)
		_, _ = io.WriteString(c, begin)
		b, _ := io.ReadAll(c) // until the edge hangs up
		if strings.Contains(string(b), "200 OK") {
			t.Errorf("%q: %q", begin, b)
		}
	}
	for _, begin := range []string{"", "\x16\x03\x01", "\x16\x03\x01\x02\x00\x01\x00"} {
		c := s.dial(webTLS)
		_, _ = io.WriteString(c, begin)
		_, _ = io.ReadAll(c)
	}
	eventually(t, "counted", func() bool { return s.server.Stats().Refused[edge.ReasonHandshake] == 3 })
}

// TestIdle: who says nothing for long is hung up on, between requests and within.
func TestIdle(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.IdleTimeout = vps.Duration(100 * time.Millisecond)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, echoUpgrade, false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: serve(t, named("bob"), false)})
	s.set()
	for _, begin := range []string{
		"GET / HTTP/1.1\r\nHost: b.example.org\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		c := s.dial(web)
		_, _ = io.WriteString(c, begin)
		_, _ = io.ReadAll(c)
	}
	c, err := handshake(s.dial(webTLS), "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(c)
	eventually(t, "all end", func() bool { return s.server.Stats().Open == 0 })
}
