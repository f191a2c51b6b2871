package desired

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sublet/internal/hostname"
	"sublet/internal/vps"
)

// minFree is the space that must be left for a new volume's header, seed and
// first writes. An overlay grows only with what its guest writes.
const minFree = 64 * vps.MiB

// shape turns the spec that a guest has, or starts out with, into the one
// that is asked for.
type shape = func(spec vps.GuestSpec) (vps.GuestSpec, error)

// add puts a new guest into the host, to be made from its image.
func (s *State) add(ctx context.Context, c *contents, id, name string, shape shape) error {
	return s.addWith(ctx, c, id, name, "", shape)
}

// addWith puts a new guest into the host. A guest with an imageID has its disks
// already, and needs no image.
func (s *State) addWith(ctx context.Context, c *contents, id, name, imageID string, shape shape) error {
	if err := vps.ValidName("name", name); err != nil {
		return err
	}
	spec, err := shape(vps.NewGuestSpec(name))
	if err != nil {
		return err
	}
	if spec, err = normalize(spec); err != nil {
		return err
	}
	if old := c.host.Guest(name); old != nil && old.Deleting {
		return vps.Errorf(vps.CodeConflict, "the old guest %s is still being deleted; try again in a moment", name)
	} else if old != nil {
		return vps.Errorf(vps.CodeConflict, "a guest named %s exists already; choose another name or delete it first", name)
	}
	if imageID == "" {
		img, err := s.facts.Image(ctx, spec.Image)
		if err != nil {
			return err
		}
		imageID = img.ID
	}
	if err := s.facts.Kernel(ctx, c.host.Settings, spec); err != nil {
		return err
	}
	listeners, err := s.facts.Listeners(ctx)
	if err != nil {
		return err
	}
	if err := allocate(&c.host, &spec, listeners); err != nil {
		return err
	}
	c.sequence.LastIndex++
	g := vps.Guest{
		ID: id, Spec: spec, Index: c.sequence.LastIndex, ImageID: imageID,
		HostBoot: s.facts.HostBoot(), Created: s.now().UTC(),
	}
	if spec.Power == vps.PowerRunning {
		g.Boots = 1
	}
	c.host.Guests = append(c.host.Guests, g)
	if err := s.checkMemory(ctx, c); err != nil {
		return err
	}
	return s.checkDisk(ctx, name)
}

// reshape changes the spec of a guest that exists. Some of it is for life.
func (s *State) reshape(ctx context.Context, c *contents, g *vps.Guest, shape shape) error {
	was := g.Spec
	spec, err := shape(was)
	if err != nil {
		return err
	}
	if spec, err = normalize(spec); err != nil {
		return err
	}
	if spec.Ports.First == 0 && spec.Ports.Count == was.Ports.Count {
		spec.Ports = was.Ports
	}
	if !spec.Address.IsValid() {
		spec.Address = was.Address
	}
	const forLife = "%s cannot change from %s to %s: it stays with the guest %s for life; make a new guest"
	switch {
	case spec.Driver != was.Driver:
		return vps.Errorf(vps.CodeConflict, forLife, "the driver", was.Driver, spec.Driver, was.Name)
	case spec.Image != was.Image:
		return vps.Errorf(vps.CodeConflict, forLife, "the image", was.Image, spec.Image, was.Name)
	case spec.Address != was.Address:
		return vps.Errorf(vps.CodeConflict, forLife, "the address", was.Address, spec.Address, was.Name)
	case spec.Ports != was.Ports:
		return vps.Errorf(vps.CodeConflict, forLife, "the port block", was.Ports, spec.Ports, was.Name)
	case spec.Storage != was.Storage:
		return vps.Errorf(vps.CodeConflict, forLife, "the place of the disks", was.Storage, spec.Storage, was.Name)
	case spec.Disk < was.Disk:
		return vps.Invalid("disk", "the disk of %s cannot shrink from %s to %s; a filesystem only grows", was.Name, was.Disk, spec.Disk)
	}
	if err := keepsData(was, spec); err != nil {
		return err
	}
	if spec.Kernel != was.Kernel || spec.Isolation != was.Isolation || spec.CPUs != was.CPUs {
		if err := s.facts.Kernel(ctx, c.host.Settings, spec); err != nil {
			return err
		}
	}
	if spec.Disk > was.Disk {
		if err := s.facts.Disk(ctx, g.ID, spec.Disk); err != nil {
			return err
		}
	}
	if err := s.checkNewPorts(ctx, c, was, spec); err != nil {
		return err
	}
	g.Spec = spec
	if spec.Memory > was.Memory {
		return s.checkMemory(ctx, c)
	}
	return nil
}

// checkNewPorts checks that what a guest is to have more of, forwards and domains,
// has ports that are free on the host itself.
func (s *State) checkNewPorts(ctx context.Context, c *contents, was, spec vps.GuestSpec) error {
	forwards := slices.DeleteFunc(slices.Clone(spec.Forwards), func(f vps.Forward) bool { return slices.Contains(was.Forwards, f) })
	domains := slices.DeleteFunc(slices.Clone(spec.Domains), func(d vps.Domain) bool {
		return slices.ContainsFunc(was.Domains, func(o vps.Domain) bool { return o.Listen == d.Listen })
	})
	if len(forwards)+len(domains) == 0 {
		return nil
	}
	listeners, err := s.facts.Listeners(ctx)
	if err != nil {
		return err
	}
	return freePorts(&c.host, listeners, forwards, domains)
}

// freePorts checks forwards and domains against what programs of the host listen
// on. Where there are domains already it is the edge that listens.
func freePorts(h *vps.Host, listeners []Listener, forwards []vps.Forward, domains []vps.Domain) error {
	edge := h.EdgePorts()
	others := slices.DeleteFunc(slices.Clone(listeners), func(l Listener) bool {
		return slices.Contains(edge, l.Port) && (l.Protocol == vps.ProtoTCP || l.Port == vps.HTTPSPort)
	})
	for _, f := range forwards {
		if err := free(others, f); err != nil {
			return err
		}
	}
	for i := range domains {
		for port := range domains[i].Ports() {
			alone := ""
			if port == vps.HTTPPort {
				alone = ", such as on 443 for TLS alone"
			}
			if slices.Contains(others, Listener{port, vps.ProtoTCP}) && h.HandedTo(port, vps.ProtoTCP) == nil {
				return vps.Errorf(vps.CodeConflict, "a program of the host listens on port %d/tcp, where %s is to be served; stop that program first, or serve the domain elsewhere with --listen%s", port, &domains[i], alone)
			}
		}
	}
	return nil
}

// keepsData refuses a spec that would lose what lies on an extra disk: disks
// are removed by an order of their own.
func keepsData(was, spec vps.GuestSpec) error {
	for i, old := range was.Disks {
		if i >= len(spec.Disks) || spec.Disks[i].Name != old.Name {
			return vps.Invalid("disks", "the disk %s of %s would be lost, or become another device in the guest; name all disks that it has, in their order and new ones behind them, or remove it with `sublet disk remove %s %s`", old.Name, was.Name, was.Name, old.Name)
		}
		if now := spec.Disks[i].Size; now < old.Size {
			return vps.Invalid("disks", "the disk %s of %s cannot shrink from %s to %s", old.Name, was.Name, old.Size, now)
		}
	}
	return nil
}

// normalize makes specs that mean the same also equal, names of domains in their
// canonical form among them, and validates them.
func normalize(s vps.GuestSpec) (vps.GuestSpec, error) {
	s.Domains = slices.Clone(s.Domains) // what shape returned may be somebody's
	for i := range s.Domains {
		name, err := hostname.Canonical(s.Domains[i].Name)
		if err != nil {
			return s, vps.Invalid(fmt.Sprintf("domains[%d].name", i), "%s", vps.ErrorMessage(err))
		}
		s.Domains[i].Name = name
	}
	// In the order of whoever wrote it, for the sake of the fields of errors.
	if err := s.Validate(); err != nil {
		return s, err
	}
	if slices.SortFunc(s.Domains, vps.CompareDomains); len(s.Domains) == 0 {
		s.Domains = nil
	}
	if len(s.SSHKeys) == 0 {
		s.SSHKeys = nil
	}
	if len(s.DNS) == 0 {
		s.DNS = nil
	}
	if len(s.Forwards) == 0 {
		s.Forwards = nil
	}
	if len(s.Rules) == 0 {
		s.Rules = nil
	}
	if len(s.Disks) == 0 {
		s.Disks = nil
	}
	if s.Ports.Count == 0 {
		s.Ports = vps.PortBlock{}
	}
	return s, nil
}

// allocate gives out the address and the port block that the spec leaves
// open, and checks that what it asks for is free on the host itself. What
// other guests have is checked with the whole host.
func allocate(h *vps.Host, s *vps.GuestSpec, listeners []Listener) error {
	if !s.Address.IsValid() {
		a, err := nextAddress(h)
		if err != nil {
			return err
		}
		s.Address = a
	}
	if err := freePorts(h, listeners, s.Forwards, s.Domains); err != nil {
		return err
	}
	switch {
	case s.Ports.Count == 0:
		return nil
	case s.Ports.First == 0:
		block, err := nextBlock(h, s, listeners)
		s.Ports = block
		return err
	}
	for _, l := range listeners {
		if s.Ports.Contains(l.Port) {
			return vps.Errorf(vps.CodeConflict, "a program of the host listens on port %d/%s, which lies in %s; choose another block", l.Port, l.Protocol, s.Ports)
		}
	}
	return nil
}

func free(listeners []Listener, f vps.Forward) error {
	for _, l := range listeners {
		if l.Port == f.Host && (f.Protocol == vps.ProtoBoth || f.Protocol == l.Protocol) {
			return vps.Errorf(vps.CodeConflict, "a program of the host listens on port %d/%s; choose another port, or stop that program first", l.Port, l.Protocol)
		}
	}
	return nil
}

// nextAddress returns the lowest free address of the subnet.
func nextAddress(h *vps.Host) (netip.Addr, error) {
	taken := map[netip.Addr]bool{}
	for i := range h.Guests {
		taken[h.Guests[i].Spec.Address] = true
	}
	subnet := h.Settings.Subnet
	for a := h.Settings.Gateway().Next(); subnet.Contains(a.Next()); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, vps.Errorf(vps.CodeDenied, "the subnet %s has no free address left; set a larger settings.subnet or delete a guest", subnet)
}

// nextBlock returns the lowest free block, aligned to its own length so that
// equal blocks pack without gaps.
func nextBlock(h *vps.Host, s *vps.GuestSpec, listeners []Listener) (vps.PortBlock, error) {
	pool, count := h.Settings.PortRange, s.Ports.Count
	for first := int(pool.First); first+int(count)-1 <= int(pool.Last()); first += int(count) {
		block := vps.PortBlock{First: uint16(first), Count: count}
		if !blockTaken(h, s, block, listeners) {
			return block, nil
		}
	}
	return vps.PortBlock{}, vps.Errorf(vps.CodeDenied, "the port range %s has no %d free ports in a row left; set a larger settings.ports or delete a guest", pool, count)
}

func blockTaken(h *vps.Host, s *vps.GuestSpec, b vps.PortBlock, listeners []Listener) bool {
	inBlock := func(f vps.Forward) bool { return b.Contains(f.Host) }
	onBlock := func(d vps.Domain) bool { return b.Contains(d.Listen) }
	for i := range h.Guests {
		if o := &h.Guests[i].Spec; o.Ports.Overlaps(b) || slices.ContainsFunc(o.Forwards, inBlock) || slices.ContainsFunc(o.Domains, onBlock) {
			return true
		}
	}
	return slices.ContainsFunc(s.Forwards, inBlock) || slices.ContainsFunc(s.Domains, onBlock) ||
		slices.ContainsFunc(listeners, func(l Listener) bool { return b.Contains(l.Port) })
}

// checkMemory tells whether the host can keep what it would promise.
func (s *State) checkMemory(ctx context.Context, c *contents) error {
	memory, _, err := s.facts.Room(ctx)
	if err != nil {
		return err
	}
	room := memory / 100 * vps.Bytes(c.host.Settings.MemoryOvercommit)
	if promised := c.host.Promised(); promised > room {
		return vps.Errorf(vps.CodeDenied, "guests would be promised %s of memory, and the host has %s for them; give less, stop a guest, or raise settings.memory_overcommit", promised, room)
	}
	return nil
}

func (s *State) checkDisk(ctx context.Context, name string) error {
	_, disk, err := s.facts.Room(ctx)
	if err != nil {
		return err
	}
	if disk < minFree {
		return vps.Errorf(vps.CodeDenied, "the disk is full: %s are left for volumes, and the guest %s needs at least %s; free some space", disk, name, minFree)
	}
	return nil
}
