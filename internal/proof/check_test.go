package proof

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/proof/prooftest"
	"sublet/internal/vps"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "domain.key")
	key, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := OpenKey(path); err != nil || again != key {
		t.Errorf("the key differs: %v", err)
	}
	if _, err := OpenKey(t.TempDir()); vps.ErrorCode(err) != vps.CodeInternal {
		t.Errorf("a folder for a key: %v", err)
	}
	made := time.Date(2026, 11, 30, 12, 0, 0, 1, time.UTC)
	claims := []Claim{
		{"blog.example.org", "bob", made},
		{"*.blog.example.org", "bob", made},
		{"blog.example.org", "alice", made},
		{"blog.example.org", "bob", made.Add(1)},
		{"blo", "bob", made},
		{"g.example.org", "bobblo", made},
	}
	seen := map[string]Claim{}
	for _, c := range claims {
		token := key.Token(c)
		if len(token) != 32 || strings.Trim(token, "abcdefghijklmnopqrstuvwxyz234567") != "" {
			t.Errorf("%v: %q", c, token)
		}
		if twin, twice := seen[token]; twice {
			t.Errorf("%v and %v have the same", c, twin)
		}
		seen[token] = c
	}
	local := claims[0]
	local.Created = local.Created.In(time.FixedZone("x", 3600))
	if key.Token(local) != key.Token(claims[0]) || (Key{}).Token(local) == key.Token(local) {
		t.Error("it goes by the zone, or not by the key")
	}
	token := key.Token(claims[0])
	if s := key.Steps(claims[0]); s != (vps.ProofSteps{Record: "_sublet.blog.example.org", Value: "sublet=" + token, URL: "http://blog.example.org/.well-known/sublet-" + token, Content: token}) {
		t.Errorf("%+v", s)
	}
	if s := key.Steps(claims[1]); s != (vps.ProofSteps{Record: "_sublet.blog.example.org", Value: "sublet=" + key.Token(claims[1])}) {
		t.Errorf("%+v", s)
	}
	long := strings.Repeat("a.", 121) + "example.org" // 253 letters
	if s := key.Steps(Claim{Name: long}); s.Record != "" || s.URL == "" {
		t.Errorf("%+v", s)
	}
}

// world is a host, with a name server and an outside where web servers are.
type world struct {
	*nstest.NS
	t       *testing.T
	outside *nstest.NS
}

const token = "abcdefghijklmnopqrstuvwxyz234567"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{NS: nstest.New(t), t: t}
	w.outside = w.Peer()
	w.Veth("up0", w.outside, "eth0")
	w.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	w.Exec("ip", "addr", "add", "198.18.0.1/24", "dev", "up0")
	w.outside.Exec("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	for i := 2; i < 20; i++ {
		w.outside.Exec("ip", "addr", "add", fmt.Sprintf("198.18.0.%d/24", i), "dev", "eth0")
	}
	return w
}

// web serves on port 80 of an address of ns.
func (w *world) web(ns *nstest.NS, address string, h http.HandlerFunc) {
	w.t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", address+":80") })
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close() })
}

// dial connects from the host.
func (w *world) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	w.Do(func() { c, err = new(net.Dialer).DialContext(ctx, network, address) })
	return c, err
}

func (w *world) dns(records ...string) {
	w.t.Helper()
	prooftest.Start(w.t, func(c *exec.Cmd) (err error) { w.Do(func() { err = c.Start() }); return err }, "127.0.0.1", 53, records...)
}

// checker takes 192.0.2.0/24 for what it is, not public, and 198.18.0.0/24 likewise,
// unless private ones are allowed.
func (w *world) checker(private bool) *Checker {
	return &Checker{
		Resolver: Resolver{Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, Patience: hang.After, dial: w.dial},
		Own: func(a netip.Addr) bool {
			return a.IsLoopback() || a.String() == "192.0.2.1" || a.String() == "198.18.0.1"
		},
		Guests: func(a netip.Addr) bool { return netip.MustParsePrefix("10.213.0.0/16").Contains(a) },
		dial:   w.dial, AllowPrivate: private,
	}
}

// TestCheck looks for proofs that real name servers and web servers have.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns(
		"--txt-record=_sublet.dns.example.org,v=spf1 -all", "--txt-record=_sublet.dns.example.org,sublet="+token,
		"--txt-record=_sublet.bits.example.org,sublet=,"+token[:10]+","+token[10:],
		"--txt-record=_sublet.theirs.example.org,sublet=zzz",
		"--txt-record=_sublet.junk.example.org,hello",
		"--txt-record=proofs.example.net,sublet="+token, "--cname=_sublet.sent.example.org,proofs.example.net",
		"--host-record=file.example.org,198.18.0.2",
		"--host-record=second.example.org,198.18.0.3", "--host-record=second.example.org,198.18.0.2",
		"--host-record=lost.example.org,198.18.0.3", "--host-record=moved.example.org,198.18.0.4",
		"--host-record=wrong.example.org,198.18.0.5", "--host-record=broken.example.org,198.18.0.6",
		"--host-record=endless.example.org,198.18.0.7", "--host-record=header.example.org,198.18.0.8",
		"--host-record=closed.example.org,198.18.0.9", "--host-record=cut.example.org,198.18.0.10",
		"--host-record=vhost.example.org,198.18.0.11",
		"--host-record=own.example.org,192.0.2.1", "--host-record=self.example.org,127.0.0.1", "--host-record=guest.example.org,10.213.0.2",
		"--host-record=both.example.org,192.0.2.1", "--host-record=both.example.org,198.18.0.2",
	)
	answer := func(status int, body string) http.HandlerFunc {
		return func(out http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/.well-known/sublet-"+token || r.Method != http.MethodGet {
				t.Errorf("%s %s was asked for", r.Method, r.URL)
			}
			out.WriteHeader(status)
			_, _ = out.Write([]byte(body))
		}
	}
	w.web(w.outside, "198.18.0.2", answer(200, token+"\r\n"))
	w.web(w.outside, "198.18.0.3", answer(404, token))
	w.web(w.outside, "198.18.0.4", func(out http.ResponseWriter, r *http.Request) {
		http.Redirect(out, r, "http://198.18.0.2"+r.URL.Path, http.StatusFound)
	})
	w.web(w.outside, "198.18.0.5", answer(200, token+token))
	w.web(w.outside, "198.18.0.6", answer(503, token))
	w.web(w.outside, "198.18.0.7", func(out http.ResponseWriter, _ *http.Request) {
		for { // until the other side has enough
			if _, err := out.Write([]byte(strings.Repeat(token, 100))); err != nil {
				return
			}
		}
	})
	w.web(w.outside, "198.18.0.8", func(out http.ResponseWriter, _ *http.Request) {
		for i := range 100 {
			out.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
		}
	})
	w.web(w.outside, "198.18.0.10", func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Length", "1000")
		_, _ = out.Write([]byte(token))
	})
	w.web(w.outside, "198.18.0.11", func(out http.ResponseWriter, r *http.Request) {
		if r.Host == "vhost.example.org" && r.UserAgent() == "sublet" {
			_, _ = out.Write([]byte(token))
		}
	})
	served := func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write([]byte(token)) }
	w.web(w.NS, "192.0.2.1", served)
	for _, c := range []struct {
		name   string
		live   bool
		want   Outcome
		method vps.ProofMethod
		says   string
	}{
		{"dns.example.org", false, Proved, vps.ProofDNS, "the TXT record _sublet.dns.example.org has the token"},
		{"*.dns.example.org", false, Proved, vps.ProofDNS, "_sublet.dns.example.org"},
		{"bits.example.org", false, Proved, vps.ProofDNS, ""},
		{"sent.example.org", false, Proved, vps.ProofDNS, ""},
		{"theirs.example.org", false, Absent, "", "has a token, but not this one"},
		{"junk.example.org", false, Absent, "", "has no token; junk.example.org has no address"},
		{"none.example.org", false, Absent, "", "there is no TXT record _sublet.none.example.org; there is no name none.example.org"},
		{"*.file.example.org", false, Absent, "", "there is no TXT record _sublet.file.example.org"},
		{"file.example.org", false, Proved, vps.ProofFile, "the web server at 198.18.0.2 has the file"},
		{"second.example.org", false, Proved, vps.ProofFile, "198.18.0.2 has the file"},
		{"vhost.example.org", false, Proved, vps.ProofFile, ""},
		{"lost.example.org", false, Absent, "", "198.18.0.3 answers 404 for the file"},
		{"moved.example.org", false, Absent, "", "answers 302, and redirects are not followed"},
		{"wrong.example.org", false, Absent, "", "has something else in the file"},
		{"broken.example.org", false, Absent, "", "answers 503"},
		{"endless.example.org", false, Absent, "", "something else"},
		{"header.example.org", false, Absent, "", "does not answer as HTTP servers do"},
		{"closed.example.org", false, Absent, "", "198.18.0.9 refuses connections to port 80"},
		{"cut.example.org", false, Absent, "", "broke off"},
		{"own.example.org", false, Absent, "", "192.0.2.1, which is this host: who answers here may be anybody"},
		{"own.example.org", true, Proved, vps.ProofFile, "192.0.2.1 has the file"},
		{"self.example.org", false, Absent, "", "127.0.0.1, which is this host"},
		{"guest.example.org", false, Absent, "", "10.213.0.2, which guests of this host have"},
		{"guest.example.org", true, Absent, "", "10.213.0.2, which guests of this host have"},
		{"both.example.org", false, Proved, vps.ProofFile, "198.18.0.2 has the file"},
		{"elsewhere.example.com", false, Unknown, "", "no name server knows about _sublet.elsewhere.example.com: 127.0.0.1 answers REFUSED"},
	} {
		r := w.checker(true).Check(t.Context(), Question{Name: c.name, Token: token, Live: c.live})
		outcome, method := r.Outcome()
		if outcome != c.want || method != c.method || !strings.Contains(r.Message(), c.says) {
			t.Errorf("%s: %d by %q: %s", c.name, outcome, method, r.Message())
		}
	}
	// Nobody is asked at an address that is not public, and none of the host's own.
	for _, name := range []string{"file.example.org", "lost.example.org"} {
		r := w.checker(false).Check(t.Context(), Question{Name: name, Token: token, Live: true})
		if outcome, _ := r.Outcome(); outcome != Absent || !strings.Contains(r.Message(), "not a public address") {
			t.Errorf("%s: %d, %s", name, outcome, r.Message())
		}
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]bool{
		"sublet=" + token: {true, false}, " \"sublet=" + token + "\" ": {true, false}, "sublet=x": {false, true}, "sublet=": {false, true},
		"": {}, token: {}, "sublet=" + token + token: {false, true}, "xsublet=" + token: {}, "sublet= " + token: {false, true},
	} {
		if mine, others := tokens([]string{"v=spf1 -all", text, ""}, token); mine != want[0] || others != want[1] {
			t.Errorf("%q: %t, %t", text, mine, others)
		}
	}
	if mine, others := tokens([]string{"sublet=x", "sublet=" + token}, token); !mine || !others {
		t.Error("one of two")
	}
}

// TestOutcome has a place fall silent, and the other one say no.
func TestOutcome(t *testing.T) {
	t.Parallel()
	f := func(dns, file Outcome) []Finding {
		return []Finding{{vps.ProofDNS, dns, "d"}, {vps.ProofFile, file, "f"}}
	}
	for _, c := range []struct {
		r       Result
		want    Outcome
		method  vps.ProofMethod
		message string
	}{
		{Result{"", f(Proved, Absent)}, Proved, vps.ProofDNS, "d"},
		{Result{"", f(Absent, Proved)}, Proved, vps.ProofFile, "f"},
		{Result{"", f(Unknown, Absent)}, Absent, "", "d; f"},
		{Result{"", f(Unknown, Unknown)}, Unknown, "", "d; f"},
		{Result{vps.ProofDNS, f(Absent, Unknown)}, Absent, "", "d; f"},
		{Result{vps.ProofDNS, f(Unknown, Absent)}, Unknown, "", "d; f"},
		{Result{vps.ProofFile, f(Absent, Unknown)}, Unknown, "", "d; f"},
		{Result{vps.ProofFile, f(Unknown, Absent)}, Absent, "", "d; f"},
		{Result{vps.ProofFile, f(Proved, Unknown)}, Proved, vps.ProofDNS, "d"},
	} {
		if o, m := c.r.Outcome(); o != c.want || m != c.method || c.r.Message() != c.message {
			t.Errorf("%+v: %d, %q, %q", c.r, o, m, c.r.Message())
		}
	}
}

// FuzzJudge reads files that anybody may have made.
func FuzzJudge(f *testing.F) {
	f.Add(200, []byte(token))
	f.Add(200, []byte(" "+token+"\n"))
	f.Add(301, []byte(token))
	f.Add(500, []byte{})
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		o, message := judge(status, body, nil, token)
		if (o == Proved) != (status == http.StatusOK && strings.TrimSpace(string(body)) == token) || message == "" {
			t.Errorf("%d %q: %d, %q", status, body, o, message)
		}
		if strings.ContainsFunc(message, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is not printable", message)
		}
	})
}
