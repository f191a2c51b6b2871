package terminate_test

import (
	"crypto/tls"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/edge/terminate/acmetest"
	"sublet/internal/vps"
)

// TestGet: certificates come for names that are asked for on port 80 alone, on
// port 443 alone, and for suffixes by the DNS; what is kept has the modes that
// keys need; whoever is not answered for gets an alert at once.
func TestGet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pebble(acmetest.Options{})
	dir := w.folder("certs")

	byHTTP := w.edge(edgeOptions{Dir: dir}, w.http)
	byHTTP.set(w.acme(), "http.example.org")
	byHTTP.await(vps.CertificateValid, "http.example.org")
	byHTTP.kill()

	e := w.edge(edgeOptions{Dir: dir}, w.tls)
	names := []string{"http.example.org", "tls.example.org", "*.wild.example.org", "*.friend.example.org"}
	e.set(w.acme(), names...)
	e.await(vps.CertificateValid, names...)
	for _, n := range names {
		w.serial(strings.Replace(n, "*", "any", 1))
		s := e.status(n)
		if s.Error != "" || !strings.Contains(s.Issuer, "Pebble") || time.Until(s.Expires) < 80*24*time.Hour {
			t.Errorf("status of %s: %+v", n, s)
		}
	}
	w.call("wild.example.org", nil, "unrecognized name")
	w.call("a.b.wild.example.org", nil, "unrecognized name") // a suffix stands for one label
	w.call("other.example.org", nil, "unrecognized name")
	w.call("", nil, "unrecognized name")

	for name, fi := range w.files(dir) {
		want := os.FileMode(0o600)
		if fi.IsDir() {
			want = 0o700 | os.ModeDir
		}
		if fi.Mode() != want || fi.Sys().(*syscall.Stat_t).Uid != edgeUID {
			t.Errorf("%s has %v of %d", name, fi.Mode(), fi.Sys().(*syscall.Stat_t).Uid)
		}
		if strings.Contains(name, "/challenges/") && !fi.IsDir() || strings.HasSuffix(name, ".lock") {
			t.Errorf("%s was left", name)
		}
	}
	if got := w.Exec("kdig", "+short", "@127.0.0.1", "TXT", "_acme-challenge.wild.example.org"); got != "" {
		t.Errorf("in the DNS was left: %s", got)
	}
	if got := w.keys(dir); len(got) != len(names) {
		t.Errorf("keys: %v", got)
	}
}

// TestHandshakes: what callers may ask for.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pebble(acmetest.Options{})
	e := w.edge(edgeOptions{Dir: w.folder("certs")}, w.http, w.tls)
	e.set(w.acme(), "web.example.org", "away.example.org")
	e.await(vps.CertificateValid, "web.example.org")
	for _, tt := range []struct {
		change   func(*tls.Config)
		protocol string
		want     string
	}{
		{func(*tls.Config) {}, "", ""},
		{func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }, "h2", ""},
		{func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, "http/1.1", ""},
		{func(c *tls.Config) { c.NextProtos = []string{"imap"} }, "", "no application protocol"},
		{func(c *tls.Config) { c.NextProtos = []string{edge.ChallengeProtocol} }, "", "internal error"},
		{func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "", ""},
		{func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "", "protocol version"},
	} {
		if c := w.call("web.example.org", tt.change, tt.want); c.NegotiatedProtocol != tt.protocol {
			t.Errorf("%q was agreed, and not %q", c.NegotiatedProtocol, tt.protocol)
		}
	}
	w.call("WEB.example.org", nil, "")
	w.call("away.example.org", nil, "internal error") // there is none yet
}

// TestRenew: certificates that live for seconds are renewed before they end, by a
// new key, and callers get the new one; those of a name that is gone are not.
func TestRenew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pebble(acmetest.Options{Validity: 12 * time.Second})
	dir := w.folder("certs")
	e := w.edge(edgeOptions{Dir: dir, RenewCheck: 200 * time.Millisecond}, w.http, w.tls)
	e.set(w.acme(), "gone.example.org", "stays.example.org")
	e.await(vps.CertificateValid, "gone.example.org", "stays.example.org")
	e.set(w.acme(), "stays.example.org")
	w.await("an end", func() bool { return e.status("gone.example.org").Name == "" })
	w.call("gone.example.org", nil, "unrecognized name")
	key := func(name string) string {
		for path, fi := range w.files(dir) {
			if strings.HasSuffix(path, "/"+name+".key") {
				return fi.ModTime().String()
			}
		}
		return ""
	}
	gone, stays := key("gone.example.org"), key("stays.example.org")
	serials := []string{w.serial("stays.example.org")}
	for len(serials) < 3 {
		before := e.status("stays.example.org").Expires
		w.await("a renewal", func() bool { return e.status("stays.example.org").Expires.After(before) })
		if time.Now().After(before) {
			t.Errorf("it was renewed after its end at %v", before)
		}
		serials = append(serials, w.serial("stays.example.org"))
	}
	if slices.Sort(serials); len(slices.Compact(serials)) != 3 {
		t.Errorf("serials: %v", serials)
	}
	if key("stays.example.org") == stays {
		t.Error("the key stayed the same")
	}
	if key("gone.example.org") != gone {
		t.Error("a name that is gone was renewed")
	}
}

// TestRestart: a process that is killed leaves what the next one needs, also amid
// getting a certificate; what is damaged is got anew; an authority that forgot us
// is told again.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pebble := w.pebble(acmetest.Options{})
	dir := w.folder("certs")
	e := w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	e.set(w.acme(), "a.example.org")
	e.await(vps.CertificateValid, "a.example.org")
	serial := w.serial("a.example.org")

	// The next one is killed while it holds the lock of b, and waits for the DNS.
	e.set(w.acme(), "a.example.org", "*.b.example.org")
	w.await("an order", func() bool {
		for name := range w.files(dir) {
			if strings.HasPrefix(name, "/locks/issue_cert_") {
				return true
			}
		}
		return false
	})
	e.kill()

	pebble.Stop() // and forgets all accounts
	e = w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	e.set(w.acme(), "a.example.org")
	e.await(vps.CertificateValid, "a.example.org")
	if got := w.serial("a.example.org"); got != serial {
		t.Errorf("a restart brought another certificate: %s, was %s", got, serial)
	}

	w.pebble(acmetest.Options{})
	e.set(w.acme(), "a.example.org", "*.b.example.org")
	e.await(vps.CertificateValid, "*.b.example.org")
	e.kill()

	for name := range w.files(dir) {
		if strings.HasSuffix(name, "/a.example.org.crt") {
			if err := os.Truncate(dir+name, 100); err != nil {
				t.Fatal(err)
			}
		}
	}
	e = w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	e.set(w.acme(), "a.example.org")
	e.await(vps.CertificateValid, "a.example.org")
	if got := w.serial("a.example.org"); got == serial {
		t.Error("a damaged certificate is served")
	}
}

// TestHandover: while one process is replaced by another, either answers the
// authority for both, and one certificate is got.
func TestHandover(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pebble(acmetest.Options{})
	dir := w.folder("certs")
	before := w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	before.set(w.acme(), "a.example.org")
	before.await(vps.CertificateValid, "a.example.org")

	// The old one gets nothing any more, and the new one has no listeners yet.
	names := []string{"a.example.org", "b.example.org", "c.example.org"}
	fault := w.acme()
	fault.Fault = "the old one gets nothing"
	before.set(fault, names...)
	before.await(vps.CertificateFailed, "b.example.org", "c.example.org")
	before.say(order{Close: true})
	after := w.edge(edgeOptions{Dir: dir})
	after.set(w.acme(), names...)
	after.await(vps.CertificateValid, names...)
	w.serial("a.example.org")
	before.kill()

	// Both accept, and both want the same.
	before, both := w.edge(edgeOptions{Dir: dir}, w.http, w.tls), w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	names = append(names, "d.example.org", "e.example.org", "f.example.org")
	both.set(w.acme(), names...)
	before.set(w.acme(), names...)
	before.await(vps.CertificateValid, names...)
	both.await(vps.CertificateValid, names...)
	for _, n := range names {
		if a, b := before.status(n).Expires, both.status(n).Expires; !a.Equal(b) {
			t.Errorf("%s ends at %v and at %v", n, a, b)
		}
	}
	if got := w.keys(dir); len(got) != len(names) {
		t.Errorf("keys: %v", got)
	}
}

// TestFailures: each is told in a sentence, is not tried over and over, and
// mended it is tried again at once.
func TestFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge(edgeOptions{Dir: w.folder("certs")}, w.http, w.tls)
	const name, suffix, away = "a.example.org", "*.s.example.org", "away.example.org"
	fails := func(a edge.ACME, name, why string) {
		t.Helper()
		e.set(a, name)
		w.await(why, func() bool {
			s := e.status(name)
			return s.State == vps.CertificateFailed && strings.Contains(s.Error, why) && time.Until(s.Retry) > 30*time.Minute
		})
	}
	fails(w.acme(), name, "127.0.0.1:14000 cannot be reached: connection refused")
	a := w.acme()
	a.Directory = "https://ca.example.com/dir"
	fails(a, name, "ca.example.com is not found in the DNS")
	a.Fault = "the key cannot be read"
	fails(a, name, a.Fault)

	pebble := w.pebble(acmetest.Options{Bound: true})
	a = w.acme()
	a.Roots = ""
	fails(a, name, "signed by nobody that this host trusts")
	fails(w.acme(), name, "gives certificates to accounts that it knows only")
	a = w.acme()
	a.EABKeyID, a.EABKey = acmetest.EABKeyID, acmetest.EABKey
	fails(a, away, "could not check that away.example.org is served here; lead it to this host")
	b := a
	b.DNSServer = ""
	fails(b, suffix, "need a DNS server that takes updates")
	b = a
	b.DNSKeyName = "other.example.org"
	fails(b, suffix, "it takes none with the key other.example.org. (hmac-sha256)")
	b.DNSKeyName = "unknown.example.org"
	fails(b, suffix, "it takes none with the key unknown.example.org. (hmac-sha256)")
	b.DNSKeyName, b.DNSKey = a.DNSKeyName, "YW5vdGhlcg=="
	fails(b, suffix, "the secret of the key sublet.example.org. is another one there")
	fails(a, "*.x.example.net", "does not take updates of example.net.")

	e.set(a, name, suffix)
	e.await(vps.CertificateValid, name, suffix)
	if s := e.status(name); s.Error != "" || !s.Retry.IsZero() {
		t.Errorf("an error was left: %+v", s)
	}

	// Another authority does not answer: the certificate that is there is served.
	pebble.Stop()
	e.set(w.acme(), name)
	w.await("a failure", func() bool { return e.status(name).State == vps.CertificateValid })
	a.Directory = "https://127.0.0.1:14000/other"
	e.set(a, name)
	w.await("a failure", func() bool { return e.status(name).Error != "" })
	if s := e.status(name); s.State != vps.CertificateValid {
		t.Errorf("the one that is there is gone: %+v", s)
	}
	w.serial(name)
}

// TestFullDisk: nothing is asked for that cannot be kept.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pebble(acmetest.Options{})
	dir := w.folder("certs")
	w.Exec("mount", "-t", "tmpfs", "-o", "size=256k,mode=700,uid=109871,gid=109871", "tmpfs", dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	w.Exec("sh", "-c", "! cat /dev/zero > "+dir+"/full 2>/dev/null")
	e := w.edge(edgeOptions{Dir: dir}, w.http, w.tls)
	e.set(w.acme(), "a.example.org")
	w.await("a failure", func() bool { return strings.Contains(e.status("a.example.org").Error, "the disk is full") })
	w.Exec("rm", dir+"/full")
	e.say(order{Retry: time.Now()})
	e.await(vps.CertificateValid, "a.example.org")
}
