package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/vps"
)

// healthy is a host on which all is well; a test spoils one thing.
func healthy(t *testing.T) Env {
	t.Helper()
	env := Env{
		Root: t.TempDir(), StateDir: "/var/lib/sublet", Promised: vps.GiB, Growth: 10 * vps.GiB,
		Run: func(_ context.Context, _, _ string, args ...string) (string, error) {
			if args[0] == "--version" {
				return "nftables v1.0.6 (Lester Gooch #5)\n", nil
			}
			return "", nil
		},
		LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		OpenTUN:  func(string) error { return nil },
		Space:    func(string) (Space, error) { return Space{Size: 40 * vps.GiB, Available: 20 * vps.GiB}, nil },
		Kernel: func(context.Context) (vps.Kernel, error) {
			return vps.Kernel{Name: "uml/6.1", Path: "/usr/bin/linux.uml"}, nil
		},
		Firewalls: func(context.Context) ([]Finding, error) { return nil, nil },
	}
	file(t, &env, "/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
	file(t, &env, "/proc/sys/kernel/seccomp/actions_avail", "kill_process errno allow\n")
	file(t, &env, "/proc/sys/kernel/yama/ptrace_scope", "1\n")
	file(t, &env, "/proc/sys/net/ipv4/ip_forward", "1\n")
	file(t, &env, "/proc/meminfo", "MemTotal:        2097152 kB\nMemFree: 5 kB\n")
	file(t, &env, "/sys/fs/cgroup/cgroup.controllers", "cpu io memory pids\n")
	return env
}

func file(t *testing.T, env *Env, path, content string) {
	t.Helper()
	full := filepath.Join(env.Root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, env *Env, path string) {
	t.Helper()
	if err := os.Remove(filepath.Join(env.Root, path)); err != nil {
		t.Fatal(err)
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	findings := Run(t.Context(), healthy(t))
	if len(findings) != 12 || Worst(findings) != OK {
		t.Errorf("%d findings", len(findings))
	}
	for _, f := range findings {
		if f.Level != OK || f.Message == "" || f.Remedy != "" || f.Check == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	only := func(missing string) func(string) (string, error) {
		return func(name string) (string, error) {
			if name == missing {
				return "", fs.ErrNotExist
			}
			return name, nil
		}
	}
	runner := func(version string, versionErr, trialErr error) func(context.Context, string, string, ...string) (string, error) {
		return func(_ context.Context, stdin, _ string, args ...string) (string, error) {
			if args[0] == "--version" {
				return version, versionErr
			}
			if !strings.Contains(stdin, "table inet") {
				return "", errors.New("no rules")
			}
			return "", trialErr
		}
	}
	tests := []struct {
		name   string
		spoil  func(t *testing.T, e *Env)
		check  string
		level  Level
		says   string
		remedy string
	}{
		{"not root", func(_ *testing.T, e *Env) { e.UID = 1000 }, "root", Error, "user 1000", "sudo"},
		{"no tun", func(_ *testing.T, e *Env) { e.OpenTUN = func(string) error { return fs.ErrNotExist } }, "tun", Error, "/dev/net/tun is missing", "modprobe tun"},
		{"tun denied", func(_ *testing.T, e *Env) { e.OpenTUN = func(string) error { return syscall.EPERM } }, "tun", Error, "may not be opened", "provider"},
		{"tun without a driver", func(_ *testing.T, e *Env) { e.OpenTUN = func(string) error { return syscall.ENODEV } }, "tun", Error, "does not work: no such device", "modprobe tun"},
		{"no yama", func(t *testing.T, e *Env) { t.Helper(); remove(t, e, "/proc/sys/kernel/yama/ptrace_scope") }, "ptrace", OK, "no Yama", ""},
		{"ptrace 0", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/kernel/yama/ptrace_scope", "0") }, "ptrace", OK, "is 0", ""},
		{"ptrace 2", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/kernel/yama/ptrace_scope", "2") }, "ptrace", Error, "is 2", "sysctl -w kernel.yama.ptrace_scope=1"},
		{"ptrace 3", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/kernel/yama/ptrace_scope", "3") }, "ptrace", Error, "until the next reboot", "reboot"},
		{"old kernel", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/kernel/osrelease", "5.4.0-generic\n") }, "jail", Error, "is 5.4", "newer kernel"},
		{"odd kernel", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/kernel/osrelease", "generic\n") }, "jail", Warning, "no version", "uname"},
		{"no release", func(t *testing.T, e *Env) { t.Helper(); remove(t, e, "/proc/sys/kernel/osrelease") }, "jail", Warning, "cannot be read", "mount -t proc"},
		{"no seccomp", func(t *testing.T, e *Env) { t.Helper(); remove(t, e, "/proc/sys/kernel/seccomp/actions_avail") }, "jail", Error, "seccomp", "CONFIG_SECCOMP_FILTER"},
		{"no nft", func(_ *testing.T, e *Env) { e.LookPath = only("nft") }, "nft", Error, "missing", "apt-get install nftables"},
		{"nft broken", func(_ *testing.T, e *Env) { e.Run = runner("", errors.New("signal: killed"), nil) }, "nft", Error, "does not run", "reinstall"},
		{"nft odd", func(_ *testing.T, e *Env) { e.Run = runner("hello\nworld", nil, nil) }, "nft", Warning, "\"hello\"", "apt-get"},
		{"nft old", func(_ *testing.T, e *Env) { e.Run = runner("nftables v0.9.8 (E.D.S.)", nil, nil) }, "nft", Warning, "0.9.8", "upgrade"},
		{"nft new, two parts", func(_ *testing.T, e *Env) { e.Run = runner("nftables v1.2 (x)", nil, nil) }, "nft", OK, "nft 1.2.0", ""},
		{"no nf_tables", func(_ *testing.T, e *Env) {
			e.Run = runner("nftables v1.1.3", nil, errors.New("exit status 1: Error: nope\nmore"))
		}, "nft", Error, "nope", "modprobe nf_tables"},
		{"no forwarding", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/sys/net/ipv4/ip_forward", "0\n") }, "forwarding", OK, "the daemon turns it on", ""},
		{"forwarding unknown", func(t *testing.T, e *Env) { t.Helper(); remove(t, e, "/proc/sys/net/ipv4/ip_forward") }, "forwarding", Warning, "cannot be read", "root"},
		{"no kernel", func(_ *testing.T, e *Env) {
			e.Kernel = func(context.Context) (vps.Kernel, error) {
				return vps.Kernel{}, vps.Wrap(vps.CodeNotFound, errors.New("secret"), "nothing in /usr/bin")
			}
		}, "kernel", Error, "nothing in /usr/bin", "apt-get install user-mode-linux"},
		{"no mmdebstrap", func(_ *testing.T, e *Env) { e.LookPath = only("mmdebstrap") }, "tools", Warning, "mmdebstrap is missing", "apt-get install mmdebstrap"},
		{"no mke2fs", func(_ *testing.T, e *Env) { e.LookPath = only("mke2fs") }, "tools", Warning, "mke2fs is missing", "apt-get install e2fsprogs"},
		{"disk full", func(_ *testing.T, e *Env) {
			e.Space = func(string) (Space, error) { return Space{Size: vps.TiB, Available: vps.MiB}, nil }
		}, "disk", Error, "1MiB left", "du -xh /var/lib/sublet"},
		{"disk promised away", func(_ *testing.T, e *Env) { e.Growth = 21 * vps.GiB }, "disk", Warning, "may still grow by 21GiB", "free some space"},
		{"disk unknown", func(_ *testing.T, e *Env) { e.Space = func(string) (Space, error) { return Space{}, fs.ErrPermission } }, "disk", Error, "cannot be read", "mkdir"},
		{"memory promised away", func(_ *testing.T, e *Env) { e.Promised = 2*vps.GiB + 1 }, "memory", Warning, "over 100% of the host's 2GiB", "memory_overcommit"},
		{"memory overcommitted", func(_ *testing.T, e *Env) { e.Promised, e.Overcommit = 3*vps.GiB, 150 }, "memory", OK, "promised 3GiB", ""},
		{"memory unknown", func(t *testing.T, e *Env) { t.Helper(); file(t, e, "/proc/meminfo", "x") }, "memory", Warning, "no MemTotal", "mount"},
		{"cgroup v1", func(t *testing.T, e *Env) {
			t.Helper()
			remove(t, e, "/sys/fs/cgroup/cgroup.controllers")
			file(t, e, "/sys/fs/cgroup/memory/cgroup.procs", "")
		}, "cgroup", OK, "cgroup v1", ""},
		{"no cgroup", func(t *testing.T, e *Env) { t.Helper(); remove(t, e, "/sys/fs/cgroup/cgroup.controllers") }, "cgroup", OK, "no cgroups", ""},
		{"firewall", func(_ *testing.T, e *Env) {
			e.Firewalls = func(context.Context) ([]Finding, error) {
				return []Finding{{"", Warning, "Docker drops", "do this"}}, nil
			}
		}, "firewall", Warning, "Docker drops", "do this"},
		{"firewall unknown", func(_ *testing.T, e *Env) {
			e.Firewalls = func(context.Context) ([]Finding, error) { return nil, vps.Errorf(vps.CodeInternal, "nft said no") }
		}, "firewall", Warning, "nft said no", "root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			env := healthy(t)
			tt.spoil(t, &env)
			found := false
			for _, f := range Run(t.Context(), env) {
				if (f.Level == OK) != (f.Remedy == "") {
					t.Errorf("level and remedy do not fit: %+v", f)
				}
				if f.Check != tt.check {
					if f.Level != OK && tt.name != "disk unknown" {
						t.Errorf("spoilt too: %+v", f)
					}
					continue
				}
				found = found || f.Level == tt.level && strings.Contains(f.Message, tt.says) && strings.Contains(f.Remedy, tt.remedy)
				if !found {
					t.Logf("%+v", f)
				}
			}
			if !found {
				t.Errorf("no finding says %q with the remedy %q", tt.says, tt.remedy)
			}
		})
	}
}

func TestEndedContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	findings := Run(ctx, healthy(t))
	if len(findings) != 12 || findings[0].Level != Warning || findings[0].Remedy == "" {
		t.Errorf("%+v", findings)
	}
}

func TestLeftOut(t *testing.T) {
	t.Parallel()
	env := healthy(t)
	env.Kernel, env.Firewalls = nil, nil
	if findings := Run(t.Context(), env); len(findings) != 10 {
		t.Errorf("%+v", findings)
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	for want, in := range map[Level][]Finding{
		OK: nil, Warning: {{Level: OK}, {Level: Warning}}, Error: {{Level: Warning}, {Level: Error}, {Level: OK}},
	} {
		if got := Worst(in); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
}

// TestSystem looks at the machine that the tests run on, which can run
// guests, and needs root as they do. The trial of the rules changes nothing.
func TestSystem(t *testing.T) {
	t.Parallel()
	env := System(filepath.Join(t.TempDir(), "not", "made", "yet"))
	for _, f := range Run(t.Context(), env) {
		t.Logf("%s\t%s\t%s\t%s", f.Level, f.Check, f.Message, f.Remedy)
		if f.Level == Error {
			t.Errorf("%s: %s", f.Check, f.Message)
		}
	}
}
