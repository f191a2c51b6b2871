//go:build linux

// Package systemd tests sublet on a machine with a real systemd as its first
// process: a small Debian in namespaces of its own, which it may even power
// off. Of the machine that the tests run on it sees no network, no processes
// and no init, and may write neither its kernel's settings nor its devices.
package systemd

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/test/lab"
)

// packages are what the machine has beyond Debian's essentials.
const packages = "systemd-sysv,dbus,user-mode-linux,mmdebstrap,nftables,e2fsprogs,iproute2,openssh-client,ca-certificates,debian-archive-keyring,tcc,procps"

// boot.sh makes the machine's world and becomes its first process.
//
//go:embed boot.sh
var bootScript string

// machine is one such Debian. It has a disk, and is on or off.
type machine struct {
	t    testing.TB
	dir  string // its disk and what it says
	root string // the Debian below its disk, shared by all machines
	on   *exec.Cmd
	gone chan struct{}
	init int // the process that is its first one
	// cgroup is the machine's place in the tree of control groups.
	cgroup string
}

// newMachine makes a machine, which is off. It ends with the test.
func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t, root: base(t)}
	var err error
	if m.dir, err = os.MkdirTemp("/tmp", "systemd"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(m.dir); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"disk/root/sublet", "disk/var/lib/sublet/images", "work", "machine"} {
		if err := os.MkdirAll(filepath.Join(m.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(m.kill)
	return m
}

// base returns the folder with the Debian that machines are made from.
func base(t testing.TB) string {
	t.Helper()
	return lab.Debian(t, "minbase", packages)
}

// install puts what `make build` made, and the scripts, onto the machine's
// disk, where a checkout would be.
func (m *machine) install() {
	m.t.Helper()
	root, err := lab.Root()
	if err != nil {
		m.t.Fatal(err)
	}
	lab.Bin(m.t) // built
	cmd := exec.CommandContext(m.t.Context(), "cp", "-r", "bin", "scripts", "packaging", filepath.Join(m.dir, "disk/root/sublet"))
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("install: %v\n%s", err, out)
	}
}

// boot switches the machine on and returns when its systemd has started all.
func (m *machine) boot() {
	m.t.Helper()
	m.makeCgroup()
	log, err := os.OpenFile(m.screen(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the machine has its own
	const enter = `echo $$ > "$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --net --uts --ipc --cgroup --kill-child -- bash -euc "$BOOT" boot`
	m.on = exec.CommandContext(context.WithoutCancel(m.t.Context()), "bash", "-euc", enter)
	m.on.Env = append(os.Environ(), "CGROUP="+m.cgroup, "BOOT="+bootScript, "BASE="+m.root, "DIR="+m.dir, "IMAGES="+lab.Images(m.t))
	m.on.Stdout, m.on.Stderr = log, log
	m.on.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: 0}
	if err := m.on.Start(); err != nil {
		m.t.Fatal(err)
	}
	gone := make(chan struct{})
	m.gone = gone
	go func(on *exec.Cmd) {
		_ = on.Wait()
		close(gone)
	}(m.on)
	m.eventually("systemd runs", func() bool {
		select {
		case <-gone:
			m.t.Fatal("the machine ended before its systemd ran")
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", m.on.Process.Pid))
		if err != nil {
			return false
		}
		m.init, err = strconv.Atoi(strings.TrimSpace(string(children)))
		if err != nil {
			return false
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.init))
		return err == nil && strings.TrimSpace(string(name)) == "systemd"
	})
	m.eventually("systemd has started all", func() bool {
		out, _ := m.try("systemctl", "is-system-running")
		state := strings.TrimSpace(out)
		return state == "running" || state == "degraded"
	})
}

// makeCgroup makes the machine's place in the second version's tree, whether
// that is the only one here or beside those of the first version.
func (m *machine) makeCgroup() {
	m.t.Helper()
	tree := ""
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			tree = path
			break
		}
	}
	if tree == "" {
		m.t.Fatal("no control groups of version 2 are mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified, and systemd needs them")
	}
	m.cgroup = filepath.Join(tree, "sublet-test-"+filepath.Base(m.dir))
	if err := os.MkdirAll(m.cgroup, 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// kill ends the machine at once, and removes what it left.
func (m *machine) kill() {
	if m.t.Failed() {
		m.explain()
	}
	if m.on == nil {
		return
	}
	if m.init > 1 {
		select {
		case <-m.gone:
		default:
			_ = syscall.Kill(m.init, syscall.SIGKILL) // all others of its namespace go with it
		}
	}
	_ = m.on.Process.Kill()
	<-m.gone
	m.removeCgroup()
}

func (m *machine) removeCgroup() {
	var dirs []string
	_ = filepath.WalkDir(m.cgroup, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append([]string{path}, dirs...)
		}
		return nil
	})
	for _, dir := range dirs {
		m.eventually("the control group "+dir+" is empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist)
		})
	}
}

// screen is the file with what the machine writes to its console.
func (m *machine) screen() string { return filepath.Join(m.dir, "screen") }

// explain prints what a person would look at first.
func (m *machine) explain() {
	if text, err := os.ReadFile(m.screen()); err == nil {
		m.t.Logf("the machine's screen:\n%s", text[max(0, len(text)-3000):])
	}
	if m.init > 1 {
		out, _ := m.tryFor(context.Background(), "journalctl", "--no-pager", "-n", "60", "-o", "short-precise")
		m.t.Logf("its journal:\n%s", out)
	}
}

// try runs a command on the machine and returns what it says.
func (m *machine) try(args ...string) (string, error) {
	return m.tryFor(m.t.Context(), args...)
}

func (m *machine) tryFor(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, hang.After)
	defer cancel()
	args = append([]string{
		"--target", strconv.Itoa(m.init), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd",
		"env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
	}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimRight(out.String(), "\n"), err
}

// run is try, and the test fails when the command does.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// property returns a property of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", name, unit)
}

// off waits until the machine has switched itself off.
func (m *machine) off() {
	m.t.Helper()
	select {
	case <-m.gone:
	case <-time.After(hang.After):
		m.t.Fatal("the machine does not switch itself off")
	}
	m.on = nil
	m.init = 0
	m.removeCgroup()
}

// eventually waits until ok is true.
func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	const pause = 100 * time.Millisecond
	for deadline := time.Now().Add(hang.After); !ok(); {
		if time.Now().After(deadline) {
			m.t.Fatalf("not within %s: %s", hang.After, what)
		}
		<-time.After(pause)
	}
}
