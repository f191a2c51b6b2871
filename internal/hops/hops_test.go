package hops

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sublet/internal/nstest"
	"sublet/internal/vps"
)

const name = "blog.example.org"

// world is a host with an edge's address and a guest behind it.
type world struct {
	*nstest.NS
	t     *testing.T
	guest *nstest.NS
	ca    *certificate
	roots *x509.CertPool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{NS: nstest.New(t), t: t}
	w.guest = w.Peer()
	w.Veth("sl-a", w.guest, "eth0")
	w.Exec("ip", "addr", "add", "10.213.0.1/24", "dev", "sl-a")
	w.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "lo")
	w.guest.Exec("ip", "addr", "add", "10.213.0.2/24", "dev", "eth0")
	w.ca = w.issue(nil, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
	w.roots = x509.NewCertPool()
	w.roots.AddCert(w.ca.leaf)
	return w
}

func (w *world) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	w.Do(func() { c, err = new(net.Dialer).DialContext(ctx, network, address) })
	return c, err
}

func (w *world) listen(ns *nstest.NS, address string) net.Listener {
	w.t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// certificate is one with its key.
type certificate struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate for the name, good for a year, and shaped otherwise.
func (w *world) issue(by *certificate, shape func(*x509.Certificate)) *certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "made for a test"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	if shape != nil {
		shape(template)
	}
	c := &certificate{key: key}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.leaf, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err == nil {
		c.leaf, err = x509.ParseCertificate(der)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// serveTLS has a server at the edge's address show certificates.
func (w *world) serveTLS(l net.Listener, chain ...*certificate) {
	shown := tls.Certificate{PrivateKey: chain[0].key}
	for _, c := range chain {
		shown.Certificate = append(shown.Certificate, c.leaf.Raw)
	}
	s := &http.Server{TLSConfig: &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName != name && h.ServerName != "" {
			return nil, errors.New("another name")
		}
		return &shown, nil
	}}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = s.ServeTLS(l, "", "") }()
	w.t.Cleanup(func() { _ = s.Close() })
}

func (w *world) serveHTTP(l net.Listener, status int) {
	s := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Host != name {
			out.WriteHeader(http.StatusMisdirectedRequest)
			return
		}
		out.WriteHeader(status)
	})}
	go func() { _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close() })
}

// facts are those of a domain for which all is well.
func facts() Facts {
	public := netip.MustParseAddr("192.0.2.1")
	return Facts{
		Name: name, Domain: &vps.Domain{Name: name}, Guest: "alice", Public: []netip.Addr{public}, Target: public, Ports: []uint16{80, 443},
		State: vps.StateRunning, Address: netip.MustParseAddr("10.213.0.2"),
	}
}

func (w *world) probes(answer ...string) Probes {
	return Probes{Dial: w.dial, Verify: SystemRoots(w.roots), Lookup: func(context.Context, string) (Answer, error) {
		var a Answer
		for _, s := range answer {
			if addr, err := netip.ParseAddr(s); err == nil {
				a.Addresses = append(a.Addresses, addr)
			} else {
				a.Names = append(a.Names, s)
			}
		}
		return a, nil
	}}
}

// expect checks findings: "HOP STATE part of the message", one for each in its order.
func expect(t *testing.T, what string, got []vps.Hop, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		state, says, _ := strings.Cut(want[i], ": ")
		ok = ok && string(got[i].Hop)+" "+string(got[i].State) == state && strings.Contains(got[i].Message+" | "+got[i].Remedy, says)
		ok = ok && (got[i].State != vps.HopFailed || got[i].Remedy != "")
	}
	if ok {
		return
	}
	t.Errorf("%s:", what)
	for _, h := range got {
		t.Logf("%s %s: %s | %s", h.Hop, h.State, h.Message, h.Remedy)
	}
}

// hop returns the findings of one hop.
func hop(all []vps.Hop, name vps.HopName) (found []vps.Hop) {
	for _, h := range all {
		if h.Hop == name {
			found = append(found, h)
		}
	}
	return found
}

// TestWay goes the way of a caller through a host that is broken here and there.
func TestWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := func() []vps.Hop { return Test(t.Context(), facts(), w.probes("192.0.2.1")) }

	expect(t, "an empty host", good(),
		"spec ok: leads to the guest alice, and is live", "dns ok: which is this host", "firewall ok: TCP port 443 and 80",
		"edge failed: at 192.0.2.1:443 nobody takes calls: connections are refused", "edge failed: at 192.0.2.1:80",
		"guest failed: port 443 of the guest alice does not answer: connections are refused", "guest failed: port 80",
		"certificate unknown: the edge does not take calls on port 443", "http unknown: the edge does not take calls on port 80")

	tlsEdge, httpEdge := w.listen(w.NS, "192.0.2.1:443"), w.listen(w.NS, "192.0.2.1:80")
	w.serveTLS(tlsEdge, w.issue(w.ca, nil))
	w.serveHTTP(httpEdge, http.StatusFound)
	expect(t, "a guest without servers", good(),
		"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: the edge takes calls at 192.0.2.1:443 and 192.0.2.1:80",
		"guest failed: start what serves port 443", "guest failed: ", "certificate unknown: port 443 of the guest does not answer", "http unknown: port 80 of the guest")
	w.listen(w.guest, ":443")
	expect(t, "a guest without one for HTTP", good(),
		"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest failed: port 80 of the guest", "guest ok: answers on port 443", "certificate ok: the certificate is for blog.example.org and good until", "http unknown: ")
	w.listen(w.guest, ":80")
	all := []string{"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest ok: runs, and answers on port 443 and 80", "certificate ok: ", "http ok: answered with status 302"}
	expect(t, "all is well", good(), all...)

	for what, c := range map[string]struct {
		spoil func(f *Facts)
		want  []string
	}{
		"nothing of it": {func(f *Facts) { f.Domain = nil }, []string{
			"spec failed: sublet domain add GUEST blog.example.org", "dns ok: ", "firewall unknown: ", "edge unknown: ", "guest unknown: ", "certificate unknown: ", "http unknown: ",
		}},
		"not live": {func(f *Facts) { f.NotLive, f.Remedy = "it waits for a proof", "make the record" }, []string{
			"spec failed: it waits for a proof | make the record", "dns ok: ", "firewall ok: ", "edge ok: ", "guest ok: ", "certificate unknown: not live", "http unknown: not live",
		}},
		"one of a suffix": {func(f *Facts) { f.Domain = &vps.Domain{Name: "*.example.org"} }, append([]string{"spec ok: led to the guest alice by its domain *.example.org"}, all[1:]...)},
		"the one for all": {func(f *Facts) { f.Name, f.Domain = "", &vps.Domain{Name: "*"} }, []string{
			"spec ok: a caller without a name is led to the guest alice by its domain *", "dns unknown: no name to look up", "firewall ok: ", "edge ok: ", "guest ok: ", "certificate ok: ", "http failed: the edge does not know the name",
		}},
		"blocked": {func(f *Facts) { f.Blocked = map[uint16]Fault{443: {"ufw drops it", "ufw allow 443/tcp"}} }, []string{
			"spec ok: ", "dns ok: ", "firewall failed: ufw drops it | ufw allow 443/tcp", "firewall ok: TCP port 80;", "edge ok: ", "guest ok: ", "certificate ok: ", "http ok: ",
		}},
		"no edge": {func(f *Facts) { f.EdgeFault = "the edge does not run" }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge failed: the edge does not run", "guest ok: ", "certificate unknown: ", "http unknown: ",
		}},
		"a port that the edge does not have": {func(f *Facts) { f.Ports = []uint16{443} }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge failed: does not listen on port 80", "edge ok: at 192.0.2.1:443", "guest ok: ", "certificate ok: ", "http unknown: ",
		}},
		"a port that somebody else has": {func(f *Facts) { f.Ports, f.Closed = []uint16{443}, map[uint16]string{80: "apache has it"} }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge failed: does not listen on port 80: apache has it", "edge ok: ", "guest ok: ", "certificate ok: ", "http unknown: ",
		}},
		"a port that was handed to it": {func(f *Facts) { f.Ports, f.Direct = []uint16{80}, map[uint16]bool{443: true} }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: calls at 192.0.2.1:443 go to the guest past the edge", "edge ok: the edge takes calls at 192.0.2.1:80", "guest ok: ", "certificate ok: ", "http ok: ",
		}},
		"a port that was handed to another": {func(f *Facts) {
			f.Ports, f.Handed, f.Blocked = []uint16{80}, map[uint16]bool{443: true}, map[uint16]Fault{443: {"port 443 leads to bob alone", "sublet port remove"}}
		}, []string{
			"spec ok: is live", "dns ok: ", "firewall failed: leads to bob alone | sublet port remove", "firewall ok: TCP port 80;", "edge unknown: as port 443 leads to another guest", "edge ok: at 192.0.2.1:80", "guest ok: ", "certificate unknown: ", "http ok: ",
		}},
		"all ports handed to another": {func(f *Facts) {
			fault := Fault{"it leads to bob alone", "sublet port remove"}
			f.Ports, f.Handed, f.Blocked = []uint16{}, map[uint16]bool{443: true, 80: true}, map[uint16]Fault{443: fault, 80: fault}
		}, []string{
			"spec failed: its ports lead to others alone | give", "dns ok: ", "firewall failed: ", "firewall failed: ", "edge unknown: port 443", "edge unknown: port 80", "guest ok: ", "certificate unknown: ", "http unknown: ",
		}},
		"a port whose calls go by another domain": {func(f *Facts) {
			f.Domain.Port, f.Other = 4430, map[uint16]string{443: "blog.example.org:443"}
		}, []string{
			"spec ok: is live", "spec unknown: calls on port 443 go by the domain blog.example.org:443 | test that with --listen 443", "dns ok: ", "firewall ok: TCP port 80;", "edge ok: takes calls at 192.0.2.1:80",
			"guest ok: answers on port 80", "certificate unknown: go by the domain blog.example.org:443", "http ok: ",
		}},
		"suspended by a quota": {func(f *Facts) {
			f.Restraint = &vps.Restraint{Quota: "guest/alice", Action: vps.ActionSuspend, Until: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}
		}, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest failed: the quota guest/alice is used up until 2026-12-01 00:00 UTC | add to the quota with `sublet quota topup`", "certificate unknown: ", "http unknown: ",
		}},
		"stopped by a quota, which a call does not mend": {func(f *Facts) {
			f.State, f.Domain.Wake, f.Restraint = vps.StateStopped, true, &vps.Restraint{Quota: "host", Action: vps.ActionStop}
		}, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest failed: because the quota host is used up", "certificate unknown: ", "http unknown: ",
		}},
		"another router has its place": {func(f *Facts) { f.Disabled, f.Ports = true, []uint16{} }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: the edge is disabled, and another router takes calls at 192.0.2.1:443 and 192.0.2.1:80", "guest ok: ", "certificate ok: ", "http ok: ",
		}},
		"another router is to have its place": {func(f *Facts) {
			f.Disabled, f.Ports, f.Domain.Listen, f.Domain.Port = true, []uint16{}, 993, 443
		}, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge failed: the edge is disabled, and at 192.0.2.1:993 nobody else takes calls: connections are refused | start the router", "guest ok: ", "certificate unknown: port 993", "http unknown: ",
		}},
		"stopped": {func(f *Facts) { f.State = vps.StateStopped }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest failed: it is stopped | start it with `sublet start alice`", "certificate unknown: the guest does not run", "http unknown: the guest does not run",
		}},
		"asleep": {func(f *Facts) { f.State, f.Domain.Wake = vps.StateStopped, true }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest unknown: a call starts it", "certificate unknown: ", "http unknown: ",
		}},
		"crashed, which a call does not mend": {func(f *Facts) { f.State, f.Domain.Wake = vps.StateCrashed, true }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest failed: it is crashed", "certificate unknown: ", "http unknown: ",
		}},
		"behind a proxy": {func(f *Facts) { f.Header = true }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest ok: ", "certificate unknown: trusted_proxies", "http unknown: trusted_proxies",
		}},
		"on another port": {func(f *Facts) {
			f.Domain.Listen, f.Ports, f.Domain.Port = 993, []uint16{993}, 443
		}, []string{
			"spec ok: blog.example.org:993 leads to", "dns ok: ", "firewall ok: TCP port 993;", "edge failed: at 192.0.2.1:993 nobody", "guest ok: answers on port 443", "certificate unknown: port 993", "http unknown: for TLS alone",
		}},
		"terminated": {func(f *Facts) { f.Domain.Terminate = true }, []string{
			"spec ok: ", "dns ok: ", "firewall ok: ", "edge ok: ", "guest ok: answers on port 80", "certificate ok: ", "http ok: ",
		}},
	} {
		f := facts()
		c.spoil(&f)
		expect(t, what, Test(t.Context(), f, w.probes("192.0.2.1")), c.want...)
	}
}

// TestNames has a name lead to all sorts of places.
func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		answer []string
		want   string
	}{
		{[]string{"192.0.2.1"}, "dns ok: blog.example.org leads to 192.0.2.1, which is this host"},
		{[]string{"www.example.net", "192.0.2.1"}, "dns ok: blog.example.org → www.example.net leads to 192.0.2.1"},
		{[]string{"a\x1b[31m.example.net", "192.0.2.1"}, `dns ok: "a\x1b[31m.example.net" leads`},
		{[]string{"::ffff:192.0.2.1"}, "dns ok: "},
		{[]string{"104.16.0.1", "2606:4700::1"}, "dns unknown: leads to 104.16.0.1, 2606:4700::1, which is not this host: that is right behind a CDN"},
		{[]string{"192.0.2.1", "2606:4700::1"}, "dns unknown: leads to this host by 192.0.2.1, and elsewhere by 2606:4700::1"},
		{[]string{"127.0.0.1"}, "dns failed: which nobody outside can call | set its A and AAAA records to 192.0.2.1"},
		{[]string{"192.0.2.1", "10.0.0.1"}, "dns failed: leads to 10.0.0.1, which nobody"},
		{[]string{"192.0.2.1", "2001:db8:5::7"}, "dns ok: callers of 2001:db8:5::7 come to the guest itself"},
	} {
		f := facts()
		f.Prefix6 = netip.MustParsePrefix("2001:db8:5::/64")
		expect(t, strings.Join(c.answer, " "), hop(Test(t.Context(), f, w.probes(c.answer...)), vps.HopDNS), c.want)
	}
	f := facts()
	f.Public, f.Behind = nil, true
	expect(t, "behind a translation", hop(Test(t.Context(), f, w.probes("198.51.100.7")), vps.HopDNS), "dns unknown: cannot be told, as its own addresses are translated on the way to it | name the host's public address")
	for err, want := range map[error]string{
		&NoNameError{"www.example.net"}:                                  "dns failed: www.example.net leads to no address | set its A and AAAA records to 192.0.2.1",
		vps.Errorf(vps.CodeUnavailable, "no name server knows about it"): "dns unknown: no name server knows about it | see whether the name servers",
	} {
		p := w.probes()
		p.Lookup = func(context.Context, string) (Answer, error) { return Answer{}, err }
		expect(t, err.Error(), hop(Test(t.Context(), facts(), p), vps.HopDNS), want)
	}
}

// TestCertificates has servers show certificates of all kinds.
func TestCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	between := w.issue(w.ca, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid, c.DNSNames = true, true, nil })
	stranger := w.issue(nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid = true, true
		c.Subject.CommonName = "a stranger"
	})
	day := 24 * time.Hour
	w.listen(w.guest, ":993")
	port := uint16(20000)
	next := func() (net.Listener, Facts) {
		port++
		f := facts()
		f.Domain.Listen, f.Domain.Port, f.Ports = port, 993, []uint16{port}
		return w.listen(w.NS, netip.AddrPortFrom(f.Target, port).String()), f
	}
	for what, c := range map[string]struct {
		chain []*certificate
		want  string
	}{
		"good":              {[]*certificate{w.issue(w.ca, nil)}, "certificate ok: is for blog.example.org and good until "},
		"by two":            {[]*certificate{w.issue(between, nil), between}, "certificate ok: "},
		"without the other": {[]*certificate{w.issue(between, nil)}, "certificate failed: nobody whom this host trusts signed the certificate, or it is shown without the certificates between them"},
		"a stranger's":      {[]*certificate{w.issue(stranger, nil), stranger}, `certificate failed: nobody whom this host trusts signed the certificate: its issuer is "CN=a stranger"`},
		"its own":           {[]*certificate{w.issue(nil, nil)}, "certificate failed: signed by itself, so that browsers warn"},
		"expired":           {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day) })}, "certificate failed: expired on "},
		"of tomorrow":       {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(day) })}, "certificate failed: valid from "},
		"for a week":        {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(7 * day) })}, "certificate ok: but only until "},
		"another name's":    {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"x.example.org", "*.y.example.org"} })}, "certificate failed: is for x.example.org, *.y.example.org, and not for blog.example.org"},
		"a suffix's":        {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"*.example.org"} })}, "certificate ok: "},
		"without names":     {[]*certificate{w.issue(w.ca, func(c *x509.Certificate) { c.DNSNames = nil })}, "certificate failed: is for no name"},
	} {
		l, f := next()
		w.serveTLS(l, c.chain...)
		expect(t, what, hop(Test(t.Context(), f, w.probes("192.0.2.1")), vps.HopCertificate), c.want)
	}
	for what, c := range map[string]struct {
		talk func(net.Conn)
		want string
	}{
		"no TLS":        {func(c net.Conn) { _, _ = c.Write([]byte("220 hello there\r\n")) }, "certificate failed: does not speak TLS | let port 993 of the guest speak TLS"},
		"unknown name":  {func(c net.Conn) { _, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 112}) }, "certificate failed: does not know the name"},
		"no guest":      {func(c net.Conn) { _, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 80}) }, "certificate failed: does not reach the guest"},
		"another fault": {func(c net.Conn) { _, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 40}) }, "certificate failed: the other side says handshake failure"},
		"the end":       {func(net.Conn) {}, "certificate failed: "},
	} {
		l, f := next()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c.talk(conn)
				// So that what was written comes before the end.
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		}()
		expect(t, what, hop(Test(t.Context(), f, w.probes("192.0.2.1")), vps.HopCertificate), c.want)
		// What the edge knows of its own certificate says more than an alert.
		f.Certificate = vps.Certificate{Name: f.Name, State: vps.CertificateFailed, Error: "the authority is down"}
		expect(t, what+", of the edge", hop(Test(t.Context(), f, w.probes("192.0.2.1")), vps.HopCertificate), "certificate failed: there is no certificate: the authority is down | when that is mended")
	}
}

// TestHTTP has the edge answer in its ways.
func TestHTTP(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		200: "http ok: status 200", 404: "http ok: status 404", 308: "http ok: status 308",
		421: "http failed: does not know the name blog.example.org", 503: "http failed: status 503 | see what serves port 80",
	} {
		w := newWorld(t)
		w.serveHTTP(w.listen(w.NS, "192.0.2.1:80"), status)
		w.listen(w.guest, ":80")
		expect(t, http.StatusText(status), hop(Test(t.Context(), facts(), w.probes("192.0.2.1")), vps.HopHTTP), want)
	}
}

// FuzzJudge reads certificates that anybody may have made.
func FuzzJudge(f *testing.F) {
	f.Add([]byte{})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}}, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		facts := facts()
		way := &tester{f: &facts, p: &Probes{Now: time.Now, Verify: SystemRoots(x509.NewCertPool())}}
		way.judge([]*x509.Certificate{c})
		if len(way.found) != 1 || way.found[0].State != vps.HopFailed {
			t.Errorf("%+v", way.found)
		}
		if strings.ContainsFunc(way.found[0].Message, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is not printable", way.found[0].Message)
		}
	})
}
