package daemon

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sublet/internal/desired"
	"sublet/internal/guest/uml"
	"sublet/internal/vps"
)

// facts answers what edits ask of the host.
type facts struct {
	*parts
}

func (f facts) Image(ctx context.Context, name string) (vps.Image, error) {
	return f.images.Get(ctx, name)
}

func (f facts) Kernel(ctx context.Context, settings vps.Settings, spec vps.GuestSpec) error {
	k, err := f.kernelOf(ctx, settings, spec)
	if err != nil {
		return err
	}
	return uml.CheckKernel(k, spec.Isolation, spec.CPUs)
}

// Room returns the host's memory and the space left for volumes.
func (f facts) Room(ctx context.Context) (memory, disk vps.Bytes, err error) {
	if memory, err = memTotal(); err != nil {
		return 0, 0, err
	}
	disk, err = f.volumes.Free(ctx)
	return memory, disk, err
}

// memTotal reads the host's memory from /proc/meminfo (proc(5)).
func memTotal() (vps.Bytes, error) {
	const path = "/proc/meminfo"
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the host's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", path, err)
			}
			return vps.Bytes(kib) * vps.KiB, nil
		}
	}
	return 0, fmt.Errorf("%s has no line MemTotal", path)
}

// Listeners leaves out the edge's ports: it gives up those that a guest gets.
func (f facts) Listeners(context.Context) ([]desired.Listener, error) {
	all, err := listeners("/proc/net")
	return slices.DeleteFunc(all, f.edgeHas), err
}

func (f facts) Network(ctx context.Context, before, after vps.Settings) error {
	if after.Subnet != before.Subnet {
		if err := f.hostnet.CheckSubnet(ctx, after.Subnet); err != nil {
			return err
		}
	}
	if after.Subnet6 != before.Subnet6 && after.Subnet6.IsValid() {
		if err := f.hostnet.CheckSubnet(ctx, after.Subnet6); err != nil {
			return err
		}
	}
	if after.Uplink == before.Uplink {
		return nil
	}
	_, err := f.hostnet.Uplinks(ctx, after.Uplink)
	return err
}

func (f facts) Disk(ctx context.Context, id string, size vps.Bytes) error {
	return f.volumes.CanGrow(ctx, id, "", size)
}

func (f facts) HostBoot() string { return f.hostBoot }

// The socket states of /proc/net/tcp and udp (include/net/tcp_states.h): a
// TCP socket that listens, and a UDP socket without a peer.
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

// listeners reads the ports that programs of this network namespace listen
// on, but for those that listen on loopback only: nobody outside reaches them.
func listeners(dir string) ([]desired.Listener, error) {
	var all []desired.Listener
	seen := map[desired.Listener]bool{}
	for _, table := range []struct {
		name  string
		state string
		proto vps.Protocol
	}{{"tcp", tcpListen, vps.ProtoTCP}, {"tcp6", tcpListen, vps.ProtoTCP}, {"udp", udpOpen, vps.ProtoUDP}, {"udp6", udpOpen, vps.ProtoUDP}} {
		file, err := os.Open(filepath.Join(dir, table.name))
		if os.IsNotExist(err) {
			continue // a host without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("read the host's sockets: %w", err)
		}
		ports, err := listening(file, table.state)
		_ = file.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file.Name(), err)
		}
		for _, port := range ports {
			if l := (desired.Listener{Port: port, Protocol: table.proto}); !seen[l] {
				seen[l] = true
				all = append(all, l)
			}
		}
	}
	return all, nil
}

// listening reads one table of proc(5): its second column is the local
// address in hexadecimal, its fourth the state.
func listening(r io.Reader, state string) ([]uint16, error) {
	var ports []uint16
	lines := bufio.NewScanner(r)
	lines.Scan() // the heading
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) < 4 || columns[3] != state {
			continue
		}
		address, port, ok := strings.Cut(columns[1], ":")
		if !ok || isLoopback(address) {
			continue
		}
		n, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			return nil, fmt.Errorf("parse the port %q: %w", port, err)
		}
		ports = append(ports, uint16(n))
	}
	return ports, lines.Err()
}

// isLoopback reads an address as the kernel prints it: 32-bit words in the
// machine's byte order, which is little-endian wherever UML runs.
func isLoopback(text string) bool {
	b, err := hex.DecodeString(text)
	switch {
	case err != nil:
		return false
	case len(b) == 4:
		return b[3] == 127
	}
	return text == "00000000000000000000000001000000"
}
