package guesttest_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"sublet/internal/guest"
	"sublet/internal/guest/guesttest"
	"sublet/internal/vps"
)

func TestFake(t *testing.T) {
	t.Parallel()
	var host guesttest.FakeHost
	var guests atomic.Int64
	end := func(e vps.Exit) func(*testing.T, guest.Driver, vps.Instance) {
		return func(t *testing.T, _ guest.Driver, in vps.Instance) {
			t.Helper()
			if !host.End(in, e) {
				t.Error("it did not run any more")
			}
		}
	}
	guesttest.Run(t, guesttest.Rig{
		Driver: func(*testing.T) guest.Driver { return host.Driver() },
		Machine: func(*testing.T) vps.Machine {
			n := guests.Add(1)
			return vps.Machine{ID: fmt.Sprintf("id-%d", n), Name: fmt.Sprintf("g%d", n), Boots: 1}
		},
		Booted:   func(*testing.T, guest.Driver, vps.Instance) {},
		PowerOff: end(vps.Exit{Reason: vps.ExitPowerOff}),
		Reboot:   func(*testing.T, guest.Driver, vps.Instance) {},
		Panic:    end(vps.Exit{Reason: vps.ExitPanic, Code: -1, Signal: "SIGABRT", Detail: "Kernel panic"}),
		Crash:    end(vps.Exit{Reason: vps.ExitCrash, Code: -1, Signal: "SIGKILL"}),
		Abandon: func(t *testing.T, m vps.Machine) vps.Instance {
			t.Helper()
			in, err := host.Driver().Start(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			return in
		},
		Typed: func(word string) (string, string) { return word + "\n", strings.ToUpper(word) },
	})
}
