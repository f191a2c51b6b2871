package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/test/lab"
)

// TestUpAndDown runs `make up` and `make down` twice each, without the parts
// that install packages and build: a second one of either changes nothing, and
// after `down` the host is what it was before `up`.
func TestUpAndDown(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	u := upper{h: h, prefix: filepath.Join(h.Dir, "prefix"), ssh: filepath.Join(h.Dir, "ssh"), log: filepath.Join(h.Dir, "log", "sublet.log")}
	t.Cleanup(u.stop)
	// What belongs to others, of each kind that is ours too.
	h.NS.Exec("ip", "link", "add", "br-other", "type", "bridge")
	h.NS.Exec("ip", "addr", "add", "192.0.2.1/25", "dev", "br-other")
	h.NS.Exec("ip", "link", "set", "br-other", "up")
	h.NS.Exec("ip", "route", "add", "192.0.2.128/25", "via", "192.0.2.2")
	h.NS.ExecInput(`
table inet other {
	counter seen { packets 7 bytes 700 }
	set known { type ipv4_addr; elements = { 203.0.113.7 } }
	chain forward { type filter hook forward priority 5; policy accept; ip saddr @known counter name seen accept; }
}
table ip nat {
	chain postrouting { type nat hook postrouting priority 100; ip saddr 192.0.2.0/25 masquerade; }
}`, "nft", "-f", "-")
	h.Eventually("the links' own addresses are settled", func() bool {
		return !strings.Contains(h.NS.Exec("ip", "addr"), "tentative")
	})
	before := u.host(t)

	for round := range 2 {
		t.Logf("up, round %d", round+1)
		// The state folder goes with down, and this link to the shared image.
		h.UseImage()
		said := u.run(t, "up")
		h.Key = filepath.Join(u.ssh, "id_ed25519")
		g := h.Show("first")
		for _, want := range []string{
			"sublet ssh first\n", fmt.Sprintf("ssh -p %d root@%s\n", g.Spec.Ports.First, lab.HostAddress),
			" " + g.Spec.Address + "\n", fmt.Sprintf(" %d-%d of this host", g.Spec.Ports.First, g.Spec.Ports.First+g.Spec.Ports.Count-1),
		} {
			if !strings.Contains(said, want) {
				t.Errorf("up does not say %q:\n%s", want, said)
			}
		}
		if got := h.SSHFrom(h.Outside, g.Spec.Ports.First, "hostname"); got != "first" {
			t.Errorf("through its port answers %q; want first", got)
		}
		daemon, links, folders := u.daemon(t), u.host(t), u.folders(t)

		said = u.run(t, "up")
		if again := h.Show("first"); again.Status.PID != g.Status.PID || again.ID != g.ID || u.daemon(t) != daemon {
			t.Errorf("a second up started something anew: the daemon was %s and is %s, the guest was %+v and is %+v", daemon, u.daemon(t), g.Status, again.Status)
		}
		if diff := cmp.Diff(links+folders, u.host(t)+u.folders(t)); diff != "" {
			t.Errorf("a second up changed something (-before +after):\n%s", diff)
		}
		if strings.Contains(said, "the daemon runs") || !strings.Contains(said, "sublet ssh first\n") {
			t.Errorf("a second up says:\n%s", said)
		}

		t.Logf("down, round %d", round+1)
		u.run(t, "down")
		if diff := cmp.Diff(before, u.host(t)); diff != "" {
			t.Errorf("after down the host's links, routes and rules are not what they were (-before +after):\n%s", diff)
		}
		// What is root's own stays: its new key. So do the usual folders.
		want := "log\nprefix\nprefix/bin\nprefix/lib\nssh\nssh/id_ed25519\nssh/id_ed25519.pub\n"
		if diff := cmp.Diff(want, u.folders(t)); diff != "" {
			t.Errorf("after down the folders are not what they were (-want +got):\n%s", diff)
		}
		if said := u.run(t, "down"); !strings.Contains(said, "nothing is installed") {
			t.Errorf("a second down says:\n%s", said)
		}
	}
}

// upper runs the scripts on a host of the lab, into the lab's folders.
type upper struct {
	h                *lab.Host
	prefix, ssh, log string
}

// run runs a script and returns what it said.
func (u upper) run(t *testing.T, script string) string {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	lab.Bin(t) // built
	r := u.h.Command("env", "--unset=SUBLET_INIT", "PREFIX="+u.prefix, "SSH_DIR="+u.ssh, "SUBLET_LOG="+u.log, filepath.Join(root, "scripts", script))
	if r.Code != 0 {
		log, _ := os.ReadFile(u.log)
		t.Fatalf("%s: exit code %d\n%s%s\nthe daemon's log:\n%s", script, r.Code, r.Stdout, r.Stderr, log)
	}
	return r.Stdout + r.Stderr
}

// daemon returns the process id of the daemon that up started.
func (u upper) daemon(t *testing.T) string {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(u.h.RunDir, "daemon.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if exe, err := os.Readlink(filepath.Join("/proc", strings.TrimSpace(string(pid)), "exe")); err != nil || exe != filepath.Join(u.prefix, "bin/sublet") {
		t.Fatalf("the daemon is %s, which runs %q, %v", pid, exe, err)
	}
	return string(pid)
}

// stop ends the daemon that a failed test left running; the lab ends the guest.
func (u upper) stop() {
	text, err := os.ReadFile(filepath.Join(u.h.RunDir, "daemon.pid"))
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// host tells what the host's network is made of.
func (u upper) host(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"nft -a list ruleset", "ip -o link", "ip -o addr", "ip -4 route show table all", "ip -6 route show table all", "ip rule",
	} {
		words := strings.Fields(command)
		out := carrier.ReplaceAllString(u.h.NS.Exec(words[0], words[1:]...), "")
		out = counted.ReplaceAllString(out, "counter")
		fmt.Fprintf(&b, "== %s\n%s\n", command, forwards6.ReplaceAllString(out, ""))
	}
	return b.String()
}

// counted is what the guest's traffic changes.
var counted = regexp.MustCompile(`counter packets \d+ bytes \d+`)

// forwards6 is what a link has on a host that forwards IPv6, which stays on:
// others may have come to rely on it.
var forwards6 = regexp.MustCompile(`(?m)^anycast .*\n`)

// folders lists what is in the lab's folders, without what changes as the
// daemon and the guest work.
func (u upper) folders(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(u.h.Dir, func(path string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(u.h.Dir, path)
		switch base := filepath.Base(path); {
		case err != nil:
			return err
		case name == ".", name == "key", name == "key.pub", strings.HasPrefix(base, "state.db-"):
			return nil
		}
		fmt.Fprintln(&b, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
