package edge_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

func TestTLSGoesByName(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "blog.example.org", Port: serveTLS(t, "alice")}, vps.Domain{Name: "*.alice.example.org", Port: serveTLS(t, "alice-suffix")})
	s.guest("bob", vps.Domain{Name: "*.example.org", Port: serveTLS(t, "bob")}, vps.Domain{Name: "mail.example.org", Listen: 993, Port: serveTLS(t, "bob-mail")})
	s.set()
	for name, want := range map[string]string{
		"blog.example.org": "alice", "BLOG.example.org": "alice", "x.y.alice.example.org": "alice-suffix",
		"alice.example.org": "bob", "other.example.org": "bob", "mail.example.org": "bob",
	} {
		c, err := handshake(s.dial(webTLS), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := ask(t, c, "hello"); got != want+": hello" {
			t.Errorf("%s: got %q, want %s", name, got, want)
		}
	}
	c, err := handshake(s.dial(imaps), "mail.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "hello"); got != "bob-mail: hello" {
		t.Errorf("got %q", got)
	}
	for _, name := range []string{"example.org", "example.com", ""} {
		if _, err := handshake(s.dial(webTLS), name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := handshake(s.dial(imaps), "blog.example.org"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a web domain is on another port: %v", err)
	}
}

func TestDefaultGuest(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "*", Port: serveTLS(t, "default")})
	s.guest("bob", vps.Domain{Name: "bob.example.org", Port: serveTLS(t, "bob")})
	s.set()
	for name, want := range map[string]string{"": "default", "other": "default", "bob.example.org": "bob"} {
		c, err := handshake(s.dial(webTLS), name)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if got := ask(t, c, "x"); got != want+": x" {
			t.Errorf("%q: got %q, want %s", name, got, want)
		}
	}
}

func TestGuestsThatAreNotThere(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	dead := deadPort(t)
	s.guest("alice", vps.Domain{Name: "dead.example.org", Port: dead, HTTPPort: dead})
	s.guest("bob", vps.Domain{Name: "stopped.example.org"}).Running = false
	s.set()
	for _, name := range []string{"dead.example.org", "stopped.example.org"} {
		if _, err := handshake(s.dial(webTLS), name); err == nil || !strings.Contains(err.Error(), "internal error") {
			t.Errorf("%s: %v", name, err)
		}
		resp, err := s.client().Get("http://" + name)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %v", name, resp)
		}
	}
}

// TestOpenSSL: the client that people try things with, in versions 1.2 and 1.3.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "a.example.org")})
	s.set()
	for _, flags := range [][]string{{"-tls1_2"}, {"-tls1_3"}, {"-tls1_3", "-split_send_frag", "512"}} {
		ctx, cancel := context.WithTimeout(t.Context(), hang.After)
		defer cancel()
		args := append([]string{"s_client", "-connect", s.address(webTLS), "-quiet"}, flags...)
		c := exec.CommandContext(ctx, "openssl", append(args, "-servername", "a.example.org")...)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(in, "hello\n")
		if got, err := bufio.NewReader(out).ReadString('\n'); got != "a.example.org: hello\n" {
			t.Errorf("%s: %q %v", flags, got, err)
		}
		_ = c.Process.Kill() // with -quiet it does not end when its input does
		_ = c.Wait()
		said, _ := exec.CommandContext(ctx, "openssl", append(args, "-servername", "nobody.example.org")...).CombinedOutput()
		if !strings.Contains(string(said), "unrecognized name") {
			t.Errorf("%s: %s", flags, said)
		}
	}
}

// TestWrk: many requests at once on many connections are all answered.
func TestWrk(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.CallerRate = 100_000
	s.guest("alice", vps.Domain{Name: "127.0.0.1.example.org", HTTPPort: serve(t, named("alice"), false)})
	s.set()
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c50", "-d1s", "-H", "Host: 127.0.0.1.example.org", "http://"+s.address(web)+"/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Requests/sec") || strings.Contains(string(out), "Non-2xx") || strings.Contains(string(out), "Socket errors") {
		t.Errorf("%v %s", err, out)
	}
	if refused := s.server.Stats().Guests["alice"].Refused; len(refused) > 0 {
		t.Error(refused)
	}
}
