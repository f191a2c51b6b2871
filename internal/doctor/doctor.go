// Package doctor checks whether a host can run guests, and says how to mend
// what stands in the way.
//
// A check only looks: it changes nothing, needs no daemon, and can be run at
// any time. Everything it looks at arrives through Env, so that a test shows
// it a host made of a few files.
package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Level says how bad a finding is.
type Level string

// The levels. A warning is for what works now and may not for long, or for
// one part only; with an error guests cannot run.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Finding is the result of one check.
type Finding struct {
	// Check names it for programs: "tun".
	Check   string `json:"check"`
	Level   Level  `json:"level"`
	Message string `json:"message"`
	// Remedy is a command or a plain action; empty only when all is well.
	Remedy string `json:"remedy,omitempty"`
}

// Space is the room on a file system, in bytes.
type Space struct {
	Size      vps.Bytes
	Available vps.Bytes // for root, what is kept for root included
}

// Env is what the checks look at. System fills in the functions for the host
// that this runs on; what the daemon knows is added by the caller.
type Env struct {
	// Root comes before the paths under /dev, /proc and /sys; empty for the
	// host's own.
	Root string
	// UID is the effective user id.
	UID int
	// StateDir holds volumes and images. It need not exist yet.
	StateDir string

	// Promised is the memory of the guests that run or are to run, Overcommit
	// how much of the host's may be promised, in percent (0: 100), and Growth
	// what volumes may still grow by beyond what they occupy.
	Promised   vps.Bytes
	Overcommit int
	Growth     vps.Bytes

	// Run runs a program and returns what it said on its standard output; the
	// error of one that failed has what it said on the other.
	Run func(ctx context.Context, stdin, name string, args ...string) (string, error)
	// LookPath finds a program.
	LookPath func(name string) (string, error)
	// OpenTUN opens the device and closes it again.
	OpenTUN func(path string) error
	// Space measures the file system that holds a path.
	Space func(path string) (Space, error)
	// Kernel returns the kernel that guests would boot. nil: not checked.
	Kernel func(ctx context.Context) (vps.Kernel, error)
	// Firewalls finds firewalls of others that would drop guests' packets, as
	// warnings or errors with a Remedy. nil: not checked.
	Firewalls func(ctx context.Context) ([]Finding, error)
}

// System returns an Env that looks at this host. Promised, Overcommit, Growth,
// Kernel and Firewalls are left to the caller.
func System(stateDir string) Env {
	return Env{
		UID:      os.Geteuid(),
		StateDir: stateDir,
		Run:      run,
		LookPath: lookPath,
		OpenTUN:  openTUN,
		Space:    space,
	}
}

// Run runs all checks and returns their findings in a fixed order, at least
// one for each check, good ones included. It takes well under a second; a
// ctx that ends makes what is left come out as not checked.
func Run(ctx context.Context, env Env) []Finding {
	var all []Finding
	for _, c := range []struct {
		name  string
		check func(context.Context, Env) []Finding
	}{
		{"root", root},
		{"tun", tun},
		{"ptrace", ptrace},
		{"jail", jail},
		{"nft", nft},
		{"forwarding", forwarding},
		{"kernel", guestKernel},
		{"tools", tools},
		{"disk", disk},
		{"memory", memory},
		{"cgroup", cgroup},
		{"firewall", firewalls},
	} {
		if err := ctx.Err(); err != nil {
			all = append(all, Finding{c.name, Warning, "not checked: the time was up", "run the doctor again"})
			continue
		}
		for _, f := range c.check(ctx, env) {
			f.Check = c.name
			all = append(all, f)
		}
	}
	return all
}

// Worst returns the highest level among findings, OK for none.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level == Error {
			return Error
		}
		if f.Level == Warning {
			worst = Warning
		}
	}
	return worst
}

func ok(format string, args ...any) []Finding {
	return []Finding{{Level: OK, Message: fmt.Sprintf(format, args...)}}
}

func bad(level Level, remedy, format string, args ...any) []Finding {
	return []Finding{{Level: level, Message: fmt.Sprintf(format, args...), Remedy: remedy}}
}

// path returns where a path of the host lies.
func (e Env) path(p string) string { return filepath.Join(e.Root, p) }

// read returns a small file without the space around its content.
func (e Env) read(p string) (string, error) {
	b, err := os.ReadFile(e.path(p))
	return strings.TrimSpace(string(b)), err
}

// run is Env.Run for real. LC_ALL keeps messages in one language.
func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	path, err := lookPath(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(stdin)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// lookPath also looks where an ordinary user's PATH does not: the tools of an
// administrator lie there.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

func openTUN(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// space measures the nearest folder that exists.
func space(path string) (Space, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	for err == unix.ENOENT && path != "/" && path != "." {
		path = filepath.Dir(path)
		err = unix.Statfs(path, &st)
	}
	if err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := vps.Bytes(st.Bsize)
	return Space{Size: vps.Bytes(st.Blocks) * block, Available: vps.Bytes(st.Bavail) * block}, nil
}
