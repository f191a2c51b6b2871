package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

const builtRelease = "7.2.13-0123456789ab"

// fastKernel answers as a kernel with our configuration.
const fastKernel = `#!/bin/sh
case $1 in
--version) echo 7.2.13-0123456789ab ;;
--showconfig) printf 'CONFIG_IPV6=y\n# CONFIG_MODULES is not set\nCONFIG_NF_TABLES=y\nCONFIG_NF_TABLES_INET=y\nCONFIG_XFS_FS=y\nCONFIG_SMP=y\n' ;;
--help) printf 'seccomp=<on/auto/off>\n    Configure it.\n    It is fast.\n\n    This is insecure\n\nquiet\n    Turns messages off.\n' ;;
*) exit 1 ;;
esac
`

// build puts a kernel where a build leaves one.
func (h host) build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(h.binary), "built")
	write(t, path, fastKernel, 0o755)
	return path
}

func mustAdd(t *testing.T, c *Catalog, binary string) vps.Kernel {
	t.Helper()
	k, err := c.Add(t.Context(), binary, Built{
		Release: builtRelease, Origin: "linux-7.2.tar.xz", Created: time.Unix(1_700_000_000, 0).UTC(), Steps: 2345, Misses: []string{"CONFIG_A is n, not y"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAdd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c, binary := h.catalog(), h.build(t)
	candidate, err := c.Candidate(t.Context(), binary, builtRelease)
	if err != nil || candidate.Path != binary || candidate.Initrd == "" || !candidate.Fast || !candidate.SMP {
		t.Fatalf("candidate %+v, %v", candidate, err)
	}
	if c.Has(builtRelease) || c.LastSteps(t.Context()) != 0 {
		t.Error("a candidate is in the catalogue already")
	}
	if _, err := c.Get(t.Context(), candidate.Name); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("get: %v", err)
	}
	k := mustAdd(t, c, binary)
	if k.Name != "uml/"+builtRelease || k.Release != builtRelease || k.Modules != "" || !k.Fast || filepath.Dir(k.Path) != h.dir {
		t.Errorf("added %+v", k)
	}
	if err := os.Remove(binary); err != nil {
		t.Fatal(err)
	}
	// Another daemon finds it, again and again, and makes nothing.
	before := names(t, h.dir)
	later := h.catalog()
	for range 2 {
		if got, err := later.Get(t.Context(), k.Name); err != nil || got != k {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if d := cmp.Diff(before, names(t, h.dir)); d != "" {
		t.Error(d)
	}
	if !later.Has(builtRelease) || later.Has("6.6.6") || later.Has("../x") || later.LastSteps(t.Context()) != 2345 {
		t.Error("has the wrong things")
	}
	// A newer early-boot program goes with the same kernel.
	write(t, h.init, staticProgram+"newer", 0o755)
	if got, err := later.Get(t.Context(), k.Name); err != nil || got.Path != k.Path || got.Initrd == k.Initrd {
		t.Errorf("with a newer program: %+v, %v", got, err)
	}
}

func TestEntries(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	mustAdd(t, c, h.build(t))
	all, err := c.Entries(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	packaged, built := all[0], all[1]
	if !packaged.Packaged || packaged.Built != nil || packaged.Name != "uml/6.1.9-test" || packaged.Fast {
		t.Errorf("packaged: %+v", packaged)
	}
	if built.Packaged || built.Built == nil || built.Built.Origin != "linux-7.2.tar.xz" || !built.Fast {
		t.Errorf("built: %+v", built)
	}
	if want := "Configure it. It is fast.\nThis is insecure"; built.Features.Warning != want {
		t.Errorf("warning %q", built.Features.Warning)
	}
	if want := []string{"ipv6", "nftables", "xfs", "fast", "smp"}; !slices.Equal(built.Features.Names(), want) {
		t.Errorf("features %q", built.Features.Names())
	}
	// Without the package there is the other one.
	if err := os.Remove(h.binary); err != nil {
		t.Fatal(err)
	}
	fresh := New(t.TempDir(), Options{Binaries: []string{h.binary}, InitPath: h.init})
	if all, err := fresh.Entries(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("of nothing: %+v, %v", all, err)
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	k := mustDefault(t, c)
	for _, name := range []string{"", k.Name} {
		if got, err := c.Get(t.Context(), name); err != nil || got != k {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"6.1.9-test", "uml/../x", "uml/", "xen/6.1.9-test", "uml/6.6.6"} {
		if _, err := c.Get(t.Context(), name); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
	// The package is upgraded: who has the old kernel keeps it.
	write(t, h.binary, strings.ReplaceAll(standIn, "6.1.9-test", "6.1.10-test"), 0o755)
	if got, err := c.Get(t.Context(), k.Name); err != nil || got.Path != k.Path || got.Modules != k.Modules {
		t.Errorf("the old one: %+v, %v", got, err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	packaged, k := mustDefault(t, c), mustAdd(t, c, h.build(t))
	nobody := func() ([]string, error) { return nil, nil }
	if err := c.Delete(t.Context(), packaged.Name, nobody); vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "apt-get remove") {
		t.Errorf("the package's: %v", err)
	}
	if err := c.Delete(t.Context(), "uml/6.6.6", nobody); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("none: %v", err)
	}
	err := c.Delete(t.Context(), k.Name, func() ([]string, error) { return []string{"alice", "bob (runs on it)"}, nil })
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "in use by alice, bob (runs on it)") {
		t.Errorf("in use: %v", err)
	}
	unknown := errors.New("the store cannot be read")
	if err := c.Delete(t.Context(), k.Name, func() ([]string, error) { return nil, unknown }); !errors.Is(err, unknown) {
		t.Errorf("unknown users: %v", err)
	}
	if got, err := c.Get(t.Context(), k.Name); err != nil || got != k {
		t.Fatalf("refused, and yet: %+v, %v", got, err)
	}
	// What is pruned are others' files, never a built kernel.
	if err := c.Prune(t.Context(), nil); err != nil || !c.Has(builtRelease) {
		t.Fatalf("prune: %v", err)
	}
	if err := c.Delete(t.Context(), k.Name, nobody); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), k.Name); vps.ErrorCode(err) != vps.CodeNotFound || c.Has(builtRelease) {
		t.Errorf("deleted: %v", err)
	}
	for _, name := range names(t, h.dir) {
		if strings.Contains(name, builtRelease) {
			t.Errorf("left %s", name)
		}
	}
	if got := mustDefault(t, c); got != packaged {
		t.Errorf("the other one is %+v", got)
	}
}

// TestAddBroken: records that nobody should follow.
func TestAddBroken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.catalog()
	mustDefault(t, c)
	for name, text := range map[string]string{
		"built-1.2.3-a.json": `{"release":"1.2.3-a","binary":"../../bin/sh"}`,
		"built-1.2.3-b.json": `{"release":"1.2.3-b","binary":"linux-gone"}`,
		"built-1.2.3-c.json": `nonsense`,
	} {
		write(t, filepath.Join(h.dir, name), text, 0o444)
		release := strings.TrimSuffix(strings.TrimPrefix(name, "built-"), ".json")
		if c.Has(release) {
			t.Errorf("has %s", release)
		}
		if _, err := c.Get(t.Context(), NameOf(release)); err == nil {
			t.Errorf("got %s", release)
		}
	}
	if all, err := c.Entries(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, release := range []string{"", "../x", "a b", "x"} {
		if _, err := c.Add(t.Context(), h.binary, Built{Release: release}); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("add %q: %v", release, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Add(ctx, h.build(t), Built{Release: builtRelease}); !errors.Is(err, context.Canceled) || c.Has(builtRelease) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestOptionText(t *testing.T) {
	t.Parallel()
	for help, want := range map[string]string{
		"":                          "",
		"seccomp=<on>\n":            "",
		"x\n  seccomp=no\n":         "",
		"seccomp=<on>\n  a\n\tb\nz": "a b",
		"seccomp=\n a\n\n\n b":      "a\nb",
	} {
		if got := optionText([]byte(help), "seccomp="); got != want {
			t.Errorf("%q: %q", help, got)
		}
	}
}
