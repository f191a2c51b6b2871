//go:build linux

package keeper

import (
	"context"
	"fmt"
	"os"
	"testing"

	"sublet/internal/nstest"
)

// The test binary is the keeper too, by its first argument. The tests run in
// namespaces of their own, so that what a failed test leaves behind ends with
// them.
const (
	verbKeeper = "keeper"
	insideMark = "SUBLET_TEST_INSIDE"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case Rebooting():
		err = Reboot()
	case len(os.Args) > 1 && os.Args[1] == verbKeeper:
		err = Main(context.Background(), os.Args[2:], os.Stderr)
	case os.Getenv(insideMark) == "":
		os.Exit(nstest.RunInside(insideMark + "=1"))
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
