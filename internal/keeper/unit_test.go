//go:build linux

package keeper

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func TestArgv(t *testing.T) {
	t.Parallel()
	c := Config{Name: "alice", RunDir: "/run/sublet/guests/alice", StopTimeout: vps.Duration(90 * time.Second)}
	l := Launcher{Command: []string{"/usr/bin/sublet", "keeper"}}
	want := "/usr/bin/sublet keeper --config /c"
	if got := strings.Join(l.argv(c, "/c"), " "); got != want {
		t.Errorf("directly: got %s", got)
	}
	l.SystemdRun = "/usr/bin/systemd-run"
	const wantRun = `/usr/bin/systemd-run
--quiet
--collect
--unit=sublet-guest-alice.service
--description=sublet guest alice
--slice=sublet.slice
--service-type=exec
--property=KillMode=mixed
--property=Delegate=yes
--property=TimeoutStopSec=105
--property=StandardOutput=null
--property=StandardError=append:/run/sublet/guests/alice/keeper.log
--property=OOMPolicy=continue
--property=Before=sublet.service
--property=After=sublet-traffic.service
--
/usr/bin/sublet
keeper
--config
/c`
	if diff := cmp.Diff(wantRun, strings.Join(l.argv(c, "/c"), "\n")); diff != "" {
		t.Errorf("by systemd, want (-), got (+):\n%s", diff)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := Config{RunDir: "/r", Argv: []string{"/p"}, Command: []string{"/s"}, LogPath: "/l", OwnDirs: []string{"own"}, Mconsole: "own/x"}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Config){
		"run_dir":  func(c *Config) { c.RunDir = "r" },
		"argv":     func(c *Config) { c.Argv = []string{"sh"} },
		"command":  func(c *Config) { c.Command = nil },
		"log_path": func(c *Config) { c.LogPath = "" },
		"own_dirs": func(c *Config) { c.OwnDirs = []string{"../etc"} },
		"mconsole": func(c *Config) { c.Mconsole = "../../x" },
	} {
		c := good
		spoil(&c)
		if err := c.check(); vps.ErrorCode(err) != vps.CodeInvalid || !strings.HasPrefix(vps.ErrorMessage(err), field+": ") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestExitText(t *testing.T) {
	t.Parallel()
	abort := syscall.WaitStatus(syscall.SIGABRT)
	hostile := []byte("Kernel panic - not syncing: \x1b[2J\x07bad\xff\xfe " + strings.Repeat("x", 4000) + "\n")
	e := exitOf(abort, hostile, false)
	if e.Reason != vps.ExitPanic || len(e.Detail) > maxDetail || strings.ContainsAny(e.Detail, "\x1b\x07") {
		t.Errorf("got %+v", e)
	}
	if e := exitOf(abort, nil, true); e.Reason != vps.ExitKilled {
		t.Errorf("got %+v", e)
	}
	if e := exitOf(0, nil, true); e.Reason != vps.ExitPowerOff {
		t.Errorf("a guest that was off before the kill: %+v", e)
	}
	for console, want := range map[string]vps.ExitReason{
		"init: bye\r\nreboot: System halted\r\n\r\n":                                 vps.ExitPowerOff,
		"[   12.345678] reboot: Power down\n":                                        vps.ExitPowerOff,
		"reboot: System halted\nlogin: ":                                             vps.ExitCrash,
		"reboot: Restarting system\n":                                                vps.ExitCrash,
		"Kernel panic - not syncing: Attempted to kill init!\nreboot: System halted": vps.ExitPanic,
		"": vps.ExitCrash,
	} {
		if e := exitOf(abort, []byte(console), false); e.Reason != want {
			t.Errorf("aborted after %q: %+v, want %s", console, e, want)
		}
	}
}

func TestRecordOfAnotherBoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self := markOf(syscall.Getpid())
	r := record{Instance: vps.Instance{GuestID: "id", Name: "g", Started: now(), PID: self.PID}, BootID: "another boot", Anchor: self, Self: self}
	if err := writeRecord(dir, r); err != nil {
		t.Fatal(err)
	}
	first, err := Find(dir)
	if err != nil || first.Exit == nil || first.Exit.Reason != vps.ExitLost {
		t.Fatalf("got %+v, %v", first, err)
	}
	second, err := Find(dir)
	if diff := cmp.Diff(first, second); err != nil || diff != "" {
		t.Errorf("the end changed from one look to the next: %v\n%s", err, diff)
	}
	if r.Self.kill(r.BootID); !r.Self.alive(bootID()) {
		t.Error("a process of another boot was taken for this one")
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("hello"), byte('d'))
	f.Add([]byte{}, byte('n'))
	f.Fuzz(func(t *testing.T, content []byte, kind byte) {
		in := bytes.NewReader(appendFrames(nil, kind, content))
		var got []byte
		buf := frameBuffer()
		for in.Len() > 0 {
			k, b, err := readFrame(in, buf)
			if err != nil || k != kind {
				t.Fatalf("frame of kind %c: %v", k, err)
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, content) {
			t.Errorf("got %q for %q", got, content)
		}
	})
}

// TestProtocol speaks to a keeper as other versions of the daemon would.
func TestProtocol(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "exec sleep 1000")
	in := launch(t, c)
	for line, want := range map[string]vps.Code{
		`{"v":1,"op":"status"}`:              "",
		`{"v":0,"op":"status","later":true}`: "",
		`{"v":2,"op":"status"}`:              vps.CodeInvalid,
		`{"v":1,"op":"dance"}`:               vps.CodeInvalid,
		`not JSON`:                           vps.CodeInvalid,
		`{"v":1,"op":"kill","instance":{"guest_id":"` + in.GuestID + `"}}`: vps.CodeNotFound,
	} {
		conn, err := net.Dial("unix", filepath.Join(c.RunDir, socketName))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
		reply, err := bufio.NewReader(conn).ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := json.Unmarshal(reply, &a); err != nil || a.Code != want || a.Version != protocolVersion {
			t.Errorf("%s: got %s, %v", line, reply, err)
		}
		_ = conn.Close()
	}
}

// Between an instance's end being written down and its keeper's going, its
// callers learn what they would learn after it.
func TestOverButListening(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := vps.Instance{GuestID: "g1", Started: now(), Socket: filepath.Join(dir, socketName)}
	k := &keeper{recorded: make(chan struct{}), rec: record{Instance: in}}
	k.rec.Exit = &vps.Exit{Reason: vps.ExitPowerOff}
	close(k.recorded)
	ln, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(k, ln)
	go s.serve()
	defer s.finish()
	for _, op := range []string{opStatus, opStop, opConsole, opPause} {
		if _, err := ask(t.Context(), dir, request{Op: op, Instance: &in}); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("%s of an instance that is over: error %v, want not found", op, err)
		}
	}
	if got, err := ask(t.Context(), dir, request{Op: opWait, Instance: &in}); err != nil || got.Exit == nil {
		t.Errorf("wait for an instance that is over: %+v, %v, want its end", got, err)
	}
	if got, err := Status(t.Context(), dir); err != nil || got.Exit == nil {
		t.Errorf("status of an instance that is over: %+v, %v, want its end", got, err)
	}
}
