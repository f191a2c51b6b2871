package cli

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	server := api.NewServer(api.Backend{Desired: b, Observed: b, Consoles: b, Images: b, Auditor: w.fake}, api.ServerOptions{Version: "1.2.3"})
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
	run(nil, 0, "noports", "list", "--socket", "/other.sock")
	run(map[string]string{"SUBLET_REMOTE": "", "SUBLET_TOKEN_FILE": "", "SUBLET_CA": ""}, 0, "noports", "list",
		"--remote", address, "--token-file", right["SUBLET_TOKEN_FILE"], "--ca", right["SUBLET_CA"])

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
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
		{"SUBLET_REMOTE", "vps1", ExitUsage, "write HOST:PORT"},
		{"SUBLET_REMOTE", free.Addr().String(), ExitUnavailable, "serve --listen"},
		{"SUBLET_REMOTE", strings.TrimPrefix(plain.URL, "http://"), ExitUnavailable, "does not speak TLS"},
		{"SUBLET_TOKEN_FILE", "", ExitUsage, "--token-file"},
		{"SUBLET_TOKEN_FILE", filepath.Join(dir, "nothing"), ExitUsage, "does not exist"},
		{"SUBLET_TOKEN_FILE", dir, ExitUsage, "is not a file"},
		{"SUBLET_TOKEN_FILE", write("open", string(own), 0o640), ExitUsage, "chmod 600"},
		{"SUBLET_TOKEN_FILE", write("empty", "# none\n", 0o600), ExitUsage, "no token in"},
		{"SUBLET_TOKEN_FILE", write("wrong", strings.Repeat("0", 64), 0o600), ExitDenied, "token"},
		{"SUBLET_CA", "", ExitDenied, "not trusted"},
		{"SUBLET_CA", filepath.Join(dir, "mine"), ExitUsage, "no certificate"},
	} {
		run(map[string]string{c.name: c.value}, c.code, c.says, "list")
	}
}
