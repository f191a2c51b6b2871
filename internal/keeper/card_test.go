//go:build linux

package keeper

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/hang"
)

// arpRequest asks who has 192.0.2.1, from 192.0.2.2.
func arpRequest() []byte {
	b := bytes.Repeat([]byte{0xff}, 6)
	b = append(b, 2, 0, 0, 0, 0, 2, 8, 6)            // from, ARP
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)            // Ethernet, IPv4, request
	b = append(b, 2, 0, 0, 0, 0, 2, 192, 0, 2, 2)    // sender
	return append(b, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1) // target
}

// TestCard lets a card speak with the host through its tap, through the next
// one after the link was removed, and from the next life of the guest.
func TestCard(t *testing.T) {
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	makeTap := func() {
		t.Helper()
		ip("tuntap", "add", "sl-card", "mode", "tap", "vnet_hdr")
		ip("addr", "add", "192.0.2.1/24", "dev", "sl-card")
		ip("link", "set", "sl-card", "up")
	}
	// The folder's name is longer than a socket's address.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	c, err := openCard(dir, "sl-card", 721396, func(err error) {
		select {
		case waits <- err:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, CardSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.serve(ctx)
	}()
	dial := func() *net.UnixConn {
		t.Helper()
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close() //nolint:errcheck // read only
		t.Chdir(dir)
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: CardSocket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	speaks := func(conn *net.UnixConn, what string) {
		t.Helper()
		frame := make([]byte, largestFrame)
		for deadline := time.Now().Add(hang.After); time.Now().Before(deadline); {
			if _, err := conn.Write(arpRequest()); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			for {
				n, err := conn.Read(frame)
				if err != nil {
					break
				}
				if n >= 42 && cmp.Equal(frame[12:14], []byte{8, 6}) && cmp.Equal(frame[28:32], []byte{192, 0, 2, 1}) && frame[21] == 2 {
					return
				}
			}
		}
		t.Fatalf("%s: the host does not answer", what)
	}
	conn := dial()
	if err := <-waits; err == nil {
		t.Error("a link that is not there was found")
	}
	makeTap()
	speaks(conn, "the first link")
	if out, err := exec.CommandContext(t.Context(), "ip", "-d", "link", "show", "sl-card").CombinedOutput(); err != nil || !strings.Contains(string(out), "vnet_hdr on") {
		t.Errorf("the link was changed: %v, %s", err, out)
	}
	ip("link", "del", "sl-card")
	makeTap()
	speaks(conn, "the next link")
	again := dial()
	speaks(again, "the next life")
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		for err == nil {
			_, err = conn.Read(make([]byte, largestFrame))
		}
	}
	cancel()
	<-done
	ip("link", "del", "sl-card") // for the next test
}
