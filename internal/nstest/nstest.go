//go:build linux

// Package nstest gives tests networks of their own.
//
// New moves the calling test into a fresh network and mount namespace, so that
// it may make links, routes, rules and sysctls without touching the machine's.
// Peer makes further network namespaces beside it, to stand for guests and for
// the world outside; Veth joins two of them with a cable.
//
//	host := nstest.New(t)            // this goroutine is now inside
//	outside := host.Peer()
//	host.Veth("up0", outside, "eth0")
//	outside.Exec("ip", "addr", "add", "203.0.113.9/24", "dev", "eth0")
//	outside.Do(func() { … net.Dial … })
//
// Tests that use it need root. They fail, and do not skip, without it.
package nstest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// NS is one network namespace together with the mount namespace that shows
// it under /sys. It lives until the test ends. Its methods report failures to
// the test that made it and may be called from that test's goroutine only,
// except Do and Start, which any goroutine may call.
type NS struct {
	t        testing.TB
	net, mnt *os.File
}

// New locks the calling goroutine to its thread, for good, and moves the
// thread into a new network namespace, with the loopback up, and into a new
// private mount namespace, where /sys shows that network. /proc/sys/net and
// every socket, link and command of this goroutine then belong to it; those
// of goroutines it starts do not, unless they are started by Do or Start. The
// thread ends with the test, so nothing has to be undone.
//
// A subtest runs on another goroutine: call New there, or use Do.
func New(tb testing.TB) *NS {
	tb.Helper()
	runtime.LockOSThread() // Never unlocked: the runtime then discards the thread.
	n := &NS{t: tb}
	if err := n.enterFresh(); err != nil {
		tb.Fatalf("cannot make a network of our own (root is needed): %v", err)
	}
	tb.Cleanup(n.close)
	n.Exec("ip", "link", "set", "lo", "up")
	return n
}

// Peer makes another network namespace, with the loopback up, which nobody is
// inside of yet.
func (n *NS) Peer() *NS {
	n.t.Helper()
	p := &NS{t: n.t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- p.enterFresh()
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("cannot make another network: %v", err)
	}
	n.t.Cleanup(p.close)
	p.Exec("ip", "link", "set", "lo", "up")
	return p
}

// enterFresh moves the calling, locked thread into new namespaces and keeps
// hold of them.
func (n *NS) enterFresh() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount / private", err)
	}
	if err := mountSys(); err != nil {
		return err
	}
	var err error
	if n.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	n.mnt, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// mountSys mounts a /sys of this network: one shows the network of whoever
// mounted it. Control groups, which are mounted below it, stay.
func mountSys() error {
	const groups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, groups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree "+groups, err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return os.NewSyscallError("mount /sys", err)
	}
	return os.NewSyscallError("move_mount "+groups, unix.MoveMount(tree, "", unix.AT_FDCWD, groups, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

func (n *NS) close() {
	_ = n.net.Close()
	_ = n.mnt.Close()
}

// Start runs f inside n on a goroutine of its own and returns at once; the
// channel is closed when f has ended, also by Goexit (t.FailNow).
func (n *NS) Start(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := n.enter(); err != nil {
			n.t.Errorf("cannot enter the network: %v", err)
			return
		}
		f()
	}()
	return done
}

// Do runs f inside n and waits for it. Goroutines that f starts are outside.
// A failed assertion in f ends f; look at t.Failed if it matters.
func (n *NS) Do(f func()) { <-n.Start(f) }

// enter moves the calling, locked thread into n.
func (n *NS) enter() error {
	// A thread that shares its working directory cannot change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(n.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns mnt", err)
	}
	return os.NewSyscallError("setns net", unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET))
}

// Try runs a command inside n and returns what it wrote to both streams,
// without the last newline.
func (n *NS) Try(name string, args ...string) (string, error) {
	n.t.Helper()
	return n.TryInput("", name, args...)
}

// TryInput is Try with a standard input.
func (n *NS) TryInput(input, name string, args ...string) (string, error) {
	n.t.Helper()
	var out []byte
	var err error
	n.Do(func() {
		cmd := exec.CommandContext(n.t.Context(), name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
	})
	return strings.TrimRight(string(out), "\n"), err
}

// Exec is Try, and the test fails when the command does.
func (n *NS) Exec(name string, args ...string) string {
	n.t.Helper()
	return n.ExecInput("", name, args...)
}

// ExecInput is Exec with a standard input.
func (n *NS) ExecInput(input, name string, args ...string) string {
	n.t.Helper()
	out, err := n.TryInput(input, name, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Veth lays a cable: a link called name in n whose other end is a link called
// peerName in peer. Both are up and without addresses.
func (n *NS) Veth(name string, peer *NS, peerName string) {
	n.t.Helper()
	// A child inherits descriptor 3; its /proc entry names the namespace.
	n.Do(func() {
		cmd := exec.CommandContext(n.t.Context(), "ip", "link", "add", name, "type", "veth",
			"peer", "name", peerName, "netns", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{peer.net}
		if out, err := cmd.CombinedOutput(); err != nil {
			n.t.Errorf("ip link add %s: %v\n%s", name, err, out)
		}
	})
	if n.t.Failed() {
		n.t.FailNow()
	}
	n.Exec("ip", "link", "set", name, "up")
	peer.Exec("ip", "link", "set", peerName, "up")
}
