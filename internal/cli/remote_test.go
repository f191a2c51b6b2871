package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/door"
)

// TestOverNetwork runs verbs against a daemon's door, as from another machine.
func TestOverNetwork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := door.Open(door.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := d.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := populate(t)
	b := backend{w.fake}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	server := api.NewServer(api.Backend{Desired: b, Observed: b, Consoles: b, Images: b, Kernels: b, Auditor: w.fake}, api.ServerOptions{Version: "1.2.3"})
	go func() { ended <- server.Serve(ctx, ln, d.Guard, door.Limit) }()
	t.Cleanup(func() {
		cancel()
		if err := awaitChan(t, ended, "end of the server"); err != nil {
			t.Error(err)
		}
	})
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	right := map[string]string{
		"SUBLET_REMOTE": address, "SUBLET_CA": filepath.Join(dir, "cert.pem"),
		"SUBLET_TOKEN_FILE": write("mine", "# of the daemon in Frankfurt\n\n"+string(own), 0o600),
	}
	w.options.Dial = func(socket string) Client {
		if socket != "/other.sock" {
			t.Errorf("the socket %s is dialled", socket)
		}
		return w.fake
	}
	run := func(change map[string]string, code int, says string, args ...string) {
		t.Helper()
		w.options.Env = func(name string) string {
			if v, ok := change[name]; ok {
				return v
			}
			return right[name]
		}
		got := w.run(t.Context(), args...)
		if all := w.out.String() + w.errors.String(); got != code || !strings.Contains(all, says) {
			t.Errorf("%v sublet %s: exit code %d, want %d; says, without %q:\n%s", change, strings.Join(args, " "), got, code, says, all)
		}
		if strings.Contains(w.errors.String(), strings.TrimSpace(string(own))) {
			t.Error("the token is shown")
		}
	}
	run(nil, 0, "daemon 1.2.3", "version")
	run(nil, 0, "noports  crashed", "list")
	run(nil, 0, "guest alice changed", "port", "add", "alice", "81:81")
	run(nil, 0, "three", "logs", "alice", "-n", "1")
	run(nil, 0, "guest alice\n", "export")
	run(nil, 0, "alice runs", "wait", "alice")
	run(nil, 1, "ATTACK ON THE JAIL", "net", "audit")
	run(nil, 1, "attacking the host of "+address+" from", "net", "audit")
	run(nil, 0, "12 packets dropped", "events")
	run(nil, 1, "there is no UML kernel", "doctor") // of the daemon's host
	run(nil, 0, "alice\nbob\n", "__complete", "stop", "")
	run(nil, 0, "ssh -p", "ssh", "--print", "alice")
	stream := newStream()
	w.console = stream
	w.options.Stdin = strings.NewReader("")
	go func() {
		_, _ = io.WriteString(stream.guest, "alice login: ")
		_ = stream.guest.Close()
	}()
	run(nil, 0, "alice login: ", "console", "alice", "--read-only")
	stream = newStream()
	w.console = stream
	w.options.Stdin = strings.NewReader("ls\n")
	heard := make(chan string, 1)
	go func() {
		for !strings.Contains(stream.text(), "\n") {
			<-stream.got
		}
		heard <- stream.text()
		_ = stream.guest.Close()
	}()
	run(nil, 0, "", "console", "alice")
	if got := awaitChan(t, heard, "what was typed"); got != "ls\n" {
		t.Errorf("the guest was typed %q", got)
	}
	run(nil, 0, "noports", "list", "--socket", "/other.sock")
	run(map[string]string{"SUBLET_REMOTE": "", "SUBLET_TOKEN_FILE": "", "SUBLET_CA": ""}, 0, "noports", "list",
		"--remote", address, "--token-file", right["SUBLET_TOKEN_FILE"], "--ca", right["SUBLET_CA"])

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, value string
		code        int
		says        string
	}{
		{"SUBLET_REMOTE", "https://" + address, ExitUsage, "write HOST:PORT alone"},
		{"SUBLET_REMOTE", "http://" + address + "/", ExitUsage, "for example " + address + " (it is always TLS)"},
		{"SUBLET_REMOTE", "vps1", ExitUsage, "write HOST:PORT"},
		{"SUBLET_REMOTE", ":8443", ExitUsage, "write HOST:PORT"},
		{"SUBLET_REMOTE", "::1:8443", ExitUsage, "[2001:db8::5]:8443"},
		{"SUBLET_REMOTE", "me@vps1:8443", ExitUsage, "write HOST:PORT"},
		{"SUBLET_REMOTE", "vps1:https", ExitUsage, "is not a port"},
		{"SUBLET_REMOTE", "vps1:99999", ExitUsage, "is not a port"},
		{"SUBLET_REMOTE", free.Addr().String(), ExitUnavailable, "serve --listen"},
		{"SUBLET_REMOTE", strings.TrimPrefix(plain.URL, "http://"), ExitUnavailable, "does not speak TLS"},
		{"SUBLET_TOKEN_FILE", "", ExitUsage, "--token-file"},
		{"SUBLET_TOKEN_FILE", filepath.Join(dir, "nothing"), ExitUsage, "does not exist"},
		{"SUBLET_TOKEN_FILE", dir, ExitUsage, "is not a file"},
		{"SUBLET_TOKEN_FILE", pipe, ExitUsage, "is not a file"},
		{"SUBLET_TOKEN_FILE", write("blank", "two words\n", 0o600), ExitUsage, "has a blank"},
		{"SUBLET_TOKEN_FILE", write("control", "a\x01b\n", 0o600), ExitUsage, "another character"},
		{"SUBLET_TOKEN_FILE", write("binary", "a\x00b\n", 0o600), ExitUsage, "is not text"},
		{"SUBLET_TOKEN_FILE", write("large", strings.Repeat("0", maxCredential+1), 0o600), ExitUsage, "is larger than 1MiB"},
		{"SUBLET_TOKEN_FILE", write("open", string(own), 0o640), ExitUsage, "chmod 600"},
		{"SUBLET_TOKEN_FILE", write("empty", "# none\n", 0o600), ExitUsage, "no token in"},
		{"SUBLET_TOKEN_FILE", write("wrong", strings.Repeat("0", 64), 0o600), ExitDenied, "does not take this token"},
		{"SUBLET_CA", "", ExitDenied, "not trusted"},
		{"SUBLET_CA", filepath.Join(dir, "nothing"), ExitUsage, "does not exist"},
		{"SUBLET_CA", filepath.Join(dir, "mine"), ExitUsage, "no certificate in"},
		{"SUBLET_CA", filepath.Join(dir, "key.pem"), ExitUsage, "is a private key"},
	} {
		run(map[string]string{c.name: c.value}, c.code, c.says, "list")
	}
	gone := map[string]string{"SUBLET_REMOTE": free.Addr().String()}
	run(gone, 0, "daemon not known: nobody listens on", "version")
	w.options.Doctor = func(context.Context) []api.Finding { t.Error("this machine is checked"); return nil }
	run(gone, ExitUnavailable, "`sublet doctor` on that host itself does without the daemon", "doctor")
	// Completion says nothing of what is wrong, and spoils no line.
	run(gone, 0, ":4\n", "__complete", "stop", "")
	if strings.Contains(w.out.String(), "alice") || strings.Contains(w.errors.String(), "sublet:") {
		t.Errorf("completion says %q, %q", w.out.String(), w.errors.String())
	}
}

// TestCertificates checks what is said of certificates that are not right. The
// token must not have been sent then.
func TestCertificates(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name      string
		from, to  time.Duration // from now
		names     []string
		highest   uint16 // version of TLS, 0 for any
		authority bool   // the client is given the certificate
		code      int
		says      string
	}{
		{"good", -day, day, []string{"localhost"}, 0, true, 0, "noports"},
		{"unknown", -day, day, []string{"localhost"}, 0, false, ExitDenied, "is not trusted, so nothing was sent"},
		{"expired", -2 * day, -day, []string{"localhost"}, 0, true, ExitDenied, "has expired or is not valid yet"},
		{"early", day, 2 * day, []string{"localhost"}, 0, true, ExitDenied, "look at the clocks of both machines"},
		{"another name", -day, day, []string{"vps2.example.org"}, 0, true, ExitDenied, "is for another name"},
		{"the daemon's own, expired", -2 * day, -day, []string{door.Name}, 0, true, ExitDenied, "has expired or is not valid yet"},
		{"old TLS", -day, day, []string{"localhost"}, tls.VersionTLS12, true, ExitUnavailable, "speaks TLS 1.3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, now := t.TempDir(), time.Now()
			cert, text := certificate(t, now.Add(tt.from), now.Add(tt.to), tt.names)
			w := populate(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			b := backend{w.fake}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			var asked atomic.Int32
			count := func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					next.ServeHTTP(w, r)
				})
			}
			server := api.NewServer(api.Backend{Desired: b, Observed: b}, api.ServerOptions{})
			config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, MaxVersion: tt.highest}
			go func() { ended <- server.Serve(ctx, tls.NewListener(ln, config), count) }()
			defer func() {
				cancel()
				if err := awaitChan(t, ended, "end of the server"); err != nil {
					t.Error(err)
				}
			}()
			env := map[string]string{"SUBLET_REMOTE": "localhost" + strings.TrimPrefix(ln.Addr().String(), "127.0.0.1"), "SUBLET_TOKEN_FILE": filepath.Join(dir, "token"), "SUBLET_CA": filepath.Join(dir, "cert")}
			if !tt.authority {
				delete(env, "SUBLET_CA")
			}
			for name, content := range map[string][]byte{"token": []byte(strings.Repeat("t", 64)), "cert": text} {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w.options.Env = func(name string) string { return env[name] }
			code := w.run(t.Context(), "list")
			if all := w.out.String() + w.errors.String(); code != tt.code || !strings.Contains(all, tt.says) {
				t.Errorf("exit code %d, want %d; says, without %q:\n%s", code, tt.code, tt.says, all)
			}
			if (asked.Load() > 0) != (tt.code == 0) {
				t.Errorf("%d requests were sent", asked.Load())
			}
		})
	}
}

// certificate makes one that its own key signed.
func certificate(t *testing.T, from, to time.Time, names []string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, DNSNames: names,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
