package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/test/lab"
)

// TestHostFile edits one file that describes the whole host.
func TestHostFile(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	quiet(t, h)
	key, err := os.ReadFile(h.Key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.Dir, "host.yaml")
	writeFile(t, file, `version: 1
settings:
  dns: [192.0.2.53]
  timezone: Asia/Shanghai
tenants:
  - name: bob
    note: paid until June
guests:
  - name: alice
    power: stopped
    memory: 128MiB
    ssh_keys:
      - `+string(key)+`    forwards: ["8443:443/tcp"]
  - name: web
    tenant: bob
    power: stopped
    memory: 128MiB
    disk: 1GiB
    ports: 21000-21004
    root_password_hash: "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g."
`)

	t.Log("diff, apply, diff")
	leavesAlone(t, h, "diff", func() {
		differs(t, h, 1, []string{"diff", "-f", file}, "alice", "web", "bob", "create-volume alice")
		differs(t, h, 0, []string{"apply", "-f", file, "--dry-run"}, "alice", "create-volume alice")
	})
	h.Sublet("apply", "-f", file)
	h.Eventually("the plan is empty", h.Settled)
	same(t, h, file)
	if list := h.Sublet("list", "-q"); list != "alice\nweb" {
		t.Errorf("the file makes the guests %q", list)
	}
	if state := h.Show("web").Status.State; state != "stopped" {
		t.Errorf("web is %s; the file says stopped", state)
	}
	if ports := h.Show("web").Spec.Ports; ports.First != 21000 || ports.Count != 5 {
		t.Errorf("web has the ports %+v", ports)
	}

	t.Log("apply after export changes nothing")
	exported := h.Sublet("export") + "\n"
	whole := filepath.Join(h.Dir, "exported.yaml")
	writeFile(t, whole, exported)
	leavesAlone(t, h, "apply after export", func() {
		same(t, h, whole)
		h.Sublet("apply", "-f", whole)
		h.Sublet("apply", "-f", whole, "--prune", "--yes")
		h.SubletInput(exported, "apply", "-f", "-")
		h.SubletInput(exported, "diff", "-f", "-")
		h.Eventually("the plan is empty", h.Settled)
	})

	t.Log("secrets are in the file, and nowhere else")
	const hash = "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFV"
	if !strings.Contains(exported, hash) {
		t.Error("the export has no password hash, so it cannot make the host anew")
	}
	for _, args := range [][]string{{"show", "web", "-o", "json"}, {"show", "web"}, {"list", "-o", "yaml"}, {"events", "-o", "json"}} {
		if out := h.Sublet(args...); strings.Contains(out, "$6$") {
			t.Errorf("%s shows a password's hash", strings.Join(args, " "))
		}
	}
	changed := filepath.Join(h.Dir, "changed.yaml")
	writeFile(t, changed, strings.Replace(exported, "$6$salt$", "$6$pepper$", 1))
	if r := h.Try("diff", "-f", changed); r.Code != 1 || strings.Contains(r.Stdout+r.Stderr, "$6$") {
		t.Errorf("diff of another password ends with %d and says\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if log, err := os.ReadFile(filepath.Join(h.Dir, "daemon.log")); err != nil || strings.Contains(string(log), "$6$") {
		t.Errorf("the daemon logs a password's hash (%v)", err)
	}

	t.Log("a file edited by hand")
	writeFile(t, whole, regexp.MustCompile(`(?s)(name: alice.*?memory: )128MiB`).ReplaceAllString(exported, "${1}192MiB"))
	differs(t, h, 1, []string{"diff", "-f", whole}, "alice", "memory 128MiB -> 192MiB")
	h.Sublet("apply", "-f", whole)
	h.Eventually("the plan is empty", h.Settled)
	same(t, h, whole)

	t.Log("what the file does not name stays, unless --prune is given")
	writeFile(t, file, "guests:\n  - name: alice\ntenants: []\n")
	leavesAlone(t, h, "a file that names little", func() {
		same(t, h, file)
		h.Sublet("apply", "-f", file)
		differs(t, h, 1, []string{"diff", "-f", file, "--prune"}, "web", "bob")
	})
	h.Sublet("apply", "-f", file, "--prune", "--yes")
	h.Sublet("wait", "web", "--for", "deleted")
	h.Eventually("the plan is empty", h.Settled)
	if r := h.Try("diff", "-f", file, "--prune"); r.Code != 0 {
		t.Errorf("diff --prune after apply --prune ends with %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if list := h.Sublet("list", "-q"); list != "alice" {
		t.Errorf("after --prune there are %q", list)
	}
	if tenants := h.Sublet("tenant", "list", "-o", "name"); tenants != "owner" {
		t.Errorf("after --prune there are the tenants %q", tenants)
	}

	t.Log("another host becomes the same by the export")
	final := h.Sublet("export")
	h.Sublet("delete", "alice", "--yes")
	h.Sublet("wait", "alice", "--for", "deleted")
	h.SubletInput(final, "apply", "-f", "-")
	if diff := cmp.Diff(final, h.Sublet("export")); diff != "" {
		t.Errorf("the host is another one (-exported +now):\n%s", diff)
	}
	h.Eventually("the plan is empty", h.Settled)
}

// differs checks the exit code of a verb that tells of changes, and that it
// tells of these.
func differs(t *testing.T, h *lab.Host, code int, args []string, says ...string) {
	t.Helper()
	r := h.Try(args...)
	if r.Code != code {
		t.Errorf("%s ends with %d; want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	for _, part := range says {
		if !strings.Contains(r.Stdout, part) {
			t.Errorf("%s does not tell of %q:\n%s%s", strings.Join(args, " "), part, r.Stdout, r.Stderr)
		}
	}
}

// same checks that a file calls for no change.
func same(t *testing.T, h *lab.Host, file string) {
	t.Helper()
	if r := h.Try("diff", "-f", file); r.Code != 0 {
		t.Errorf("diff -f %s ends with %d; want 0\n%s%s", file, r.Code, r.Stdout, r.Stderr)
	}
}
