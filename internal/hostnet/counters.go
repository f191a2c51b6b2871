//go:build linux

package hostnet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// Counters returns what the public links counted themselves since they are
// there, sorted by name: of class vps.TrafficUplink, in what they received, and
// with the family 0. Of an uplink that is a bridge those of its ports that are
// no guests' are meant: what guests on the bridge send never meets the bridge's
// own counter. A link that is gone is left out.
//
// The counters are the kernel's (struct rtnl_link_stats64 of linux/if_link.h).
func (h *Net) Counters(_ context.Context, uplinks []string) ([]vps.LinkTraffic, error) {
	handle, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	var rows []vps.LinkTraffic
	for _, name := range publicLinks(uplinks) {
		l, err := handle.LinkByName(name)
		if gone := (netlink.LinkNotFoundError{}); errors.As(err, &gone) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "the counters of the host's link %s could not be read", name)
		}
		s := l.Attrs().Statistics
		if s == nil {
			continue
		}
		rows = append(rows, vps.LinkTraffic{
			Link: name, TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink},
			TrafficCount: vps.TrafficCount{
				InBytes: int64(s.RxBytes), InPackets: int64(s.RxPackets),
				OutBytes: int64(s.TxBytes), OutPackets: int64(s.TxPackets),
			},
		})
	}
	return rows, nil
}

// publicLinks replaces bridges by their ports that are no guests', and sorts.
func publicLinks(uplinks []string) []string {
	var links []string
	for _, u := range uplinks {
		// The folder is there for bridges alone.
		ports, err := os.ReadDir(filepath.Join("/sys/class/net", filepath.Base(u), "brif"))
		if err != nil {
			links = append(links, u)
			continue
		}
		for _, p := range ports {
			if !strings.HasPrefix(p.Name(), vps.LinkPrefix) {
				links = append(links, p.Name())
			}
		}
	}
	slices.Sort(links)
	return slices.Compact(links)
}
