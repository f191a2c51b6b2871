package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// backend serves a fake through the real API.
type backend struct{ *fake }

func (b backend) Wait(ctx context.Context, name string, what api.WaitFor) (api.Guest, error) {
	return b.fake.Wait(ctx, name, what, time.Minute)
}

func (b backend) Console(ctx context.Context, name string, o api.ConsoleOptions) (io.ReadWriteCloser, error) {
	return b.fake.Console(ctx, name, o)
}

// TestOverSocket runs verbs through the real client and server, so that what
// both sides think of each other is true: paths, codes, streams.
func TestOverSocket(t *testing.T) {
	t.Parallel()
	// Not t.TempDir: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "cli") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	w := populate(t)
	b := backend{w.fake}
	ln, err := api.Listen(t.Context(), socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	server := api.NewServer(api.Backend{Desired: b, Observed: b, Consoles: b, Images: b, Kernels: b}, api.ServerOptions{Version: "1.2.3"})
	go func() { ended <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := awaitChan(t, ended, "end of the server"); err != nil {
			t.Error(err)
		}
	})

	w.options.Dial = nil
	run := func(code int, says string, args ...string) {
		t.Helper()
		got := w.run(t.Context(), append([]string{"--socket", socket}, args...)...)
		if all := w.out.String() + w.errors.String(); got != code || !strings.Contains(all, says) {
			t.Errorf("sublet %s: exit code %d, want %d; says, without %q:\n%s", strings.Join(args, " "), got, code, says, all)
		}
	}
	run(0, "daemon 1.2.3", "version")
	run(0, "noports  crashed", "list")
	run(0, "forwards      8443 to 443 (TCP)", "show", "alice")
	run(3, `sublet: guest "zoe" does not exist`, "show", "zoe")
	run(0, "add guest zoe", "create", "zoe", "--dry-run")
	run(0, "sublet ssh dora", "create", "dora", "--memory", "1GiB", "--forward", "80:80/tcp", "--wait", "ssh")
	run(4, "there is a guest dora already", "create", "dora")
	run(5, "more than the 4GiB", "create", "huge", "--memory", "8GiB")
	run(0, "guest dora changed", "port", "add", "dora", "81:81")
	run(0, "dora has stopped", "stop", "dora")
	run(0, "dora is deleted", "delete", "dora", "--yes")
	run(0, "three", "logs", "alice", "-n", "1")
	run(0, "paid until June", "tenant", "list")
	run(4, "still owns", "tenant", "remove", "bob")
	run(0, "debian/12 is built", "image", "build", "debian/12")
	run(0, "uml/6.1.176", "kernel", "list")
	run(0, "vps1", "host", "show")
	run(0, "drift", "events")
	run(1, "apt install user-mode-linux", "doctor")
	run(0, "guest alice\n", "export")
	w.options.Stdin = strings.NewReader("guest carol\n")
	run(1, "add guest carol", "diff", "-f", "-")
	run(2, "line 1", "apply", "-f", "../../go.mod")
	run(0, "alice\nbob\n", "__complete", "stop", "")

	stream := newStream()
	w.console = stream
	w.options.Stdin = strings.NewReader("")
	go func() {
		_, _ = io.WriteString(stream.guest, "alice login: ")
		_ = stream.guest.Close()
	}()
	run(0, "alice login: ", "console", "alice", "--read-only")

	w.failure = vps.Errorf(vps.CodeUnavailable, "the daemon is going down")
	run(7, "going down", "list")
}
