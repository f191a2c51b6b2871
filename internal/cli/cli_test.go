package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"sublet/internal/api"
	"sublet/internal/vps"
)

var update = flag.Bool("update", false, "rewrite golden files and docs/cli.md")

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl test@example"

// world is one caller of sublet, in front of a fake daemon.
type world struct {
	*fake
	options     Options
	out, errors bytes.Buffer
}

func newWorld() *world {
	w := &world{fake: newFake()}
	w.options = Options{
		Version: "1.2.3", Stdin: strings.NewReader(""), Stdout: &w.out, Stderr: &w.errors,
		Env:        func(string) string { return "" },
		IsTerminal: func(any) bool { return false },
		Dial:       func(string) Client { return w.fake },
		Exec:       func(string, []string, []string) error { return errors.New("no exec in tests") },
		LookPath:   func(name string) (string, error) { return "/usr/bin/" + name, nil },
		Now:        func() time.Time { return now },
		Poll:       time.Millisecond,
	}
	return w
}

// run runs one command line and returns the exit code.
func (w *world) run(ctx context.Context, args ...string) int {
	w.out.Reset()
	w.errors.Reset()
	root := New(w.options)
	root.SetArgs(args)
	return ExitCode(root.ExecuteContext(ctx), w.options.Stderr)
}

// mustRun runs a command line that has to succeed.
func (w *world) mustRun(t *testing.T, args ...string) {
	t.Helper()
	if code := w.run(t.Context(), args...); code != 0 {
		t.Fatalf("sublet %s: exit code %d\n%s", strings.Join(args, " "), code, w.errors.String())
	}
}

// golden compares got with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s is not what was printed (-want +got; -update rewrites it):\n%s", file, d)
	}
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/scripts",
		Setup: func(env *testscript.Env) error {
			env.Values["world"] = newWorld()
			return os.WriteFile(filepath.Join(env.WorkDir, "id.pub"), []byte(testKey+"\n"), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// sublet ARGS… succeeds; exits CODE ARGS… ends with this code.
			"sublet": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg {
					ts.Fatalf("say which exit code: exits CODE ARGS…")
				}
				scripted(ts, 0, args)
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				var want int
				if _, err := fmt.Sscan(args[0], &want); err != nil {
					ts.Fatalf("%q is no exit code", args[0])
				}
				scripted(ts, want, args[1:])
			},
			"fails": func(ts *testscript.TestScript, _ bool, args []string) {
				w := ts.Value("world").(*world)
				w.failure = nil
				if args[0] != "never" {
					w.failure = vps.Errorf(vps.Code(args[0]), "%s", strings.Join(args[1:], " "))
				}
			},
		},
	})
}

func scripted(ts *testscript.TestScript, want int, args []string) {
	w := ts.Value("world").(*world)
	w.options.Stdin = strings.NewReader("guest alice\nguest carol\n")
	for i, arg := range args {
		if strings.HasPrefix(arg, "@") {
			args[i] = ts.MkAbs(arg[1:])
		}
	}
	code := w.run(context.Background(), args...)
	_, _ = io.Copy(ts.Stdout(), &w.out)
	_, _ = io.Copy(ts.Stderr(), &w.errors)
	if code != want {
		ts.Fatalf("sublet %s: exit code %d, want %d", strings.Join(args, " "), code, want)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  error
		want int
		text string
	}{
		{nil, 0, ""},
		{errors.New("boom"), 1, "sublet: boom\n"},
		{errSilent, 1, ""},
		{vps.Errorf(vps.CodeInternal, "no"), 1, "sublet: no\n"},
		{vps.Invalid("memory", "too little"), 2, "sublet: memory: too little\n"},
		{vps.Errorf(vps.CodeNotFound, "gone"), 3, "sublet: gone\n"},
		{vps.Errorf(vps.CodeConflict, "taken"), 4, "sublet: taken\n"},
		{vps.Errorf(vps.CodeDenied, "too much"), 5, "sublet: too much\n"},
		{vps.Errorf(vps.CodeTimeout, "late"), 6, "sublet: late\n"},
		{fmt.Errorf("get: %w", context.DeadlineExceeded), 6, "sublet: the daemon did not answer in time; its log may say why\n"},
		{vps.Errorf(vps.CodeUnavailable, "down"), 7, "sublet: down\n"},
		{vps.Errorf(vps.CodePartial, "half"), 8, "sublet: half\n"},
		{vps.Wrap(vps.CodeTimeout, context.Canceled, "timeout"), 1, "sublet: interrupted\n"},
		{about("alice", vps.Errorf(vps.CodeConflict, "in use")), 4, "sublet: alice: in use\n"},
		{about("alice", vps.Errorf(vps.CodeConflict, "guest alice is in use")), 4, "sublet: guest alice is in use\n"},
		{about("al", vps.Errorf(vps.CodeConflict, "alice is in use")), 4, "sublet: al: alice is in use\n"},
		{about("alice", vps.Errorf(vps.CodeUnavailable, "down")), 7, "sublet: down\n"},
		{errors.New("evil \x1b]0;title\a"), 1, "sublet: evil \ufffd]0;title\ufffd\n"},
	}
	for _, test := range tests {
		var b bytes.Buffer
		if got := ExitCode(test.err, &b); got != test.want || b.String() != test.text {
			t.Errorf("ExitCode(%v) = %d, %q; want %d, %q", test.err, got, b.String(), test.want, test.text)
		}
	}
}

// populate makes a host with a bit of everything.
func populate(t *testing.T) *world {
	t.Helper()
	w := newWorld()
	w.mustRun(t, "tenant", "add", "bob", "--note", "paid until June")
	key := filepath.Join(t.TempDir(), "id.pub")
	if err := os.WriteFile(key, []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mustRun(t, "create", "alice", "--ssh-key", key, "--forward", "8443:443/tcp", "--forward", "5353:53", "--dns", "9.9.9.9")
	w.mustRun(t, "create", "bob", "--tenant", "bob", "--memory", "1536MiB", "--stopped", "--ssh-key", key)
	w.mustRun(t, "create", "noports", "--ports", "0", "--ssh-key", key)
	g := w.guests["noports"]
	g.Status = vps.GuestStatus{
		State: vps.StateCrashed, Observed: now, Restarts: 3, NextTry: now.Add(time.Minute),
		Exit: &vps.Exit{Reason: vps.ExitPanic, Code: -1, Signal: "SIGABRT", At: now, Detail: "Kernel panic \x1b[31m- not syncing"},
	}
	w.mustRun(t, "create", "walled", "--ssh-key", key, "--bandwidth", "20Mbit", "--network-peer", "--allow-smtp", "--ipv6", "fd53:4c00:d5::f00/120",
		"--cpu-weight", "50", "--cpu-quota", "150%", "--io-read", "50MiB", "--processes", "500", "--limit-packets", "5000",
		"--rule", "allow out host 8080/tcp", "--rule", "deny out 192.0.2.0/24")
	w.links = []vps.PageLink{{ID: 1, Tenant: "bob", Note: "by mail", Created: now}, {ID: 4, Created: now.Add(time.Hour)}}
	w.drops = []api.Drop{
		{Drop: vps.Drop{Reason: vps.DropSpoofed, Packets: 12, Bytes: 720}, Last: now.Add(-time.Minute)},
		{Drop: vps.Drop{Reason: vps.DropVLAN}},
		{Drop: vps.Drop{Reason: vps.DropSMTP, Packets: 123456, Bytes: 7407360}},
	}
	w.audit = api.AuditReport{Schema: api.SchemaVersion, Results: []api.AuditResult{
		{Kind: api.AttackNetwork, Attack: "foreign-mac", What: "a frame with a neighbour's MAC", Expected: "dropped", Seen: "dropped", Counter: "spoofed", OK: true},
		{Kind: api.AttackNetwork, Attack: "router-advertisement-in-a-long-name", What: "a router advertisement to all nodes", Expected: "dropped", Seen: "at the victim", OK: false},
		{Kind: api.AttackJail, Attack: "shadow", What: "open /etc/shadow", Expected: "refused", Seen: "refused: no such \x1b[31mfile", Counter: "mount namespace", OK: true},
	}}
	w.events = []vps.Event{
		{ID: 1, Time: now, Guest: "alice", Kind: vps.EventCreated, Message: "alice was created"},
		{ID: 2, Time: now, Kind: vps.EventDrift, Message: "the table inet sublet was gone and is back"},
		{ID: 3, Time: now, Guest: "walled", Kind: vps.EventDropped, Message: "12 packets dropped: spoofed 12"},
	}
	w.finds = append(w.finds,
		api.Finding{Check: "shm", Level: "warning", Message: "/dev/shm has 64MiB", Remedy: "mount -o remount,size=1G /dev/shm"},
		api.Finding{Check: "kernel", Level: "error", Message: "there is no UML kernel", Remedy: "apt install user-mode-linux"})
	return w
}

func TestGolden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		code int
		args string
	}{
		{"list.table", 0, "list"},
		{"list.wide", 0, "list -o wide"},
		{"list.json", 0, "list -o json"},
		{"list.yaml", 0, "list -o yaml --filter name=alice"},
		{"list.csv", 0, "list -o csv"},
		{"list.name", 0, "list -o name"},
		{"list.quiet", 0, "list -q --filter state=r*"},
		{"list.bare", 0, "list --no-headers --filter image=debian/* --filter tenant=bob"},
		{"list.none.json", 0, "list -o json --filter name=zoe"},
		{"show.alice", 0, "show alice"},
		{"show.crashed", 0, "show noports"},
		{"show.json", 0, "show alice -o json"},
		{"show.two.yaml", 0, "show alice bob -o yaml"},
		{"image.list", 0, "image list"},
		{"image.show", 0, "image show debian/12 --packages"},
		{"image.show.json", 0, "image show debian/12 -o json"},
		{"kernel.list.wide", 0, "kernel list -o wide"},
		{"kernel.show", 0, "kernel show uml/7.2.13-0123456789ab"},
		{"kernel.show.json", 0, "kernel show uml/7.2.13-0123456789ab -o json"},
		{"port.list", 0, "port list"},
		{"port.list.json", 0, "port list alice -o json"},
		{"tenant.list", 0, "tenant list"},
		{"tenant.link.list", 0, "tenant link list"},
		{"tenant.link.list.json", 0, "tenant link list -o json --filter page=bob"},
		{"tenant.link.create.json", 0, "tenant link create bob --note hello -o json"},
		{"host.show", 0, "host show"},
		{"host.show.json", 0, "host show -o json"},
		{"events", 0, "events"},
		{"show.walled", 0, "show walled"},
		{"net.show", 0, "net show alice"},
		{"net.show.walled", 0, "net show walled"},
		{"net.show.yaml", 0, "net show walled -o yaml"},
		{"net.audit", 1, "net audit"},
		{"net.audit.quiet", 1, "net audit -q"},
		{"net.audit.json", 1, "net audit -o json"},
		{"doctor", 1, "doctor"},
		{"doctor.json", 1, "doctor -o json"},
		{"version", 0, "version"},
		{"create", 0, "create dora --ssh-key id.pub --forward 80:80/tcp --wait ssh"},
		{"create.noports", 0, "create dora --root-password-file password --ports 0"},
		{"create.json", 0, "create dora --ssh-key id.pub -o json"},
		{"dry-run", 0, "create dora --dry-run"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := populate(t)
			dir := t.TempDir()
			args := strings.Fields(test.args)
			for i, arg := range args {
				if arg == "id.pub" || arg == "password" {
					args[i] = filepath.Join(dir, arg)
					if err := os.WriteFile(args[i], []byte(map[string]string{"id.pub": testKey, "password": "secret\n"}[arg]), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if code := w.run(t.Context(), args...); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			// An audit says before it begins that it takes its time.
			if w.errors.Len() > 0 && !strings.HasPrefix(w.errors.String(), "attacking this host") {
				t.Errorf("standard error is not empty:\n%s", w.errors.String())
			}
			golden(t, filepath.Join("testdata", "golden", test.name), w.out.String())
		})
	}
}

// TestColour checks that colour is for terminals, and never for NO_COLOR.
func TestColour(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		terminal bool
		env      map[string]string
		want     bool
	}{
		{false, nil, false},
		{true, nil, true},
		{true, map[string]string{"NO_COLOR": "1"}, false},
		{true, map[string]string{"TERM": "dumb"}, false},
	} {
		w := populate(t)
		w.options.IsTerminal = func(any) bool { return test.terminal }
		w.options.Env = func(name string) string { return test.env[name] }
		w.mustRun(t, "list")
		if got := strings.Contains(w.out.String(), "\x1b["); got != test.want {
			t.Errorf("terminal %v, %v: colour is %v", test.terminal, test.env, got)
		}
		w.mustRun(t, "wait", "alice")
		if got := strings.Contains(w.errors.String(), "\x1b["); got != test.want {
			t.Errorf("terminal %v, %v: spinner is %v", test.terminal, test.env, got)
		}
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		env, want string
		args      []string
	}{
		{"", api.DefaultSocket, []string{"list"}},
		{"/env.sock", "/env.sock", []string{"list"}},
		{"/env.sock", "/flag.sock", []string{"list", "--socket", "/flag.sock"}},
		{"", "/flag.sock", []string{"--socket", "/flag.sock", "--no-headers", "list"}},
	} {
		w, got := newWorld(), ""
		w.options.Env = func(name string) string {
			return map[string]string{"SUBLET_SOCKET": test.env}[name]
		}
		w.options.Dial = func(socket string) Client { got = socket; return w.fake }
		w.mustRun(t, test.args...)
		if got != test.want {
			t.Errorf("%v with %q dialled %q, want %q", test.args, test.env, got, test.want)
		}
	}
}
