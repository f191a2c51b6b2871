package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// started is a server on a socket of its own, and a client of it.
type started struct {
	*Client
	fake *fake
	stop func() // stops the server and waits for Serve
	log  *lockedBuffer
}

// socketPath returns a path short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sl") //nolint:usetesting // t.TempDir can be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func start(t *testing.T) *started {
	t.Helper()
	return startWith(t, newFake(), nil)
}

func startWith(t *testing.T, f *fake, b *Backend) *started {
	t.Helper()
	path := socketPath(t)
	ln, err := Listen(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	if b == nil {
		full := f.backend()
		b = &full
	}
	out := &lockedBuffer{}
	server := NewServer(*b, ServerOptions{
		Version: "1.2.3",
		Log:     slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, ln) }()
	client := NewClient(path)
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(func() { client.Close(); stop() })
	return &started{Client: client, fake: f, stop: stop, log: out}
}

// must fails the test at an error.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("unexpected error: %v", err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func wantCode(t *testing.T, err error, code vps.Code) vps.Error {
	t.Helper()
	e, ok := errors.AsType[*vps.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("got %v (code %q), want code %q", err, vps.ErrorCode(err), code)
	}
	return *e
}

func same[T any](t *testing.T, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b vps.Bytes) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestGuestsRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	same(t, must[[]Guest](t)(s.Guests(ctx)), []Guest{})

	ask := CreateGuest{
		Name: "alice", Memory: new(256 * vps.MiB), SSHKeys: []string{"ssh-ed25519 AAAA"},
		StopTimeout: new(vps.Duration(90 * time.Second)), Ports: &vps.PortBlock{First: 20000, Count: 20},
		Forwards: []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}}, RootPasswordHash: new(secretHash),
	}
	dry := must[Change](t)(s.CreateGuest(ctx, ask, true))
	same(t, dry, Change{Schema: SchemaVersion, DryRun: true, Edits: []string{"create alice"}, Steps: []string{"clone", "start"}})
	same(t, must[[]Guest](t)(s.Guests(ctx)), []Guest{})

	if change := must[Change](t)(s.CreateGuest(ctx, ask, false)); change.DryRun {
		t.Error("a real change calls itself a dry run")
	}
	g := must[Guest](t)(s.Guest(ctx, "alice"))
	if g.Spec.Memory != 256*vps.MiB || g.Spec.StopTimeout != vps.Duration(90*time.Second) || g.Spec.Ports.First != 20000 ||
		g.Spec.Address.String() != "10.213.0.2" || g.Spec.Forwards[0].Guest != 443 || g.Schema != SchemaVersion || g.SSH.Address.IsValid() {
		t.Errorf("the guest came back as %+v", g)
	}

	_, err := s.CreateGuest(ctx, ask, false)
	if e := wantCode(t, err, vps.CodeConflict); e.Field != "name" || e.Message != "the name alice is taken" {
		t.Errorf("got field %q, message %q", e.Field, e.Message)
	}

	change := must[Change](t)(s.UpdateGuest(ctx, "alice", UpdateGuest{SSHKeys: new([]string), Memory: new(vps.GiB)}, false))
	same(t, change, Change{Schema: SchemaVersion, Edits: []string{}, Steps: []string{}})
	g = must[Guest](t)(s.Guest(ctx, "alice"))
	if len(g.Spec.SSHKeys) != 0 || g.Spec.Memory != vps.GiB {
		t.Errorf("after the update: %+v", g.Spec)
	}
	_, err = s.UpdateGuest(ctx, "bob", UpdateGuest{}, false)
	wantCode(t, err, vps.CodeNotFound)
}

func TestOrdersAndWait(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice"}, false))

	waited := make(chan error, 1)
	go func() {
		_, err := s.Wait(ctx, "alice", WaitRunning, time.Minute)
		waited <- err
	}()
	must[Change](t)(s.Order(ctx, "alice", OrderStart, 0, false))
	check(t, <-waited)
	must[Change](t)(s.Order(ctx, "alice", OrderRestart, 0, true))
	must[Change](t)(s.Order(ctx, "alice", OrderStop, 30*time.Second, false))
	must[Change](t)(s.Order(ctx, "alice", OrderKill, 0, false))
	if g := must[Guest](t)(s.Wait(ctx, "alice", WaitStopped, 0)); g.Spec.Name != "alice" {
		t.Errorf("wait returned %+v", g)
	}
	_, err := s.Wait(ctx, "alice", WaitSSH, time.Millisecond)
	wantCode(t, err, vps.CodeTimeout)
	must[Change](t)(s.Order(ctx, "alice", OrderDelete, 0, false))
	must[Guest](t)(s.Wait(ctx, "alice", WaitDeleted, time.Minute))
	_, err = s.Order(ctx, "alice", OrderStart, 0, false)
	wantCode(t, err, vps.CodeNotFound)
	_, err = s.Order(ctx, "alice", "dance", 0, false)
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Wait(ctx, "alice", "sunshine", 0)
	if e := wantCode(t, err, vps.CodeInvalid); e.Field != "for" {
		t.Errorf("field %q", e.Field)
	}
	_, err = s.Wait(ctx, "alice", WaitSSH, -time.Second)
	if e := wantCode(t, err, vps.CodeInvalid); e.Field != "timeout" {
		t.Errorf("field %q", e.Field)
	}
	same(t, s.fake.orders, []string{
		"start alice 0s false", "restart alice 0s true", "stop alice 30s false", "kill alice 0s false", "delete alice 0s false",
	})
}

func TestTenantsRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	check(t, s.PutTenant(ctx, "zoe", UpdateTenant{Note: new("pays in cake")}))
	same(t, must[[]vps.Tenant](t)(s.Tenants(ctx)), []vps.Tenant{{Name: "owner"}, {Name: "zoe", Note: "pays in cake"}})
	check(t, s.DeleteTenant(ctx, "zoe"))
	wantCode(t, s.DeleteTenant(ctx, "zoe"), vps.CodeNotFound)
}

func TestHostRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	const file = "guests:\n- name: alice # ä\n"
	change := must[Change](t)(s.Apply(ctx, strings.NewReader(file), ApplyOptions{Prune: true, DryRun: true}))
	same(t, change, Change{Schema: SchemaVersion, DryRun: true, Edits: []string{"prune=true"}, Steps: []string{}})
	change = must[Change](t)(s.Apply(ctx, strings.NewReader(file), ApplyOptions{}))
	same(t, change.Edits, []string{"prune=false"})
	var out bytes.Buffer
	check(t, s.Export(ctx, &out))
	same(t, out.String(), file)

	h := must[HostInfo](t)(s.Host(ctx))
	if h.Settings.Subnet.String() != "10.213.0.0/16" || h.Memory != 2*vps.GiB || h.PublicAddress.IsValid() || h.Pending == nil {
		t.Errorf("host: %+v", h)
	}
	same(t, must[[]vps.Event](t)(s.Events(ctx, "alice", 7, 50)), []vps.Event{{ID: 8, Guest: "alice", Kind: "drift", Message: "limit 50"}})
	if e := must[[]vps.Event](t)(s.Events(ctx, "", 0, 0)); e[0].Message != "limit 100" {
		t.Errorf("without a limit: %+v", e)
	}
	same(t, must[[]Finding](t)(s.Doctor(ctx)), []Finding{{Check: "tun", Level: "ok", Message: "/dev/net/tun is there"}})
	same(t, must[VersionInfo](t)(s.Version(ctx)), VersionInfo{Schema: SchemaVersion, Version: "1.2.3", API: "v1"})
}

func TestImagesRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	same(t, must[[]vps.Image](t)(s.Images(ctx)), []vps.Image{{Name: "debian/12", ID: "v1", Packages: []vps.Package{}}})
	if i := must[vps.Image](t)(s.Image(ctx, "debian/12")); i.Name != "debian/12" || len(i.Packages) != 1 {
		t.Errorf("image: %+v", i)
	}
	op := must[Operation](t)(s.BuildImage(ctx, "debian/12", ""))
	same(t, op, Operation{ID: "op-1", Kind: "build", Target: "debian/12", Progress: vps.Progress{Phase: "start", Fraction: -1}})
	same(t, must[Operation](t)(s.Operation(ctx, "op-1")), Operation{ID: "op-1", Done: true, Code: vps.CodeTimeout, Error: "too slow"})
	check(t, s.DeleteImage(ctx, "debian/12"))
	same(t, s.fake.orders, []string{"delete-image debian/12"})
	k := must[[]KernelInfo](t)(s.Kernels(ctx))
	same(t, k, []KernelInfo{shownKernel(KernelInfo{Kernel: vps.Kernel{Name: "uml/6.1.176"}})})
	const name = "uml/7.2.13-0123456789ab"
	same(t, must[KernelInfo](t)(s.Kernel(ctx, name)), shownKernel(KernelInfo{Kernel: vps.Kernel{Name: name}, Warning: "insecure"}))
	build := BuildKernel{Package: "linux-source-7.2", Suite: "sid", Config: "CONFIG_A=y\n"}
	same(t, must[Operation](t)(s.BuildKernel(ctx, build)), Operation{ID: "op-2", Kind: "kernel-build", Target: "linux-source-7.2sidCONFIG_A=y\n", Log: "/log"})
	same(t, must[[]KernelTest](t)(s.TestKernel(ctx, name)), []KernelTest{{
		Isolation: vps.IsolationFast, Took: vps.Duration(time.Second), Checks: []KernelCheck{{Name: name, OK: true}},
	}})
	same(t, must[Change](t)(s.UseKernel(ctx, name, true)).Edits, []string{name})
	check(t, s.DeleteKernel(ctx, name))
	same(t, s.fake.orders, []string{"delete-image debian/12", "delete-kernel " + name})
	for _, bad := range []string{"", "..", "uml/../x", "uml/a b", "../../etc/passwd"} {
		if _, err := s.Kernel(ctx, bad); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("kernel %q: %v", bad, err)
		}
	}
	_, err := s.BuildImage(ctx, "Debian", "")
	wantCode(t, err, vps.CodeInvalid)
}

func TestLogs(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	s.fake.log = "one\ntwo\nthree\n"
	var out bytes.Buffer
	check(t, s.Logs(ctx, "alice", 0, false, &out))
	same(t, out.String(), "one\ntwo\nthree\n")
	out.Reset()
	check(t, s.Logs(ctx, "alice", 2, false, &out))
	same(t, out.String(), "two\nthree\n")
	wantCode(t, s.Logs(ctx, "alice", -1, false, &out), vps.CodeInvalid)
	out.Reset()
	check(t, s.AccessLog(ctx, "alice", 1, false, &out))
	same(t, out.String(), "calls: three\n")
	wantCode(t, s.AccessLog(ctx, "alice", -1, false, &out), vps.CodeInvalid)

	s.fake.beforeText = vps.Errorf(vps.CodePartial, "the log is damaged in the middle")
	out.Reset()
	e := wantCode(t, s.Logs(ctx, "alice", 0, false, &out), vps.CodePartial)
	if e.Message != "the log is damaged in the middle" || out.String() != "one\ntwo\nthree\n" {
		t.Errorf("got %q after %q", e.Message, out.String())
	}
	s.fake.setErr(noGuest("alice"))
	wantCode(t, s.Logs(ctx, "alice", 0, false, &out), vps.CodeNotFound)
}

// signalled closes its channel at the first write.
type signalled struct{ first chan struct{} }

func (s *signalled) Write(p []byte) (int, error) {
	close(s.first)
	return len(p), nil
}

func TestFollowEndsWhenTheCallerLeaves(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.fake.log = "one\n"
	ctx, cancel := context.WithCancel(t.Context())
	w := &signalled{first: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- s.Logs(ctx, "alice", 0, true, w) }()
	<-w.first // it arrived although the log goes on
	cancel()
	check(t, <-ended)
	<-s.fake.following // the backend was told
}

func TestStoppingEndsStreamsAndSaysSo(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	s.fake.log = "one\n"
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice"}, false))
	w := &signalled{first: make(chan struct{})}
	ended := make(chan error, 3)
	go func() { ended <- s.Logs(ctx, "alice", 0, true, w) }()
	go func() {
		_, err := s.Wait(ctx, "alice", WaitSSH, 0)
		ended <- err
	}()
	c := must[*ConsoleConn](t)(s.Console(ctx, "alice", ConsoleOptions{}))
	go func() {
		_, err := io.ReadAll(c)
		ended <- err
	}()
	<-w.first
	<-s.fake.consoles
	s.stop()
	for range 3 {
		wantCode(t, <-ended, vps.CodeUnavailable)
	}
	check(t, c.Close())
	_, err := s.Version(ctx)
	wantCode(t, err, vps.CodeUnavailable)
}

func TestMissingParts(t *testing.T) {
	t.Parallel()
	s, ctx := startWith(t, newFake(), &Backend{}), t.Context()
	_, err := s.Guests(ctx)
	wantCode(t, err, vps.CodeUnavailable)
	_, err = s.CreateGuest(ctx, CreateGuest{Name: "a"}, false)
	wantCode(t, err, vps.CodeUnavailable)
	_, err = s.Images(ctx)
	wantCode(t, err, vps.CodeUnavailable)
	_, err = s.Console(ctx, "alice", ConsoleOptions{})
	wantCode(t, err, vps.CodeUnavailable)
	wantCode(t, s.Export(ctx, io.Discard), vps.CodeUnavailable)
	must[VersionInfo](t)(s.Version(ctx))
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := socketPath(t)
	try := func(path string) vps.Error {
		t.Helper()
		_, err := NewClient(path).Version(ctx)
		return wantCode(t, err, vps.CodeUnavailable)
	}
	if e := try(path); !strings.Contains(e.Message, "there is no socket "+path) || !strings.Contains(e.Message, "systemctl start sublet") {
		t.Error(e.Message)
	}
	ln, err := net.Listen("unix", path)
	check(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	check(t, ln.Close())
	if e := try(path); !strings.Contains(e.Message, "nobody answers on "+path) {
		t.Error(e.Message)
	}
	if e := try("/tmp/" + strings.Repeat("x", 120)); !strings.Contains(e.Message, "choose a shorter one") {
		t.Error(e.Message)
	}
	file := filepath.Join(t.TempDir(), "f")
	check(t, os.WriteFile(file, nil, 0o600))
	try(file)

	dead, cancel := context.WithCancel(ctx)
	cancel()
	_, err = NewClient(path).Version(dead)
	wantCode(t, err, vps.CodeTimeout)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap the context's error", err)
	}
	e := wantCode(t, NewClient(path).lost(ctx, os.ErrPermission), vps.CodeUnavailable)
	if !strings.Contains(e.Message, "you may not use") {
		t.Error(e.Message)
	}
}
