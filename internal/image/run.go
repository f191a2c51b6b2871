package image

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"sublet/internal/vps"
)

// toolPath is where the host's tools are looked for; a daemon's own PATH may
// lack the sbin folders.
const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tools are what a build runs, and the packages they come in.
var tools = map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "unshare": "util-linux"}

func findTool(name string) (string, error) {
	for _, dir := range filepath.SplitList(toolPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", vps.Wrap(vps.CodeInvalid, fs.ErrNotExist, "%s is not installed, and building an image needs it; apt install %s", name, tools[name])
}

// command is a program that a build runs.
type command struct {
	args []string
	tmp  string // its TMPDIR
	// isolate runs it as the first process of its own mount, process-id and
	// IPC namespaces: its mounts are seen by nobody else, and nothing that it
	// starts outlives it.
	isolate bool
}

// failure is a program that failed, with the end of what it said.
type failure struct {
	program string
	tail    []string
	full    bool // it said that a filesystem is full
	err     error
}

func (f *failure) Error() string {
	return fmt.Sprintf("%s: %v: %s", f.program, f.err, strings.Join(f.tail, " | "))
}

func (f *failure) Unwrap() error { return f.err }

// reason is the line that says best why the program failed.
func (f *failure) reason() string {
	for _, line := range f.tail {
		// apt's and mmdebstrap's own mark. The first one names the cause, the
		// others what failed because of it.
		if reason, ok := strings.CutPrefix(line, "E: "); ok {
			return reason
		}
	}
	if len(f.tail) > 0 {
		return f.tail[len(f.tail)-1]
	}
	return f.err.Error()
}

// run runs c to its end and gives each line of its output to line, which may
// be nil. When ctx is done, c and everything it started is killed, and is gone
// when run returns. The same happens when this process dies.
func run(ctx context.Context, c command, line func(string)) error {
	args := c.args
	if c.isolate {
		unshare, err := findTool("unshare")
		if err != nil {
			return err
		}
		// /proc has to be that of the new process ids.
		args = append([]string{unshare, "--mount", "--mount-proc", "--"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = environment(c.tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.isolate {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC
	}
	out := &output{line: line}
	// One pipe for both; Wait returns when its last writer has closed it.
	cmd.Stdout, cmd.Stderr = out, out
	done := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that started the process;
		// the thread ends with this goroutine, as it is never unlocked.
		runtime.LockOSThread()
		done <- cmd.Run()
	}()
	err := <-done
	out.end()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return &failure{program: filepath.Base(c.args[0]), tail: out.tail, full: out.full, err: err}
	}
	return nil
}

// environment is what a build's programs see: nothing of the daemon's own
// but the way to the network.
func environment(tmp string) []string {
	env := []string{"PATH=" + toolPath, "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "TMPDIR=" + tmp, "MKE2FS_CONFIG=/dev/null"}
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// output cuts a program's output into lines, keeps the last ones, and looks
// for what programs say when a filesystem is full.
type output struct {
	line    func(string)
	partial []byte
	tail    []string
	full    bool
}

func (o *output) Write(p []byte) (int, error) {
	o.partial = append(o.partial, p...)
	for {
		i := bytes.IndexAny(o.partial, "\r\n")
		if i < 0 {
			break
		}
		o.add(string(o.partial[:i]))
		o.partial = o.partial[i+1:]
	}
	return len(p), nil
}

func (o *output) end() {
	o.add(string(o.partial))
	o.partial = nil
}

func (o *output) add(line string) {
	const keep = 40
	line = strings.ToValidUTF8(strings.TrimSpace(line), "?")
	if line == "" {
		return
	}
	if o.tail = append(o.tail, line); len(o.tail) > keep {
		o.tail = o.tail[1:]
	}
	for _, words := range []string{"No space left on device", "enough free space in", "Could not allocate block"} {
		o.full = o.full || strings.Contains(line, words)
	}
	if o.line != nil {
		o.line(line)
	}
}
