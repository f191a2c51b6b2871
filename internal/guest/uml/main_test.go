//go:build linux

package uml

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"sublet/internal/keeper"
	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// The test binary is several programs, told apart by its first argument: the
// keeper, a starter that stands for a daemon which gets killed, and the tests
// themselves. The tests run in a network, a mount and a pid namespace of their
// own: no link of the machine is touched, and whatever a failed test leaves
// behind ends with it.
const (
	verbKeeper  = "keeper"
	verbStarter = "starter"
	insideMark  = "SUBLET_TEST_INSIDE"
)

func TestMain(m *testing.M) {
	var verb string
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	var err error
	switch {
	case keeper.Rebooting():
		err = keeper.Reboot()
	case verb == verbKeeper:
		err = keeper.Main(context.Background(), os.Args[2:], os.Stderr)
	case verb == verbStarter:
		err = starter()
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

// deep makes run folders whose sockets do not fit the address of one.
const deep = "a-folder-with-a-name-that-is-so-long-that-the-address-of-a-socket-has-no-room-for-it/and-another-one-below-it"

// goInside runs the tests in namespaces of their own, with a folder that is
// removed after them, whatever becomes of them.
func goInside() int {
	dir, err := os.MkdirTemp("", "sublet-uml-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = os.MkdirAll(filepath.Join(dir, deep), 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return nstest.RunInside(insideMark + "=" + filepath.Join(dir, deep))
}

// starter starts the machine that it reads, writes its instance, and waits to
// be killed.
func starter() error {
	var in struct {
		RunRoot string
		Machine vps.Machine
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	inst, err := New(Options{RunRoot: in.RunRoot, Launcher: testLauncher()}).Start(context.Background(), in.Machine)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(inst); err != nil {
		return err
	}
	select {}
}

func testLauncher() keeper.Launcher {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return keeper.Launcher{Command: []string{self, verbKeeper}}
}
