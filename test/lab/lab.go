// Package lab runs real daemons with real guests for the tests, each in a
// network of its own with a world outside, and folders of its own. Many may
// run side by side. Nothing of the machine's own is touched.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sublet/internal/edge/control"
	"sublet/internal/hang"
	"sublet/internal/nstest"
)

// Addresses of the lab: the host's own (RFC 5737, TEST-NET-2), and a stranger's
// somewhere outside (TEST-NET-3), reached through the router.
const (
	HostAddress     = "198.51.100.2"
	RouterAddress   = "198.51.100.1"
	StrangerAddress = "203.0.113.9"
)

// Host is one host of the lab.
type Host struct {
	t testing.TB
	// NS is the host's own network, which the test's goroutine is inside of.
	NS *nstest.NS
	// Outside is the world: the router and a stranger.
	Outside *nstest.NS
	// Dir holds everything of this host.
	Dir      string
	StateDir string
	RunDir   string
	Key      string // private key that opens the guests
	Env      []string
	daemon   *exec.Cmd
	gone     chan struct{}
}

// New makes a host with nothing on it. The daemon does not run yet. Whatever
// runs there when the test ends is killed.
func New(t testing.TB) *Host {
	t.Helper()
	b := built(t)
	h := &Host{t: t, NS: nstest.New(t)}
	h.hideSystemd()
	h.Outside = h.NS.Peer()
	h.NS.Veth("pub0", h.Outside, "eth0")
	h.NS.Exec("ip", "addr", "add", HostAddress+"/24", "dev", "pub0")
	h.NS.Exec("ip", "route", "add", "default", "via", RouterAddress)
	h.Outside.Exec("ip", "addr", "add", RouterAddress+"/24", "dev", "eth0")
	h.Outside.Exec("ip", "addr", "add", StrangerAddress+"/32", "dev", "lo")

	// Sockets have short names (108 bytes with all folders, unix(7)).
	dir, err := os.MkdirTemp("/tmp", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	h.Dir, h.StateDir, h.RunDir = dir, filepath.Join(dir, "state"), filepath.Join(dir, "run")
	h.Key = filepath.Join(dir, "key")
	h.NS.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", h.Key)
	h.Env = append(os.Environ(),
		"SUBLET_STATE_DIR="+h.StateDir, "SUBLET_RUN_DIR="+h.RunDir, "SUBLET_SOCKET="+filepath.Join(h.RunDir, "api.sock"),
		"SUBLET_INIT="+b.init, "PATH="+filepath.Dir(b.sublet)+":"+os.Getenv("PATH"))
	t.Cleanup(h.shutdown)
	return h
}

// hideSystemd keeps the machine's own service manager out of the lab, in the
// lab's own mount namespace: asked to, it would start guests in the machine's
// network. What programs look at is whether a folder is there (sd_booted(3));
// the folder with the addresses of name servers stays.
func (h *Host) hideSystemd() {
	h.t.Helper()
	const run, resolve = "/run/systemd", "/run/systemd/resolve"
	if _, err := os.Stat(filepath.Join(run, "system")); errors.Is(err, fs.ErrNotExist) {
		return
	}
	empty := h.t.TempDir()
	kept := filepath.Join(empty, "resolve")
	if err := os.Mkdir(kept, 0o755); err != nil {
		h.t.Fatal(err)
	}
	// Copied, not bound: the bind would keep the folder from being removed.
	if err := os.CopyFS(kept, os.DirFS(resolve)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	h.NS.Exec("mount", "--bind", empty, run)
}

// UseImage puts the image that all tests share into the host's store.
func (h *Host) UseImage() {
	h.t.Helper()
	if err := os.MkdirAll(h.StateDir, 0o711); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Symlink(images(h.t), filepath.Join(h.StateDir, "images")); err != nil {
		h.t.Fatal(err)
	}
}

// Start starts the daemon and returns when it answers and has nothing left to
// do for the host itself.
func (h *Host) Start(args ...string) {
	h.t.Helper()
	h.StartProgram(built(h.t).sublet, append([]string{"serve"}, args...)...)
	h.Eventually("the daemon answers", func() bool { return h.Try("host", "show").Code == 0 })
}

// StartProgram starts another program in the daemon's place.
func (h *Host) StartProgram(path string, args ...string) {
	h.t.Helper()
	log, err := os.OpenFile(filepath.Join(h.Dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the daemon has its own
	h.daemon = exec.CommandContext(context.WithoutCancel(h.t.Context()), path, args...)
	h.daemon.Env, h.daemon.Stdout, h.daemon.Stderr = h.Env, log, log
	if err := h.daemon.Start(); err != nil {
		h.t.Fatalf("start the daemon: %v", err)
	}
	gone := make(chan struct{})
	h.gone = gone
	go func(d *exec.Cmd) {
		_ = d.Wait()
		close(gone)
	}(h.daemon)
}

// Daemon returns the daemon's process id.
func (h *Host) Daemon() int { return h.daemon.Process.Pid }

// Gone is closed when the daemon's process has ended.
func (h *Host) Gone() <-chan struct{} { return h.gone }

// Kill ends the daemon with SIGKILL, Stop with SIGTERM.
func (h *Host) Kill() { h.signal(syscall.SIGKILL) }

// Stop ends the daemon in good order.
func (h *Host) Stop() { h.signal(syscall.SIGTERM) }

func (h *Host) signal(s os.Signal) {
	h.t.Helper()
	if err := h.daemon.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Fatal(err)
	}
	<-h.gone
}

// shutdown ends all that runs on the host, by process id.
func (h *Host) shutdown() {
	if h.t.Failed() {
		h.explain()
	}
	if h.daemon != nil {
		_ = h.daemon.Process.Kill()
		<-h.gone
	}
	records, err := filepath.Glob(filepath.Join(h.RunDir, "guests", "*", "instance.json"))
	if err != nil {
		h.t.Error(err)
	}
	for _, path := range records {
		var i struct {
			Keeper int             `json:"keeper"`
			Exit   json.RawMessage `json:"exit"`
		}
		if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &i) != nil || i.Exit != nil || i.Keeper <= 1 {
			continue
		}
		// A guest does not outlive its keeper.
		_ = syscall.Kill(i.Keeper, syscall.SIGKILL)
	}
	if err := control.CleanUp(context.WithoutCancel(h.t.Context()), filepath.Join(h.RunDir, "edge")); err != nil {
		h.t.Error(err)
	}
	h.RemoveGroups()
}

// InstancePIDs returns the process ids of what runs below a folder of run
// folders.
func (h *Host) InstancePIDs(runs string) []int {
	h.t.Helper()
	records, err := filepath.Glob(filepath.Join(runs, "*", "instance.json"))
	if err != nil {
		h.t.Fatal(err)
	}
	var pids []int
	for _, path := range records {
		var i struct {
			PID  int             `json:"pid"`
			Exit json.RawMessage `json:"exit"`
		}
		if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &i) == nil && i.PID > 0 && i.Exit == nil {
			pids = append(pids, i.PID)
		}
	}
	return pids
}

// RemoveGroups removes the control groups of guests that were killed with
// their keepers, once they are over.
func (h *Host) RemoveGroups() {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.RunDir, "guests", "*", "cgroups.json"))
	if err != nil {
		h.t.Error(err)
	}
	for _, path := range files {
		var g struct {
			Group struct {
				V2 string            `json:"v2"`
				V1 map[string]string `json:"v1"`
			} `json:"group"`
		}
		if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &g) != nil {
			continue
		}
		for _, dir := range append(slices.Collect(maps.Values(g.Group.V1)), g.Group.V2) {
			for deadline := time.Now().Add(hang.After); dir != "" && errors.Is(syscall.Rmdir(dir), syscall.EBUSY); {
				if time.Now().After(deadline) {
					h.t.Errorf("something stays in %s", dir)
					break
				}
			}
		}
	}
}

// explain prints what a person would look at first.
func (h *Host) explain() {
	text, err := os.ReadFile(filepath.Join(h.Dir, "daemon.log"))
	if err == nil {
		h.t.Logf("the daemon's log:\n%s", lastBytes(text, 6000))
	}
	logs, err := filepath.Glob(filepath.Join(h.StateDir, "logs", "*", "console.log"))
	if err != nil {
		return
	}
	for _, path := range logs {
		if text, err := os.ReadFile(path); err == nil {
			h.t.Logf("%s:\n%s", path, lastBytes(text, 3000))
		}
	}
}

func lastBytes(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// Result is what a command printed, and its exit code.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Try runs the command line on the host. It may fail.
func (h *Host) Try(args ...string) Result {
	h.t.Helper()
	return h.run(nil, built(h.t).sublet, args...)
}

// Sublet runs the command line on the host and returns what it printed. When
// it fails, so does the test.
func (h *Host) Sublet(args ...string) string {
	h.t.Helper()
	return h.must(h.Try(args...), "sublet", args)
}

// SubletInput is Sublet with a standard input.
func (h *Host) SubletInput(input string, args ...string) string {
	h.t.Helper()
	return h.must(h.run(strings.NewReader(input), built(h.t).sublet, args...), "sublet", args)
}

func (h *Host) must(r Result, name string, args []string) string {
	h.t.Helper()
	if r.Code != 0 {
		h.t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimRight(r.Stdout, "\n")
}

func (h *Host) run(stdin *strings.Reader, path string, args ...string) Result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*hang.After) // it may wait for something itself
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = h.Env, &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("run %s: %v", path, err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Command runs a program on the host, with the host's environment.
func (h *Host) Command(path string, args ...string) Result {
	h.t.Helper()
	return h.run(nil, path, args...)
}

// Guest is what `sublet show -o json` says that tests look at.
type Guest struct {
	ID   string `json:"id"`
	Spec struct {
		Power   string `json:"power"`
		Address string `json:"address"`
		Ports   struct {
			First int `json:"first"`
			Count int `json:"count"`
		} `json:"ports"`
	} `json:"spec"`
	Status struct {
		State    string    `json:"state"`
		PID      int       `json:"pid"`
		Started  time.Time `json:"started"`
		Restarts int       `json:"restarts"`
		Message  string    `json:"message"`
		Exit     *struct {
			Reason string `json:"reason"`
			Detail string `json:"detail"`
		} `json:"exit"`
		DiskUsed  int64 `json:"disk_used"`
		Restraint struct {
			Action string `json:"action"`
		} `json:"restraint"`
	} `json:"status"`
	Link string `json:"link"`
	UID  int    `json:"uid"`
}

// Show returns what the daemon says of a guest.
func (h *Host) Show(name string) Guest {
	h.t.Helper()
	var g Guest
	h.decode(h.Sublet("show", name, "-o", "json"), &g)
	return g
}

func (h *Host) decode(text string, into any) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		h.t.Fatalf("decode %q: %v", text, err)
	}
}

// Settled tells whether the daemon has nothing left to do.
func (h *Host) Settled() bool {
	r := h.Try("host", "show", "-o", "json")
	var info struct {
		Settled bool `json:"settled"`
	}
	return r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &info) == nil && info.Settled
}

// SSH runs a command in a guest, as root, from the host itself, and returns
// what it printed. When it fails, so does the test.
func (h *Host) SSH(name string, command ...string) string {
	h.t.Helper()
	return h.must(h.TrySSH(name, command...), "ssh "+name, command)
}

// TrySSH is SSH for a command that may fail.
func (h *Host) TrySSH(name string, command ...string) Result {
	h.t.Helper()
	return h.run(nil, "ssh", append(h.sshArgs(h.Show(name).Spec.Address, 22), command...)...)
}

// SSHFrom runs a command in a guest from another network, through a port of
// the host.
func (h *Host) SSHFrom(from *nstest.NS, port int, command ...string) string {
	h.t.Helper()
	return from.Exec("ssh", append(h.sshArgs(HostAddress, port), command...)...)
}

func (h *Host) sshArgs(address string, port int) []string {
	return []string{
		"-q", "-i", h.Key, "-p", fmt.Sprint(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=40", "root@" + address,
	}
}

// Eventually waits until ok is true.
func (h *Host) Eventually(what string, ok func() bool) {
	h.t.Helper()
	const pause = 50 * time.Millisecond
	for deadline := time.Now().Add(hang.After); !ok(); {
		if time.Now().After(deadline) {
			h.t.Fatalf("not within %s: %s", hang.After, what)
		}
		<-time.After(pause)
	}
}
