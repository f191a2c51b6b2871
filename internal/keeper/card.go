//go:build linux

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// A guest whose kernel cannot open its tap gets its network from its keeper:
// the keeper opens the tap, and passes frames between it and a local socket in
// the guest's working folder, to which the guest's kernel connects (the
// transport bess of arch/um/drivers/vector_user.c: packets of SOCK_SEQPACKET, a
// frame each). The guest's process then needs no network namespace of the
// host's, and has one of its own with nothing in it.
//
// The kernel connects again whenever its card is brought up, after a reboot as
// well; the keeper opens the tap again when it was removed and made anew. So
// neither has to know what happened to the other.

// CardSocket is where the guest's kernel finds its card: a socket in the run
// folder, which is its working folder.
const CardSocket = "card.sock"

const (
	// largestFrame is more than any frame of a tap without offloads.
	largestFrame = 64 << 10
	// headerSize is that of a struct virtio_net_hdr, which stands before each
	// frame of a tap that was made with vnet_hdr. Opening it without would take
	// that away from the link, and it would be the host's link no more.
	headerSize = 10
	// tapPoll is how often a tap that is not there is looked for.
	tapPoll = 50 * time.Millisecond
	// cardBuffer holds what one side is slower for than the other.
	cardBuffer = 1 << 20
)

// card passes frames between a guest's tap and its kernel.
type card struct {
	tap string
	ln  *net.UnixListener
	log func(err error)
}

// openCard listens for the guest's kernel, which runs as uid.
func openCard(runDir, tap string, uid uint32, log func(error)) (*card, error) {
	ln, err := listenAt(runDir, "unixpacket", CardSocket)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(filepath.Join(runDir, CardSocket), int(uid), int(uid)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &card{tap: tap, ln: ln, log: log}, nil
}

// serve passes frames until ctx ends. One connection counts at a time, the
// latest.
func (c *card) serve(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = c.ln.Close() })()
	var last *net.UnixConn
	var passing sync.WaitGroup
	defer passing.Wait()
	for {
		conn, err := c.ln.AcceptUnix()
		if last != nil {
			_ = last.Close()
			passing.Wait()
		}
		if err != nil {
			return
		}
		last = conn
		passing.Go(func() { c.pass(ctx, conn) })
	}
}

// pass connects one life of the guest's card with the tap, and with the next
// tap when that is removed. What the guest sends meanwhile is lost, as on a
// cable that is not plugged in.
func (c *card) pass(ctx context.Context, conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = errors.Join(conn.SetReadBuffer(cardBuffer), conn.SetWriteBuffer(cardBuffer))
	var plugged atomic.Pointer[os.File]
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		defer cancel()
		// Behind a header that asks for nothing.
		packet := make([]byte, headerSize+largestFrame)
		for {
			n, err := conn.Read(packet[headerSize:])
			if err != nil {
				return
			}
			if tap := plugged.Load(); tap != nil {
				_, _ = tap.Write(packet[:headerSize+n]) // refused while the link is down
			}
		}
	})
	for {
		tap, err := c.openTap(ctx)
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = tap.Close() })
		plugged.Store(tap)
		err = receive(conn, tap)
		plugged.Store(nil)
		stop()
		_ = tap.Close()
		if err != nil {
			return
		}
	}
}

// receive passes frames to the guest until the tap is gone, which is no error,
// or the guest is.
func receive(conn io.Writer, tap io.Reader) error {
	packet := make([]byte, headerSize+largestFrame)
	for {
		n, err := tap.Read(packet)
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		if n <= headerSize {
			continue
		}
		if _, err := conn.Write(packet[headerSize:n]); err != nil {
			return err
		}
	}
}

// openTap waits for the tap and opens it, without offloads: what comes out are
// frames as they go over a cable.
func (c *card) openTap(ctx context.Context) (*os.File, error) {
	tick := time.NewTicker(tapPoll)
	defer tick.Stop()
	for told := false; ; {
		f, err := openTap(c.tap)
		if err == nil {
			return f, nil
		}
		if !told {
			c.log(err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func openTap(name string) (*os.File, error) {
	// Asking for a tap that is not there would make one.
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, fmt.Errorf("find the guest's link %s: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerSize)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	}
	if err != nil {
		return nil, errors.Join(vps.Wrap(vps.CodeInternal, err, "cannot open the guest's link %s", name), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
