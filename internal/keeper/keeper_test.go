//go:build linux

package keeper

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

const testUID = 721398

// shellGuest is a config whose guest is a shell script.
func shellGuest(t *testing.T, script string) Config {
	t.Helper()
	// The guest's user has to get to its working folder.
	dir, err := os.MkdirTemp("", "sublet-keeper-") //nolint:usetesting // t.TempDir shuts other users out
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	// All that scripts use has to be in the jail.
	var files []string
	for _, tool := range []string{"cat", "cut", "grep", "head", "id", "ls", "setsid", "sleep", "stty", "touch", "tr", "tty", "tail", "uname"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		libraries, err := librariesOf(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(append(files, path), libraries...)
	}
	c := Config{
		Files:  files,
		Driver: "shell", GuestID: "id-" + filepath.Base(dir), Name: "g", Boots: 1, RunDir: dir, UID: testUID,
		Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"},
		OwnDirs: []string{"own"}, LogPath: filepath.Join(dir, "log", "console"),
	}
	t.Cleanup(func() {
		if in, err := Find(dir); err == nil {
			_ = Kill(context.WithoutCancel(t.Context()), in)
		}
		if err := Unbound(dir); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return c
}

func launcher(t *testing.T) Launcher {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Launcher{Command: []string{self, verbKeeper}}
}

func launch(t *testing.T, c Config) vps.Instance {
	t.Helper()
	in, err := launcher(t).Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func wait(t *testing.T, in vps.Instance) vps.Exit {
	t.Helper()
	e, err := Wait(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// console reads a log until it holds a text.
func logHas(t *testing.T, c Config, text string) {
	t.Helper()
	deadline := time.Now().Add(hang.After)
	for {
		b, _ := os.ReadFile(c.LogPath)
		if strings.Contains(string(b), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the log:\n%s", text, b)
		}
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	const says = "echo 'Kernel panic - not syncing: out of ideas'; "
	tests := map[string]struct {
		script string
		want   vps.Exit
	}{
		"off":                 {"exit 0", vps.Exit{Reason: vps.ExitPowerOff}},
		"off after talk":      {says + "exit 0", vps.Exit{Reason: vps.ExitPowerOff}},
		"code":                {"echo why; exit 3", vps.Exit{Reason: vps.ExitCrash, Code: 3, Detail: "why"}},
		"signal":              {"kill -SEGV $$", vps.Exit{Reason: vps.ExitCrash, Code: -1, Signal: "SIGSEGV"}},
		"panic":               {says + "kill -ABRT $$", vps.Exit{Reason: vps.ExitPanic, Code: -1, Signal: "SIGABRT", Detail: "Kernel panic - not syncing: out of ideas"}},
		"killed while it may": {says + "kill -KILL $$", vps.Exit{Reason: vps.ExitCrash, Code: -1, Signal: "SIGKILL", Detail: "Kernel panic - not syncing: out of ideas"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := shellGuest(t, test.script)
			in := launch(t, c)
			got := wait(t, in)
			test.want.At = got.At
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if found, err := Find(c.RunDir); err != nil || found.Exit == nil || *found.Exit != got {
				t.Errorf("the record says %+v, %v", found, err)
			}
		})
	}
}

// TestReboot has the guest execute its own argv[0], as User Mode Linux does to
// reboot, with a helper and a file that must not reach the next life, and with
// SIGIO ignored, which must.
func TestReboot(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "")
	path := filepath.Join(c.RunDir, "script")
	script := `if [ -e own/again ]; then
	sig=$((0x$(grep SigIgn /proc/self/status | cut -f 2)))
	echo "ignores XFSZ $((sig >> 24 & 1)), IO $((sig >> 28 & 1)), pid $$"
	ls /proc/self/fd | tr '\n' ' '; echo; kill -0 $(cat own/again) 2>/dev/null && echo helper lives
	echo second life; exec sleep 1000
fi
sleep 1000 & echo $! > own/again; echo "first life, pid $$"
trap '' IO; exec 9< own/again
exec ./linux script
`
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Argv = []string{"/bin/sh", path}
	c.Files = append(c.Files, path)
	in := launch(t, c)
	logHas(t, c, "second life")
	b, err := os.ReadFile(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	log := string(b)
	_, pid, _ := strings.Cut(log, "first life, pid ")
	pid, _, _ = strings.Cut(pid, "\r")
	for _, want := range []string{"ignores XFSZ 1, IO 1, pid " + pid + "\r", "\r\n0 1 2 3 \r\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "helper lives") {
		t.Errorf("a helper of the first life is left:\n%s", log)
	}
	if now, err := Status(t.Context(), c.RunDir); err != nil || now.PID != in.PID || now.Exit != nil {
		t.Errorf("after a reboot the instance is %+v, %v; was %+v", now, err, in)
	}
}

// TestConfinement has the guest say itself what it may.
func TestConfinement(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `umask; id; id -G; grep -E 'NoNewPrivs|CapEff' /proc/self/status
echo ignores XFSZ: $((0x$(grep SigIgn /proc/self/status | cut -f2) >> 24 & 1))
ulimit -c; ulimit -n; ulimit -f; cd own && touch file && echo own-ok
head -c 8192 /dev/zero > big; echo "head: $?"; tty <&0; ls /proc/self/fd | tr '\n' ' '; echo; echo done; exec sleep 1000`)
	c.FileLimit = 4096
	in := launch(t, c)
	logHas(t, c, "done")
	b, err := os.ReadFile(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("uid=%d gid=%d groups=%d\r\n", testUID, testUID, testUID), "NoNewPrivs:\t1", "CapEff:\t0000000000000000",
		"\r\n0\r\n4096\r\n8\r\n", "own-ok", "head: 1", "ignores XFSZ: 1", "\r\n0 1 2 3 \r\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	if err := Kill(t.Context(), in); err != nil {
		t.Error(err)
	}
}

// TestRunaway has a guest whose child hides in a session of its own.
func TestRunaway(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `setsid sh -c 'trap "" TERM HUP INT; echo child; while :; do sleep 1; done' & sleep 1000`)
	in := launch(t, c)
	logHas(t, c, "child")
	before := children(in.PID)
	if len(before) == 0 {
		t.Fatal("the guest has no children")
	}
	if err := syscall.Kill(in.Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, in); e.Reason != vps.ExitLost {
		t.Errorf("ended as %+v", e)
	}
	for _, pid := range append(before, in.PID) {
		if f, err := statFields(pid); err == nil && f[0] != "Z" {
			t.Errorf("process %d lives on: %v", pid, f)
		}
	}
	again := launch(t, c)
	if same(again, in) {
		t.Error("the lost instance was taken for a running one")
	}
}

func TestOneKeeperOnly(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "exec sleep 1000")
	in := launch(t, c)
	if again := launch(t, c); again != in {
		t.Errorf("a second launch gave %+v, after %+v", again, in)
	}
	other := c
	other.GuestID = "somebody-else"
	if _, err := launcher(t).Launch(t.Context(), other); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("a launch for another guest gave %v", err)
	}
	k := &keeper{cfg: c}
	if err := k.run(t.Context()); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("a second keeper gave %v", err)
	}
}

// TestStuckKeeper kills a guest whose keeper does not answer.
func TestStuckKeeper(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "exec sleep 1000")
	in := launch(t, c)
	if err := syscall.Kill(in.Keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if held, err := Running(c.RunDir); held || err != nil {
		t.Errorf("still held: %v", err)
	}
}

func TestTerminated(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script string
		want   vps.ExitReason
	}{
		"obedient": {`trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done`, vps.ExitPowerOff},
		"stubborn": {`trap '' TERM; echo ready; while :; do sleep 0.1; done`, vps.ExitKilled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := shellGuest(t, test.script)
			c.StopTimeout = vps.Duration(time.Second)
			in := launch(t, c)
			logHas(t, c, "ready")
			if err := syscall.Kill(in.Keeper, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if e := wait(t, in); e.Reason != test.want {
				t.Errorf("ended as %+v", e)
			}
		})
	}
}

func TestLaunchFails(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, "")
	c.Argv = []string{"/nowhere/program"}
	_, err := launcher(t).Launch(t.Context(), c)
	if vps.ErrorCode(err) != vps.CodeInternal || !strings.Contains(err.Error(), "/nowhere/program: no such file") {
		t.Errorf("got %v", err)
	}
	if _, err := Find(c.RunDir); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a record was left: %v", err)
	}
	if held, err := Running(c.RunDir); held || err != nil {
		t.Errorf("the folder is still held: %v", err)
	}
}

// TestSlowReader floods the console while one caller does not read at all.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `read go; head -c 3000000 /dev/zero | tr '\0' x; echo; echo flooded; exec sleep 1000`)
	c.LogSize, c.LogFiles = 256*vps.KiB, 3
	in := launch(t, c)
	slow, err := Join(t.Context(), in, ConsoleOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	if _, err := slow.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	logHas(t, c, "flooded") // The guest was not held up.
	if err := Kill(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(slow)
	if err != nil || len(all) > 2<<20 || !strings.Contains(string(all), "bytes were left out") {
		t.Errorf("the slow reader got %d bytes, %v", len(all), err)
	}
	files, err := filepath.Glob(c.LogPath + "*")
	if err != nil || len(files) != 3 {
		t.Errorf("the log is in %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > int64(c.LogSize) {
			t.Errorf("%s: %v, %v", f, info.Size(), err)
		}
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	c := shellGuest(t, `while read x; do stty size; done`)
	in := launch(t, c)
	s, err := Join(t.Context(), in, ConsoleOptions{Write: true, Rows: 31, Cols: 97})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, want := range []string{"31 97", "12 34"} {
		if _, err := s.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		logHas(t, c, want)
		if err := s.Resize(12, 34); err != nil {
			t.Fatal(err)
		}
	}
}
