//go:build linux

package appliance_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"sublet/internal/appliance"
	"sublet/internal/guest"
	"sublet/internal/guest/uml"
	"sublet/internal/keeper"
	"sublet/internal/kernel"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// The test binary is a keeper too, and the tests run in a network, a mount and
// a pid namespace of their own: whatever a failed test leaves ends with it.
const (
	verbKeeper = "keeper"
	insideMark = "SUBLET_TEST_INSIDE"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case keeper.Rebooting():
		err = keeper.Reboot()
	case len(os.Args) > 1 && os.Args[1] == verbKeeper:
		err = keeper.Main(context.Background(), os.Args[2:], os.Stderr)
	case os.Getenv(insideMark) == "":
		os.Exit(goInside())
	default:
		if err = nstest.MountProc(); err == nil {
			os.Exit(m.Run())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func goInside() int {
	// Short: it is part of the addresses of sockets.
	dir, err := os.MkdirTemp("/tmp", "appl")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return nstest.RunInside(insideMark + "=" + dir)
}

// kernels is the kernel of the host, with an initrd of the code under test.
var kernels = sync.OnceValues(func() (*kernel.Catalog, error) {
	dir := os.Getenv(insideMark)
	program := filepath.Join(dir, "sublet-init")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "sublet/cmd/sublet-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build sublet-init: %w: %s", err, out)
	}
	c := kernel.New(filepath.Join(dir, "kernels"), kernel.Options{InitPath: program})
	return c, os.MkdirAll(filepath.Join(dir, "kernels"), 0o711)
})

const testUID = 721391

// bench is one test's host.
type bench struct {
	*appliance.Host
	driver *uml.Driver
	dir    string
	runs   string
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	k, err := kernels()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp(os.Getenv(insideMark), "t") //nolint:usetesting // short, and open to the guests' users
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		tb.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	b := &bench{dir: dir, runs: filepath.Join(dir, "run")}
	b.driver = uml.New(uml.Options{RunRoot: b.runs, Launcher: keeper.Launcher{Command: []string{self, verbKeeper}}})
	b.Host = b.host(k)
	tb.Cleanup(func() {
		if err := b.Sweep(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return b
}

func (b *bench) host(k *kernel.Catalog) *appliance.Host {
	return appliance.New(appliance.Options{
		Driver: b.driver, Kernel: k.Default, RunRoot: b.runs,
		Console: func(ctx context.Context, in vps.Instance) (io.ReadWriteCloser, error) {
			return b.driver.Console(ctx, in, guest.ConsoleOptions{Write: true})
		},
	})
}
