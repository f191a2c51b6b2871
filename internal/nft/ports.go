package nft

import (
	"cmp"
	"slices"
	"strconv"

	"sublet/internal/vps"
)

// endpoint is one port of the host.
type endpoint struct {
	protocol vps.Protocol
	port     uint16
}

// addPorts fills the maps of blocks and forwards. What somebody asked for by a
// forward wins over what the block says about that port, in the same guest.
func (w *wall) addPorts(guests []vps.NetworkGuest) error {
	byPort, err := w.addBlocks(guests)
	if err != nil {
		return err
	}
	owners := make(map[endpoint]string, 2*len(guests))
	for i := range guests {
		g := &guests[i]
		for _, f := range slices.SortedFunc(slices.Values(g.Forwards), compareForwards) {
			protocols, err := expand(f)
			if err != nil {
				return err
			}
			if owner := blockOwner(byPort, f.Host); owner != "" && owner != g.Name {
				return vps.Errorf(vps.CodeConflict, "port %d, forwarded to guest %q, is in the port block of guest %q; forward another port", f.Host, g.Name, owner)
			}
			for _, p := range protocols {
				e := endpoint{p, f.Host}
				if other, ok := owners[e]; ok {
					return vps.Errorf(vps.CodeConflict, "port %d/%s is forwarded twice, to guests %q and %q; remove one of the two", f.Host, p, other, g.Name)
				}
				owners[e] = g.Name
				w.addForward(e, g, f.Guest)
			}
		}
	}
	for _, g := range byPort {
		e := endpoint{vps.ProtoTCP, g.Ports.First}
		if _, ok := owners[e]; !ok {
			w.addForward(e, g, vps.SSHPort)
		}
	}
	return nil
}

func compareForwards(a, b vps.Forward) int {
	return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Protocol, b.Protocol))
}

// addForward leads a port of the host to one of a guest.
func (w *wall) addForward(e endpoint, g *vps.NetworkGuest, port uint16) {
	key := string(e.protocol) + " . " + strconv.Itoa(int(e.port))
	to := " . " + strconv.Itoa(int(port))
	w.put(inet, "forwards", key, " : "+g.Address.String()+to)
	if a := vps.Address6(g.Prefix6); a.IsValid() {
		w.put(inet, "forwards6", key, " : "+a.String()+to)
	}
}

// blockOwner names the guest whose block has the port; byPort is sorted.
func blockOwner(byPort []*vps.NetworkGuest, port uint16) string {
	i, _ := slices.BinarySearchFunc(byPort, port, func(g *vps.NetworkGuest, port uint16) int {
		return cmp.Compare(g.Ports.Last(), port)
	})
	if i < len(byPort) && byPort[i].Ports.Contains(port) {
		return byPort[i].Name
	}
	return ""
}

// addBlocks fills the map of blocks and returns the guests that have one, in
// the order of their ports.
func (w *wall) addBlocks(guests []vps.NetworkGuest) ([]*vps.NetworkGuest, error) {
	byPort := make([]*vps.NetworkGuest, 0, len(guests))
	for i := range guests {
		if g := &guests[i]; g.Ports.Count > 0 {
			byPort = append(byPort, g)
		}
	}
	slices.SortFunc(byPort, func(a, b *vps.NetworkGuest) int { return cmp.Compare(a.Ports.First, b.Ports.First) })
	for i, g := range byPort {
		p := g.Ports
		if p.First == 0 || p.Last() < p.First {
			return nil, vps.Invalid("ports", "guest %q: %d ports from %d on do not exist; ports run from 1 to 65535", g.Name, p.Count, p.First)
		}
		if i > 0 && byPort[i-1].Ports.Overlaps(p) {
			return nil, vps.Errorf(vps.CodeConflict, "the port blocks of guests %q and %q overlap at port %d; give one of them other ports", byPort[i-1].Name, g.Name, p.First)
		}
		key := strconv.Itoa(int(p.First))
		if p.Count > 1 {
			key += "-" + strconv.Itoa(int(p.Last()))
		}
		a6 := vps.Address6(g.Prefix6)
		for _, protocol := range []vps.Protocol{vps.ProtoTCP, vps.ProtoUDP} {
			w.put(inet, "blocks", string(protocol)+" . "+key, " : "+g.Address.String())
			if a6.IsValid() {
				w.put(inet, "blocks6", string(protocol)+" . "+key, " : "+a6.String())
			}
		}
	}
	return byPort, nil
}

// expand returns the protocols of a forward.
func expand(f vps.Forward) ([]vps.Protocol, error) {
	if f.Host == 0 || f.Guest == 0 {
		return nil, vps.Invalid("forwards", "%d:%d/%s is not a forward; ports run from 1 to 65535", f.Host, f.Guest, f.Protocol)
	}
	switch f.Protocol {
	case vps.ProtoTCP, vps.ProtoUDP:
		return []vps.Protocol{f.Protocol}, nil
	case vps.ProtoBoth:
		return []vps.Protocol{vps.ProtoTCP, vps.ProtoUDP}, nil
	case vps.ProtoICMP:
	}
	return nil, vps.Invalid("forwards", "%q is not a protocol; write tcp, udp or tcp+udp", f.Protocol)
}
