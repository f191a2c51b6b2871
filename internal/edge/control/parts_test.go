//go:build linux

package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/hang"
	"sublet/internal/vps"
)

// hostile is a process that was taken over: it answers each request with what it
// is told to.
func (s *scene) hostile(number int, answer func(w *wire, m *message)) {
	s.t.Helper()
	o := Order{Dir: s.d.Options.Dir, Number: number}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	short, done, err := shortPath(o.path(socketExt))
	if err != nil {
		s.t.Fatal(err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short})
	if err != nil {
		s.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	var conns sync.Map
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			conns.Store(c, true)
			w := &wire{conn: c}
			go func() {
				for {
					m, socket, err := w.receive(toEdge)
					if err != nil {
						return
					}
					socket.close()
					answer(w, m)
				}
			}()
		}
	}()
	s.t.Cleanup(func() {
		_ = l.Close()
		conns.Range(func(c, _ any) bool { return c.(*net.UnixConn).Close() == nil })
	})
}

func TestDaemonIsNotTakenIn(t *testing.T) {
	s := newScene(t)
	s.guest()
	port := testPorts[0]
	other, err := open(t.Context(), edge.Port{Number: 4711, Kind: edge.KindHTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	s.hostile(1, func(w *wire, m *message) {
		switch m.Op {
		case opHello:
			_ = w.send(&message{ID: 99, Op: opHello}, other) // to nobody
			_ = w.send(&message{Op: opWake, Guest: "../../etc"}, other)
			_ = w.send(&message{ID: m.ID, Op: m.Op, Hello: &Hello{Build: "old", Configured: true, Ports: []edge.Port{port, {Number: 443, Kind: "?"}}}}, none)
		case opTake:
			_ = w.send(&message{ID: m.ID, Op: m.Op}, other)
		case opDrain:
			_ = w.send(&message{ID: m.ID, Op: m.Op}, none)
			_ = w.conn.Close()
		}
	})
	woken := make(chan string, 1)
	s.d.Options.Wake = func(id string) { woken <- id }
	m, stop := s.manager()
	s.settled(m, "one")
	s.reach()
	if id := <-woken; id != "../../etc" { // what it is, is the caller's to find out
		t.Errorf("woken: %q", id)
	}
	stop()
}

// TestOtherVersions has a process that knows of the requests only those that all
// versions know.
func TestOtherVersions(t *testing.T) {
	s := newScene(t)
	s.guest()
	socket, err := open(t.Context(), testPorts[0])
	if err != nil {
		t.Fatal(err)
	}
	defer socket.close()
	drained := make(chan vps.Duration, 1)
	s.hostile(7, func(w *wire, m *message) {
		answer := func(text string, with handle) {
			body := []byte(fmt.Sprintf(text, m.ID))
			frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
			var rights []byte
			if with != none {
				rights = unix.UnixRights(int(with))
			}
			if _, _, err := w.conn.WriteMsgUnix(frame, rights, nil); err != nil {
				t.Error(err)
			}
			if _, err := w.conn.Write(body); err != nil {
				t.Error(err)
			}
		}
		switch m.Op {
		case opHello:
			answer(`{"version":99,"id":%d,"op":"hello","mood":"good","hello":{"build":"99","uid":721300,"ports":[{"number":80,"kind":"http","new":true}],"new":{}}}`, none)
		case opTake:
			answer(`{"version":99,"id":%d,"op":"take"}`, socket)
		case opDrain:
			drained <- m.Within
			answer(`{"version":99,"id":%d,"op":"drain"}`, none)
			_ = w.conn.Close()
		case opStats:
			answer(`{"version":99,"id":%d,"op":"stats","stats":{"of":"another kind"}}`, none)
		default:
			t.Errorf("it is asked for %s", m.Op)
		}
	})
	m, _ := s.manager()
	state := s.settled(m, "one")
	if within := <-drained; within != s.d.Wish.Config.Settings.DrainTimeout {
		t.Errorf("it was to end within %s", within)
	}
	if state.Handovers != 1 || state.Restarts != 0 {
		t.Errorf("the state is %+v", state)
	}
	s.reach()

	t.Log("and one that is asked for what it does not know says so")
	c, err := dial(t.Context(), 8, (&Order{Dir: s.d.Options.Dir, Number: 8}).path(socketExt), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close() //nolint:errcheck // nothing is written any more
	if _, _, err := c.ask(t.Context(), &message{Op: "fly"}, none); err == nil || !strings.Contains(err.Error(), `does not know the request "fly"`) {
		t.Errorf("got %v", err)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	s := newScene(t)
	s.guest()
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	s.d.Options.look = 10 * time.Millisecond
	m, _ := s.manager()
	s.eventually("443 is served", func() bool { s := m.State(); return len(s.Ports) == 2 && len(s.Closed) == 1 })
	want := fmt.Sprintf("the edge cannot listen on port 80/tcp, because %s (process %d) does", comm(t), os.Getpid())
	if why := m.State().Closed[testPorts[0]]; !strings.HasPrefix(why, want) {
		t.Errorf("the state says %q; want %q", why, want)
	}
	s.told(want)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.settled(m, "one") // by itself
	s.reach()
}

func comm(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestHolderOf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only listens
	port := edge.Port{Number: uint16(l.Addr().(*net.TCPAddr).Port), Kind: edge.KindTLS}
	if got, want := holderOf("/proc", port), fmt.Sprintf("%s (process %d)", comm(t), os.Getpid()); got != want {
		t.Errorf("%q holds the port; want %q", got, want)
	}
	port.Kind = edge.KindQUIC
	if got := holderOf("/proc", port); got != "" {
		t.Errorf("%q holds the port of UDP", got)
	}
}

func TestConfigThatIsRefused(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	before := s.settled(m, "one")
	bad := s.d.Wish
	bad.Config.Guests = append(slices.Clone(bad.Config.Guests), bad.Config.Guests...)
	if err := m.Set(bad); err != nil {
		t.Fatal(err)
	}
	const why = "does not take what it is to do: guests[1].id: the guest id-alice is there twice"
	s.told(why)
	s.eventually("the state says why", func() bool { return strings.Contains(m.State().Fault, why) })
	s.reach() // as it was
	if err := m.Set(s.d.Wish); err != nil {
		t.Fatal(err)
	}
	if after := s.settled(m, "one"); after.PID != before.PID {
		t.Errorf("another process, %d, serves", after.PID)
	}
}

// TestOtherUser replaces the process when its user is another one, and gives it
// what the first one wrote.
func TestOtherUser(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	s.settled(m, "one")
	dir := filepath.Join(s.d.Options.LogDir, "id-alice")
	file := filepath.Join(dir, "access.log")
	link := filepath.Join(dir, "link")
	outside := filepath.Join(t.TempDir(), "outside")
	err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.WriteFile(outside, nil, 0o600), os.Symlink(outside, link))
	if err != nil {
		t.Fatal(err)
	}
	w := s.d.Wish
	w.UID++
	if err := m.Set(w); err != nil {
		t.Fatal(err)
	}
	s.eventually("it was replaced", func() bool { s := m.State(); return s.Handovers == 1 && s.Draining == 0 })
	for path, want := range map[string]uint32{s.d.Options.LogDir: w.UID, s.d.Options.CertDir: w.UID, dir: w.UID, file: w.UID, link: w.UID, outside: uint32(os.Getuid())} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Uid != want {
			t.Errorf("%s is of user %d, %v; want %d", path, st.Uid, err, want)
		}
	}
	s.reach()
}

// TestStatsOutliveProcesses has counters only grow while processes are replaced.
func TestStatsOutliveProcesses(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	s.settled(m, "one")
	s.reach()
	counted := func(connections uint64, open int64) {
		t.Helper()
		var stats edge.Stats
		s.eventually(fmt.Sprintf("%d connections are counted, and %d are open", connections, open), func() bool {
			stats = m.Stats(t.Context())
			return stats.Guests["id-alice"].Connections == connections && stats.Guests["id-alice"].Open == open
		})
		if d := stats.Domains[len(stats.Domains)-1]; d.Name != domain || d.Connections != connections || stats.Accepted < connections {
			t.Errorf("counted are %+v", stats)
		}
	}
	counted(2, 0)
	long := s.longCall()
	counted(3, 1)
	w := s.d.Wish
	w.UID++ // which is a reason to replace it, too
	if err := m.Set(w); err != nil {
		t.Fatal(err)
	}
	s.eventually("it was replaced", func() bool { s := m.State(); return s.Handovers == 1 && s.Draining == 1 })
	s.reach()
	counted(5, 1) // by both
	long.still()
	long.end()
	s.eventually("the first one has ended", func() bool { return m.State().Draining == 0 })
	counted(5, 0)
	s.reach()
	counted(7, 0)

	t.Log("and what a domain counted goes with it")
	w.Config.Guests[0].Domains[0].Name = "other.example.org"
	if err := m.Set(w); err != nil {
		t.Fatal(err)
	}
	s.eventually("the domain is gone", func() bool {
		return !slices.ContainsFunc(m.Stats(t.Context()).Domains, func(d edge.DomainCounters) bool { return d.Name == domain })
	})
}

func TestOthersDoNotControl(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	s.settled(m, "one")
	info, err := os.Stat(s.d.Options.Dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v, %v", info.Mode(), err)
	}
	path := (&Order{Dir: s.d.Options.Dir, Number: 1}).path(socketExt)
	if info, err = os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	// Even where the mode is no help, as for the edge's own user.
	if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(s.d.Options.Dir, 0o755), os.Chmod(filepath.Dir(s.d.Options.Dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	failed := make(chan error)
	go func() {
		failed <- asUser(testUID, func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: short}) })
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"id":1,"op":"drain"}`)
	_, _ = unix.Write(fd, append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	if n, err := unix.Read(fd, make([]byte, 1)); n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("another user is answered with %d bytes, %v", n, err)
	}
	s.reach()
}

func TestSilentEdgeIsKilled(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, _ := s.manager()
	before := s.settled(m, "one")
	if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// As look does when patience is over, which is not waited for here.
	m.mu.Lock()
	e := m.edges[0]
	m.mu.Unlock()
	m.end(t.Context(), e, errSilent)
	s.eventually("another process serves", func() bool { s := m.State(); return s.PID != 0 && s.PID != before.PID })
	s.reach()
}

func TestArgv(t *testing.T) {
	o := &Order{Dir: "/run/sublet/edge", Number: 3, Command: []string{"/usr/bin/sublet", "edge"}, Memory: 512 * vps.MiB}
	if got := strings.Join(argv(o, ""), " "); got != "/usr/bin/sublet edge --order /run/sublet/edge/3.json" {
		t.Errorf("directly: %s", got)
	}
	const want = `/usr/bin/systemd-run
--quiet
--collect
--unit=sublet-edge-3.service
--description=sublet edge
--slice=sublet.slice
--service-type=exec
--property=TimeoutStopSec=10
--property=StandardOutput=null
--property=StandardError=append:/run/sublet/edge/3.log
--property=LimitNOFILE=1048576
--property=TasksMax=1024
--property=Before=sublet.service
--property=After=network-online.target
--property=MemoryMax=536870912
--
/usr/bin/sublet
edge
--order
/run/sublet/edge/3.json`
	if diff := cmp.Diff(want, strings.Join(argv(o, "/usr/bin/systemd-run"), "\n")); diff != "" {
		t.Errorf("by systemd (-want +got):\n%s", diff)
	}
}

func TestBuild(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	one, err := Build("1.2", self)
	if err != nil || !strings.HasPrefix(one, "1.2+") {
		t.Fatalf("%q, %v", one, err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(text, []byte("Go\x00\x00")) + 4 // the note's name
	if err := os.WriteFile(copied, text, 0o700); err != nil {
		t.Fatal(err)
	}
	if same, err := Build("1.2", copied); err != nil || same != one {
		t.Errorf("a copy is %q, %v; want %q", same, err, one)
	}
	text[at+1]++
	if err := os.WriteFile(copied, text, 0o700); err != nil {
		t.Fatal(err)
	}
	if other, err := Build("1.2", copied); err != nil || other == one {
		t.Errorf("another build is %q, %v too", other, err)
	}
}

func TestMessagesEnd(t *testing.T) {
	var b strings.Builder
	l := &limited{w: &b, left: 10}
	for range 5 {
		if n, err := l.Write([]byte("12345\n")); n != 6 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := b.String(); got != "12345\nnothing more is written here\n" {
		t.Errorf("%q is written", got)
	}
}

// TestLevelsAreKept: what the process logs comes into the daemon's log as what it
// is, and what is no log of it as a warning.
func TestLevelsAreKept(t *testing.T) {
	t.Parallel()
	o := Order{Dir: t.TempDir(), Number: 3}
	file, err := os.Create(o.path(messagesExt))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	say := slog.New(slog.NewTextHandler(file, nil))
	say.Info("a certificate was got", "name", "x level=ERROR")
	say.Warn("cannot close a socket")
	say.Error("it is over")
	say.Log(t.Context(), slog.LevelError+4, "of no usual level")
	say.Log(t.Context(), slog.LevelInfo+1, "nor this")
	_, _ = fmt.Fprint(file, "panic: level=INFO msg=x\ntime=x level=DEBUG msg=hidden\ntime=x level=INFO\n\n level=INFO\n")

	var log bytes.Buffer
	m := New(Options{Dir: o.Dir, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	e := &keptEdge{client: &client{number: o.Number, pid: 7}}
	m.repeat(t.Context(), e)
	m.repeat(t.Context(), e) // nothing is told twice
	var got []string
	for line := range strings.Lines(log.String()) {
		var v struct{ Level, Msg, Line string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Msg != "the edge says" {
			t.Fatal(err, line)
		}
		got = append(got, v.Level+" "+v.Line[max(0, len(v.Line)-12):])
	}
	want := []string{
		`INFO level=ERROR"`, `WARN se a socket"`, `ERROR "it is over"`, `WARN usual level"`, `WARN g="nor this"`,
		"WARN l=INFO msg=x", "WARN G msg=hidden", "INFO x level=INFO", "WARN level=INFO",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzLevelOf(f *testing.F) {
	f.Add("time=2026-11-30T20:24:02.000Z level=INFO msg=x")
	f.Add("level=ERROR")
	f.Fuzz(func(t *testing.T, line string) {
		if l := levelOf(line); l < slog.LevelInfo || l > slog.LevelError {
			t.Errorf("%q has the level %s", line, l)
		}
	})
}

// TestSignal is what happens when the host shuts down.
func TestSignal(t *testing.T) {
	s := newScene(t)
	s.guest()
	m, stop := s.manager()
	state := s.settled(m, "one")
	s.reach()
	stop()
	if err := syscall.Kill(state.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		var ws syscall.WaitStatus
		for {
			if err := syscall.Kill(state.PID, 0); err != nil {
				close(ended)
				return
			}
			_, _ = syscall.Wait4(state.PID, &ws, syscall.WNOHANG, nil)
		}
	}()
	select {
	case <-ended:
	case <-time.After(hang.After):
		t.Error("it does not end")
	}
}

// asUser runs f as another user, on a thread that ends with its goroutine.
func asUser(uid int, f func() error) error {
	runtime.LockOSThread()
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
		return e
	}
	return f()
}
