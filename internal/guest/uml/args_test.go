//go:build linux

package uml

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func whole() vps.Machine {
	return vps.Machine{
		ID: "01J", Name: "alice", UID: 721301, Memory: 512 * vps.MiB,
		Kernel: vps.Kernel{Path: "/usr/bin/linux.uml", Initrd: "/k/initrd", Modules: "/k/modules.img"},
		Root:   vps.Disk{Path: "/v/alice.cow", Backing: "/i/debian.img"},
		Seed:   vps.Disk{Path: "/v/alice.seed", ReadOnly: true},
		Tap:    "sl-alice", MAC: net.HardwareAddr{2, 'S', 'L', 213, 0, 2},
		RunDir: "/run/sublet/guests/alice", LogPath: "/var/log/sublet/alice.log",
	}
}

func TestArgs(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*vps.Machine)
		want   string
	}{
		"whole": {func(*vps.Machine) {}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
root=/dev/ubda
rw
ubd0=/v/alice.cow,/i/debian.img
ubd1rd=/v/alice.seed
ubd2rd=/k/modules.img
initrd=/k/initrd
vec0:transport=tap,ifname=sl-alice,depth=128,gro=1,mac=02:53:4c:d5:00:02
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
		"data disks": {func(m *vps.Machine) {
			m.Kernel.Modules, m.Kernel.Initrd, m.Seed, m.Tap = "", "", vps.Disk{}, ""
			m.Data = []vps.Disk{{Path: "/v/data.img"}, {Path: "/dev/vg0/x", ReadOnly: true}, {Path: "/v/y.cow", Backing: "/v/y"}}
		}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
root=/dev/ubda
rw
ubd0=/v/alice.cow,/i/debian.img
ubd3d=/v/data.img
ubd4rd=/dev/vg0/x
ubd5=/v/y.cow,/v/y
fb_tunnels=none
dummy.numdummies=0
ifb.numifbs=0
bonding.max_bonds=0
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
		"fast": {func(m *vps.Machine) {
			m.Kernel.Fast, m.Kernel.SMP, m.Isolation, m.CPUs, m.Tap = true, true, vps.IsolationFast, 2, ""
		}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
root=/dev/ubda
rw
ubd0=/v/alice.cow,/i/debian.img
ubd1rd=/v/alice.seed
ubd2rd=/k/modules.img
initrd=/k/initrd
seccomp=on
ncpus=2
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
		"strict, told so": {func(m *vps.Machine) {
			m.Kernel.Fast, m.Isolation, m.Tap = true, vps.IsolationStrict, ""
		}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
root=/dev/ubda
rw
ubd0=/v/alice.cow,/i/debian.img
ubd1rd=/v/alice.seed
ubd2rd=/k/modules.img
initrd=/k/initrd
seccomp=off
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
		"appliance": {func(m *vps.Machine) {
			m.Kernel.Modules, m.Root, m.Tap = "", vps.Disk{}, ""
			m.Data = []vps.Disk{{Path: "/v/data.img"}}
		}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
ubd1rd=/v/alice.seed
ubd3d=/v/data.img
initrd=/k/initrd
fb_tunnels=none
dummy.numdummies=0
ifb.numifbs=0
bonding.max_bonds=0
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
		"bare": {func(m *vps.Machine) {
			m.Root, m.Seed, m.Tap = vps.Disk{Path: "/v/raw.img"}, vps.Disk{}, ""
			m.Kernel.Initrd, m.Kernel.Modules = "", ""
		}, `/usr/bin/linux.uml
mem=524288K
umid=alice
uml_dir=uml/
root=/dev/ubda
rw
ubd0d=/v/raw.img
fb_tunnels=none
dummy.numdummies=0
ifb.numifbs=0
bonding.max_bonds=0
con=null
con0=fd:0,fd:1
ssl=null
hostfs=/run/sublet/guests/alice/none
random.trust_cpu=on
pty.legacy_count=0
quiet
loglevel=7`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := whole()
			test.change(&m)
			if err := checkMachine(m); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, strings.Join(args(m), "\n")); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	t.Parallel()
	want := []string{"TMPDIR=/memory", "PATH=/", "LD_PRELOAD=./xstate.so"}
	if diff := cmp.Diff(want, env(true)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[:2], env(false)); diff != "" {
		t.Error(diff)
	}
}

func TestInvalidMachines(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*vps.Machine){
		"no ID":            func(m *vps.Machine) { m.ID = "" },
		"no name":          func(m *vps.Machine) { m.Name = "" },
		"name with option": func(m *vps.Machine) { m.Name = "a init=/bin/sh" },
		"name too long":    func(m *vps.Machine) { m.Name = strings.Repeat("a", 64) },
		"little memory":    func(m *vps.Machine) { m.Memory = vps.MiB },
		"relative folder":  func(m *vps.Machine) { m.RunDir = "run" },
		"nothing to boot":  func(m *vps.Machine) { m.Root.Path, m.Kernel.Initrd = "", "" },
		"space in disk":    func(m *vps.Machine) { m.Root.Path = "/v/a b" },
		"comma in backing": func(m *vps.Machine) { m.Root.Backing = "/i/a,b" },
		"colon in seed":    func(m *vps.Machine) { m.Seed.Path = "/i/a:b" },
		"relative initrd":  func(m *vps.Machine) { m.Kernel.Initrd = "initrd" },
		"tap with option":  func(m *vps.Machine) { m.Tap = "a,transport=raw" },
		"no MAC":           func(m *vps.Machine) { m.MAC = nil },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := whole()
			change(&m)
			m.RunDir = strings.Replace(m.RunDir, "/run", t.TempDir(), 1)
			_, err := New(Options{}).Start(t.Context(), m)
			if vps.ErrorCode(err) != vps.CodeInvalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzArgs(f *testing.F) {
	f.Add("alice", "/v/a.img", "", "sl-a")
	f.Add("a b", "/v/a,b", "/i/x:y", "t,x=y")
	f.Fuzz(func(t *testing.T, name, disk, backing, tap string) {
		m := whole()
		m.Name, m.Root, m.Tap = name, vps.Disk{Path: disk, Backing: backing}, tap
		if checkMachine(m) != nil {
			return
		}
		// Whatever is let through stays one word each, with the commas that
		// we put there.
		for _, a := range args(m) {
			if len(strings.Fields(a)) != 1 {
				t.Errorf("%q is not one word", a)
			}
		}
		if n := strings.Count(diskArg(0, m.Root), ","); n > 1 || (n == 1) != (backing != "") {
			t.Errorf("the disk %q", diskArg(0, m.Root))
		}
	})
}

// TestMessages checks what a user is told when a part is missing, and that
// nothing is left then.
func TestMessages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	missing := filepath.Join(b.root, "missing")
	tests := map[string]struct {
		change func(*vps.Machine, *Options)
		code   vps.Code
		says   string
	}{
		"kernel":               {func(m *vps.Machine, _ *Options) { m.Kernel.Path = missing }, vps.CodeNotFound, "the kernel " + missing + " does not exist; install"},
		"kernel is no program": {func(m *vps.Machine, _ *Options) { m.Kernel.Path = "/etc/passwd" }, vps.CodeConflict, "not an executable"},
		"modules":              {func(m *vps.Machine, _ *Options) { m.Kernel.Modules = missing }, vps.CodeNotFound, "the kernel's modules, " + missing},
		"disk":                 {func(m *vps.Machine, _ *Options) { m.Root.Path = missing }, vps.CodeNotFound, "the disk, " + missing + ", does not exist"},
		"disk of others":       {func(m *vps.Machine, _ *Options) { m.Root.Path = "/etc/shadow" }, vps.CodeConflict, "its user 721399 may not open the disk"},
		"backing":              {func(m *vps.Machine, _ *Options) { m.Root.Backing = missing }, vps.CodeNotFound, "the image that the disk is an overlay of"},
		"seed":                 {func(m *vps.Machine, _ *Options) { m.Seed.Path = missing }, vps.CodeNotFound, "the seed, " + missing},
		"tap":                  {func(m *vps.Machine, _ *Options) { m.Tap = "sl-nowhere" }, vps.CodeNotFound, "its link sl-nowhere does not exist"},
		"too much memory":      {func(m *vps.Machine, _ *Options) { m.Memory = 1 << 50 }, vps.CodeDenied, "has only"},
		"no keeper":            {func(_ *vps.Machine, o *Options) { o.Launcher.Command = []string{"/bin/false"} }, vps.CodeInternal, "could not be started"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := b.machine(t)
			o := Options{RunRoot: filepath.Join(b.root, "guests"), Launcher: testLauncher()}
			test.change(&m, &o)
			_, err := New(o).Start(t.Context(), m)
			if vps.ErrorCode(err) != test.code || !strings.Contains(vps.ErrorMessage(err), test.says) {
				t.Errorf("got %q with %q", vps.ErrorCode(err), vps.ErrorMessage(err))
			}
			if _, err := os.Stat(m.RunDir); !os.IsNotExist(err) {
				t.Errorf("the run folder was left: %v", err)
			}
		})
	}
}

func TestCheckKernel(t *testing.T) {
	t.Parallel()
	old, fast, smp := vps.Kernel{Name: "uml/6.1"}, vps.Kernel{Name: "uml/7.2", Fast: true}, vps.Kernel{Name: "uml/7.2-s", Fast: true, SMP: true}
	for _, test := range []struct {
		kernel    vps.Kernel
		isolation vps.Isolation
		cpus      int
		says      string
	}{
		{old, vps.IsolationStrict, 1, ""},
		{old, "", 0, ""},
		{old, vps.IsolationFast, 1, "does not know the isolation fast"},
		{fast, vps.IsolationStrict, 1, ""},
		{fast, vps.IsolationFast, 1, ""},
		{fast, vps.IsolationFast, 2, "has one processor only"},
		{smp, vps.IsolationFast, 2, ""},
		{smp, vps.IsolationStrict, 2, "several processors need the isolation fast"},
	} {
		err := CheckKernel(test.kernel, test.isolation, test.cpus)
		if (err != nil) != (test.says != "") || err != nil && (vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
