package probe_test

import (
	"context"
	"io"
	"net"
	"testing"

	"sublet/internal/hang"
	"sublet/internal/nstest"
	"sublet/internal/probe"
)

// console is both ends of a console.
type console struct {
	io.Reader
	io.Writer
}

func TestFrames(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	other := ns.Peer()
	ns.Veth("near0", other, "far0")
	toProbe, ask := io.Pipe()
	hear, fromProbe := io.Pipe()
	served := make(chan error, 1)
	other.Start(func() { served <- probe.ServeFrames(toProbe, fromProbe, "far0") })
	client := probe.NewClient(console{hear, ask})
	ctx, cancel := context.WithTimeout(t.Context(), hang.After)
	defer cancel()
	do := func(r probe.Request) probe.Answer {
		t.Helper()
		a, err := client.Do(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	// What a console shows besides is passed over.
	if _, err := io.WriteString(ask, "login: \r\n{}\n"); err != nil {
		t.Fatal(err)
	}
	do(probe.Request{Op: probe.Hello})
	if a := do(probe.Request{Op: probe.Send, Frames: [][]byte{[]byte("short")}}); a.Error == "" {
		t.Error("a frame that is none was sent")
	}
	if a := do(probe.Request{Op: "dance"}); a.Error == "" {
		t.Error("an unknown request was answered")
	}

	// It sends what this side hears, and hears what this side sends.
	near := make(chan error, 1)
	toNear, askNear := io.Pipe()
	hearNear, fromNear := io.Pipe()
	ns.Start(func() { near <- probe.ServeFrames(toNear, fromNear, "near0") })
	us := probe.NewClient(console{hearNear, askNear})
	if _, err := us.Do(ctx, probe.Request{Op: probe.Hello}); err != nil {
		t.Fatal(err)
	}
	frame := func(marker string) []byte {
		b := append(append([]byte{255, 255, 255, 255, 255, 255}, net.HardwareAddr{2, 0, 0, 0, 0, 1}...), 0x88, 0xb5)
		return append(b, marker...)
	}
	do(probe.Request{Op: probe.Send, Frames: [][]byte{frame("from-there")}, Count: 3})
	if _, err := us.Do(ctx, probe.Request{Op: probe.Send, Frames: [][]byte{frame("from-here")}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		client *probe.Client
		marker string
		want   int
	}{{us, "from-there", 3}, {client, "from-here", 1}, {client, "from-there", 0}, {us, "", 0}} {
		got := -1
		for got != c.want && ctx.Err() == nil {
			a, err := c.client.Do(ctx, probe.Request{Op: probe.Seen, Marker: []byte(c.marker)})
			if err != nil {
				t.Fatalf("%q: %d frames, want %d: %v", c.marker, got, c.want, err)
			}
			got = a.Count
		}
	}
	do(probe.Request{Op: probe.Off})
	if err := <-served; err != nil {
		t.Error(err)
	}
	_ = askNear.Close()
	if err := <-near; err != nil {
		t.Error(err)
	}
}
