package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/test/lab"
)

// The exit codes of the design.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitDenied      = 5
	exitUnavailable = 7
	exitPartly      = 8
)

// mistake is an order that must fail and change nothing.
type mistake struct {
	args []string
	code int
	says []string // parts of the one line on standard error
}

// refuses checks a mistake.
func refuses(t *testing.T, h *lab.Host, m mistake) {
	t.Helper()
	what := "sublet " + strings.Join(m.args, " ")
	leavesAlone(t, h, what, func() {
		t.Helper()
		r := h.Try(m.args...)
		if r.Code != m.code {
			t.Errorf("%s: exit code %d; want %d", what, r.Code, m.code)
		}
		if r.Stdout != "" {
			t.Errorf("%s: the error goes to standard output: %q", what, r.Stdout)
		}
		if !strings.Contains("\n"+r.Stderr, "\nsublet: ") {
			t.Errorf("%s: the message does not say whose it is: %q", what, r.Stderr)
		}
		for _, part := range m.says {
			if !strings.Contains(r.Stderr, part) {
				t.Errorf("%s: the message does not say %q:\n%s", what, part, r.Stderr)
			}
		}
	})
}

// TestMistakes makes those that a person can make at a host that is well.
func TestMistakes(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	refuses(t, h, mistake{[]string{"list"}, exitUnavailable, []string{"the daemon does not run", "start it with"}})
	h.UseImage()
	h.Start()
	listen(t, h, h.NS, 8080)
	listen(t, h, h.NS, 21500)
	key := h.Key + ".pub"
	h.Sublet("create", "alice", "--stopped", "--memory", "128MiB", "--ssh-key", key, "--ports", "21000-21019")
	h.Sublet("tenant", "add", "bob")
	h.Sublet("create", "web", "--stopped", "--memory", "128MiB", "--ssh-key", key, "--forward", "8443:443/tcp", "--tenant", "bob")
	quiet(t, h)

	file := func(name, text string) string {
		path := filepath.Join(h.Dir, name)
		writeFile(t, path, text)
		return path
	}
	private := h.Key
	garbage := file("garbage.pub", "\x00\x01\x02\xff\xfe")
	damaged := file("damaged.pub", "# mine\nssh-ed25519 AAAAC3Nz lab\n")
	empty := file("empty.pub", "\n")
	unknownKey := file("unknown.yaml", "version: 1\nguests:\n  - name: carol\n    memroy: 256MiB\n")
	badSize := file("size.yaml", "guests:\n  - name: alice\n    memory: 256MB0\n")
	half := file("half.yaml", "guests:\n  - name: carol\n    ports: 0\n  - name: dave\n    ports: 21005-21010\n")
	create := func(args ...string) []string {
		return append([]string{"create", "carol", "--stopped", "--ssh-key", key}, args...)
	}

	for _, m := range []mistake{
		// What is taken.
		{[]string{"create", "alice", "--ssh-key", key}, exitConflict, []string{"a guest named alice exists already", "choose another name"}},
		{create("--ports", "21019-21030"), exitConflict, []string{"21019", "alice"}},
		{create("--ports", "21490-21509"), exitConflict, []string{"listens on port 21500/", "choose another block"}},
		{create("--forward", "8443:443"), exitConflict, []string{"8443", "web"}},
		{create("--forward", "8080:80/tcp"), exitConflict, []string{"listens on port 8080/tcp", "choose another port"}},
		{create("--forward", "21001:80/tcp"), exitConflict, []string{"21001", "alice"}},
		{create("--address", "10.213.0.2"), exitConflict, []string{"10.213.0.2", "alice"}},
		{[]string{"port", "add", "alice", "8080:80/tcp"}, exitConflict, []string{"alice", "listens on port 8080/tcp"}},
		{[]string{"port", "add", "alice", "8443:80"}, exitConflict, []string{"8443", "web"}},
		{[]string{"tenant", "remove", "bob"}, exitConflict, []string{"bob", "still has the guest web"}},
		{[]string{"image", "delete", "debian/12"}, exitConflict, []string{"in use by alice, web"}},

		// What there is not enough of.
		{[]string{"create", "carol", "--memory", "900GiB", "--ssh-key", key}, exitDenied, []string{"promised 900GiB of memory", "stop a guest"}},

		// What does not exist.
		{[]string{"create", "carol", "--image", "debian/99", "--ssh-key", key}, exitNotFound, []string{"there is no image debian/99", "sublet image build debian/99"}},
		{[]string{"start", "nobody"}, exitNotFound, []string{"there is no guest nobody", "sublet list"}},
		{[]string{"delete", "nobody", "--yes"}, exitNotFound, []string{"there is no guest nobody"}},
		{[]string{"console", "nobody"}, exitNotFound, []string{"there is no guest nobody"}},
		{[]string{"logs", "nobody"}, exitNotFound, []string{"there is no guest nobody"}},
		{[]string{"ssh", "nobody"}, exitNotFound, []string{"there is no guest nobody"}},
		{[]string{"show", "Nobody!"}, exitUsage, []string{"Nobody!"}},
		{create("--tenant", "nobody"), exitNotFound, []string{"nobody", "sublet tenant add"}},
		{[]string{"port", "remove", "alice", "9999"}, exitNotFound, []string{"9999 is not forwarded to alice"}},
		{[]string{"kill", "alice", "nobody"}, exitPartly, []string{"there is no guest nobody", "1 of 2 guests failed"}},

		// Keys.
		{[]string{"create", "carol", "--ssh-key", h.Dir + "/none.pub"}, exitUsage, []string{"none.pub does not exist", "ssh-keygen"}},
		{[]string{"create", "carol", "--ssh-key", private}, exitUsage, []string{"is a private key", private + ".pub"}},
		{[]string{"create", "carol", "--ssh-key", garbage}, exitUsage, []string{"garbage.pub is not text"}},
		{[]string{"create", "carol", "--ssh-key", damaged}, exitUsage, []string{"damaged.pub, line 2", "damaged"}},
		{[]string{"create", "carol", "--ssh-key", empty}, exitUsage, []string{"empty.pub has no key"}},
		{[]string{"create", "carol", "--ssh-key", h.Dir}, exitUsage, []string{"is a directory"}},

		// What is no value.
		{[]string{"create", "Carol"}, exitUsage, []string{`"Carol" is not a name`, "lower-case"}},
		{[]string{"create", "-carol"}, exitUsage, nil},
		{[]string{"create", strings.Repeat("c", 33)}, exitUsage, []string{"33 characters"}},
		{[]string{"create"}, exitUsage, []string{"create needs one name"}},
		{[]string{"create", "carol", "dave"}, exitUsage, []string{`"dave" is too much`}},
		{[]string{"create", "carol", "--color"}, exitUsage, []string{"--color"}},
		{create("--memory", "lots"), exitUsage, []string{"--memory", `"lots"`}},
		{create("--memory", "4MiB"), exitUsage, []string{"memory", "64MiB"}},
		{create("--disk", "1MiB"), exitUsage, []string{"disk", "256MiB"}},
		{create("--restart", "often"), exitUsage, []string{"restart", "always, on-failure, never"}},
		{create("--ports", "70000"), exitUsage, []string{"--ports"}},
		{create("--address", "10.214.0.9"), exitUsage, []string{"10.214.0.9", "10.213.0.0/16"}},
		{create("--timezone", "../../etc"), exitUsage, []string{"timezone"}},
		{[]string{"update", "alice"}, exitUsage, []string{"nothing to change"}},
		{[]string{"update", "alice", "--disk", "1GiB"}, exitUsage, []string{"cannot shrink"}},
		{[]string{"frobnicate"}, exitUsage, []string{"frobnicate"}},
		{[]string{"list", "-o", "xml"}, exitUsage, []string{"xml", "json"}},
		{[]string{"delete", "alice"}, exitUsage, []string{"--yes"}},
		{[]string{"console", "alice"}, exitConflict, []string{"alice does not run", "sublet start alice"}},

		// Quotas, zones and webhooks.
		{[]string{"quota", "set", "alice", "--month", "0"}, exitUsage, []string{"--month", "a quota of zero lets nothing through"}},
		{[]string{"quota", "set", "alice", "--month", "9EiB"}, exitUsage, []string{"--month", "out of range", "2^63"}},
		{[]string{"quota", "set", "--host", "9223372036854775808"}, exitUsage, []string{"out of range", "2^63"}},
		{[]string{"quota", "set", "alice", "--month", "1GiB", "--reset-day", "32"}, exitUsage, []string{"--reset-day", "32 is not a day of a month"}},
		{[]string{"quota", "set", "alice", "--month", "1GiB", "--timezone", "Mars/Olympus"}, exitUsage, []string{"--timezone", `"Mars/Olympus"`}},
		{[]string{"quota", "set", "nobody", "--month", "1GiB"}, exitNotFound, []string{"there is no guest nobody"}},
		{[]string{"host", "set", "--timezone", "Mars/Olympus"}, exitUsage, []string{"--timezone", `"Mars/Olympus"`}},
		{[]string{"host", "set", "--webhook", "http://10.0.0.1/"}, exitUsage, []string{"10.0.0.1 is not a public address", "--allow-private-webhooks"}},
		{[]string{"tenant", "set", "bob", "--webhook", "http://10.0.0.1/"}, exitUsage, []string{"10.0.0.1 is not a public address"}},

		// Files.
		{[]string{"apply", "-f", unknownKey}, exitUsage, []string{"line 4, column 5", `unknown key "memroy"`, "perhaps memory was meant", "\n        memroy: 256MiB\n        ^\n"}},
		{[]string{"apply", "-f", badSize}, exitUsage, []string{"line 3, column 13", `"256MB0" is not a size`}},
		{[]string{"apply", "-f", half}, exitConflict, []string{"dave", "21005"}},
		{[]string{"apply", "-f", h.Dir + "/none.yaml"}, exitUsage, []string{"none.yaml does not exist"}},
		{[]string{"apply"}, exitUsage, []string{"-f"}},

		// A second daemon.
		{[]string{"serve"}, exitConflict, []string{"another daemon already works in " + h.StateDir}},
		{[]string{"serve", "--state-dir", h.Dir + "/other"}, exitConflict, []string{"another daemon is running"}},
		{[]string{"cleanup"}, exitConflict, []string{"another daemon already works in " + h.StateDir}},
	} {
		refuses(t, h, m)
	}
	if list := h.Sublet("list", "-q"); list != "alice\nweb" {
		t.Errorf("after all mistakes there are %q", list)
	}
}

// TestNoKernel: without a kernel the daemon serves, says so, and promises no
// guest.
func TestNoKernel(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start("--kernel", "/nonexistent/linux.uml")
	h.Eventually("the plan is empty", h.Settled)
	refuses(t, h, mistake{
		[]string{"create", "alice", "--ssh-key", h.Key + ".pub"},
		exitNotFound,
		[]string{"there is no kernel for User Mode Linux", "/nonexistent/linux.uml", "apt-get install user-mode-linux"},
	})
	// A program that is no kernel is not taken for one.
	h.Stop()
	h.Start("--kernel", "/bin/true")
	h.Eventually("the plan is empty", h.Settled)
	refuses(t, h, mistake{[]string{"create", "alice", "--ssh-key", h.Key + ".pub"}, exitFailed, []string{"/bin/true", "no kernel for User Mode Linux"}})
}

// TestBadImages: an image that is not there, and ones that were damaged.
func TestBadImages(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	shared, err := filepath.EvalSymlinks(filepath.Join(h.StateDir, "images", "debian", "12", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(h.StateDir, "images")); err != nil {
		t.Fatal(err)
	}
	h.Start()
	quiet(t, h)
	create := []string{"create", "alice", "--ssh-key", h.Key + ".pub"}
	refuses(t, h, mistake{create, exitNotFound, []string{"there is no image debian/12", "sublet image build debian/12"}})

	// A copy of the shared image's folder, whose disk is full of nothing.
	id := filepath.Base(shared)
	home := filepath.Join(h.StateDir, "images", "debian", "12")
	if err := os.MkdirAll(filepath.Join(home, id), 0o711); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(shared, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(shared, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(home, id, "disk.img")
	writeFile(t, filepath.Join(home, id, "manifest.json"), string(manifest))
	writeFile(t, disk, "")
	if err := os.Symlink(id, filepath.Join(home, "latest")); err != nil {
		t.Fatal(err)
	}
	refuses(t, h, mistake{create, exitFailed, []string{"image debian/12", "is damaged", "disk.img is 0 bytes long", "sublet image build debian/12"}})
	if err := os.Truncate(disk, info.Size()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(disk, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	refuses(t, h, mistake{create, exitConflict, []string{"image debian/12", "holds no readable filesystem", "sublet image build debian/12"}})
	writeFile(t, filepath.Join(home, id, "manifest.json"), `{"version": 1`)
	refuses(t, h, mistake{create, exitFailed, []string{"image debian/12", "is damaged", "manifest.json", "sublet image build debian/12"}})
	if err := os.Remove(filepath.Join(home, id, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	refuses(t, h, mistake{create, exitFailed, []string{"image debian/12", "is damaged", "sublet image build debian/12"}})
}

// TestFullDisk fills the disk of the state under a daemon, by and by.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	if err := os.MkdirAll(h.StateDir, 0o711); err != nil {
		t.Fatal(err)
	}
	// In the test's own mounts, which the daemon has from it.
	if err := unix.Mount("full", h.StateDir, "tmpfs", 0, "size=512m,mode=711"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(h.StateDir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h.UseImage()
	h.Start()
	h.Sublet("create", "alice", "--stopped", "--memory", "128MiB", "--ssh-key", h.Key+".pub")
	quiet(t, h)
	create := []string{"create", "bob", "--stopped", "--memory", "128MiB", "--ssh-key", h.Key + ".pub"}

	ballast := filepath.Join(h.StateDir, "ballast")
	fill(t, ballast, 40<<20)
	refuses(t, h, mistake{create, exitDenied, []string{"bob", "the disk is full", "free some space"}})
	fill(t, ballast, 0)
	refuses(t, h, mistake{create, exitDenied, []string{"the disk is full"}})
	// Not even the order can be written down.
	refuses(t, h, mistake{[]string{"update", "alice", "--memory", "192MiB"}, exitDenied, []string{"full"}})
	refuses(t, h, mistake{[]string{"start", "alice"}, exitDenied, []string{"full"}})
	if r := h.Try("show", "alice"); r.Code != 0 {
		t.Errorf("with a full disk show ends with %d: %s", r.Code, r.Stderr)
	}
	passed := whileNothingIsCounted(t, h)
	// A daemon that starts on a full disk keeps what there is.
	h.Stop()
	h.Start()
	if list := h.Sublet("list", "-q"); list != "alice" {
		t.Errorf("after a start on a full disk there are %q", list)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.Sublet(create...)
	h.Eventually("the plan is empty", h.Settled)
	if got := hostReceived(t, h); got < passed {
		t.Errorf("with room again the ledger has %d bytes that the host received; want %d", got, passed)
	}
}

// whileNothingIsCounted has traffic pass, of which nothing can be kept, and
// returns what the ledger is to have when it can.
func whileNothingIsCounted(t *testing.T, h *lab.Host) int64 {
	t.Helper()
	before := hostReceived(t, h)
	const count, payload, headers = 5, 1000, 14 + 20 + 8 // of Ethernet, IPv4, ICMP
	h.Outside.Exec("ping", "-q", "-c", strconv.Itoa(count), "-i", "0.01", "-s", strconv.Itoa(payload), lab.HostAddress)
	r := h.Try("traffic", "--host")
	if r.Code != 0 || !strings.Contains(r.Stderr, "will be counted later: the file system "+h.StateDir) || !strings.Contains(r.Stderr, "full") {
		t.Errorf("with a full disk traffic ends with %d: %s", r.Code, r.Stderr)
	}
	return before + count*(payload+headers)
}

// hostReceived is what the ledger has of the public links, in bytes.
func hostReceived(t *testing.T, h *lab.Host) int64 {
	t.Helper()
	var page struct {
		Traffic []struct {
			In int64 `json:"in_bytes"`
		} `json:"traffic"`
	}
	text := h.Sublet("traffic", "--host", "--months", "-o", "json")
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var sum int64
	for _, line := range page.Traffic {
		sum += line.In
	}
	return sum
}

// fill makes a file as large as leaves this much of its filesystem.
func fill(t *testing.T, path string, leave int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // only ballast
	block := make([]byte, 4096)
	for {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil {
			t.Fatal(err)
		}
		if int64(fs.Bavail)*fs.Bsize <= leave {
			return
		}
		if _, err := file.Write(block); err != nil {
			return // full at last
		}
	}
}
