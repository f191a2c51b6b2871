//go:build linux

package nstest_test

import (
	"net"
	"os"
	"slices"
	"testing"

	"sublet/internal/nstest"
)

func names(t *testing.T) []string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range links {
		got = append(got, l.Name)
	}
	slices.Sort(got)
	return got
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	outside := host.Peer()
	host.Veth("up0", outside, "eth7")
	if got := names(t); !slices.Contains(got, "up0") || slices.Contains(got, "eth7") {
		t.Errorf("the test's own network has %v", got)
	}
	if _, err := os.Stat("/sys/class/net/up0"); err != nil {
		t.Errorf("/sys does not show the test's network: %v", err)
	}
	outside.Do(func() {
		if got := names(t); !slices.Contains(got, "eth7") || slices.Contains(got, "up0") {
			t.Errorf("the other network has %v", got)
		}
		if _, err := os.Stat("/sys/class/net/eth7"); err != nil {
			t.Errorf("/sys does not show the other network: %v", err)
		}
	})
	host.Exec("ip", "addr", "add", "203.0.113.1/24", "dev", "up0")
	outside.Exec("ip", "addr", "add", "203.0.113.2/24", "dev", "eth7")
	listener, err := net.Listen("tcp", "203.0.113.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	outside.Do(func() {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	})
}
