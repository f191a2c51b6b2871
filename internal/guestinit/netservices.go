package guestinit

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// The card has its address and routes before the image's init starts. What is
// written here keeps the image's own network services from undoing that, from
// waiting for an answer to DHCP that nobody gives, and from failing because of
// a card that only the machine has on which the image was made.

const (
	interfacesPath = "/etc/network/interfaces"
	netifrcPath    = "/etc/conf.d/net"
	dhcpcdPath     = "/etc/dhcpcd.conf"
	sysconfigDir   = "/etc/sysconfig/network-scripts"
)

// networkSteps return what tells the services that an image has. Each does
// nothing where its service is not installed.
func (p *provision) networkSteps() []step {
	if p.place.card == "" {
		return nil
	}
	var steps []step
	if p.init.systemd {
		steps = append(steps, step{"tell systemd-networkd of the card", p.networkd})
	}
	steps = append(steps, step{"tell NetworkManager of the card", p.networkManager})
	if p.last.Network != p.place.card {
		steps = append(steps,
			step{"tell ifupdown of the card", p.ifupdown},
			step{"tell netifrc of the card", p.netifrc},
			step{"tell dhcpcd of the card", p.dhcpcd},
			step{"tell the network scripts of the card", p.sysconfig},
			step{"remember the card", func(context.Context) error { p.last.Network = p.place.card; return nil }})
	}
	return steps
}

// networkd gives systemd-networkd the configuration that the card has already
// (systemd.network(5)). It sorts before files of images, which match cards by
// their names, and after "00-…", where a user may put another.
func (p *provision) networkd(context.Context) error {
	return p.run.Write("/run/systemd/network/05-sublet.network", []byte(p.networkdText()), 0o644)
}

func (p *provision) networkdText() string {
	var b strings.Builder
	s := p.seed
	fmt.Fprintf(&b, "# sublet writes this file at each boot.\n[Match]\nMACAddress=%s\n\n[Link]\nRequiredForOnline=yes\n", s.MAC)
	if s.MTU > 0 {
		fmt.Fprintf(&b, "MTUBytes=%d\n", s.MTU)
	}
	b.WriteString("\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=ipv6\nKeepConfiguration=yes\n")
	for _, dns := range s.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", dns)
	}
	if s.SearchDomain != "" {
		fmt.Fprintf(&b, "Domains=%s\n", s.SearchDomain)
	}
	fmt.Fprintf(&b, "\n[Address]\nAddress=%s/%d\n", s.Address, s.Address.BitLen())
	fmt.Fprintf(&b, "\n[Route]\nDestination=%s/%d\nScope=link\n", s.Gateway, s.Gateway.BitLen())
	fmt.Fprintf(&b, "\n[Route]\nGateway=%s\nGatewayOnLink=yes\n", s.Gateway)
	if s.Address6.IsValid() {
		fmt.Fprintf(&b, "\n[Address]\nAddress=%s/%d\n", s.Address6, s.Address6.BitLen())
		fmt.Fprintf(&b, "\n[Route]\nGateway=%s\nGatewayOnLink=yes\n", s.Gateway6)
	}
	return b.String()
}

// networkManager is told to leave the card alone, and resolv.conf, which it
// would empty because it knows of no name servers (NetworkManager.conf(5)).
func (p *provision) networkManager(context.Context) error {
	const dir = "/NetworkManager/conf.d/05-sublet.conf"
	if !p.tree.IsDir("/etc/NetworkManager") {
		return nil
	}
	text := "# sublet wrote this file: the card has its address before this service starts.\n" +
		"[main]\ndns=none\n\n[device-sublet]\nmatch-device=mac:" + p.seed.MAC.String() + "\nmanaged=0\n"
	if p.init.systemd {
		return p.run.Write("/run"+dir, []byte(text), 0o644)
	}
	return p.tree.Write("/etc"+dir, []byte(text), 0o644)
}

// ifupdown knows the card as one that needs nothing done ("manual",
// interfaces(5)), which ifupdown, ifupdown-ng and busybox's ifup have in common.
func (p *provision) ifupdown(context.Context) error {
	old, err := p.tree.Text(interfacesPath)
	if err != nil || !p.tree.Exists(interfacesPath) && !p.tree.IsDir(path.Dir(interfacesPath)) {
		return err
	}
	text := quietInterfaces(old, p.place)
	block := []string{"auto " + p.place.card, "iface " + p.place.card + " inet manual"}
	if !strings.Contains(text, "iface lo ") {
		block = append([]string{"auto lo", "iface lo inet loopback"}, block...)
	}
	// A user's link to a file elsewhere is followed.
	if err := p.tree.Write(interfacesPath, []byte(setBlock(text, block)), 0o644); err != nil {
		return err
	}
	for _, name := range p.tree.List(interfacesPath + ".d") {
		file := path.Join(interfacesPath+".d", name)
		old, err := p.tree.Text(file)
		if err != nil {
			continue
		}
		if text := quietInterfaces(old, p.place); text != old {
			if err := p.tree.Write(file, []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// noCard begins a line of interfaces(5) that was taken out.
const noCard = "# sublet: the host sets the network up: "

// quietInterfaces returns the text without the stanzas for cards that are not
// there, and for the one whose address is set already. Bridges and other cards
// that a stanza makes stay.
func quietInterfaces(text string, p place) string {
	out := func(name string) bool {
		return name == p.card || isCardName(name) && !p.hasCard(name)
	}
	lines := splitLines(setBlock(text, nil))
	taken := false
	for i, line := range lines {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		switch {
		case f[0] == "iface" && len(f) > 1:
			taken = out(f[1])
		case f[0] == "auto" || strings.HasPrefix(f[0], "allow-"):
			taken = false
			kept := slices.DeleteFunc(slices.Clone(f[1:]), out)
			if len(kept) == len(f)-1 {
				continue
			}
			lines[i] = noCard + line
			if len(kept) > 0 {
				lines[i] += "\n" + f[0] + " " + strings.Join(kept, " ")
			}
			continue
		case slices.Contains([]string{"mapping", "source", "source-directory", "source-dir", "template", "no-auto-down", "no-scripts", "rename"}, f[0]):
			taken = false
		}
		if taken {
			lines[i] = noCard + line
		}
	}
	return joinLines(lines)
}

// isCardName tells whether a name is one that kernels and udev give to
// cards, of Ethernet and wireless networks.
func isCardName(name string) bool {
	name, _, _ = strings.Cut(name, ":")
	rest := strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz")
	switch letters := name[:len(name)-len(rest)]; letters {
	case "eth", "wlan", "vec", "ens", "eno", "enp", "enx", "wlp", "wls", "wlo", "enX":
		return rest != "" && !strings.Contains(rest, ".")
	}
	return strings.HasPrefix(name, "enx") || strings.HasPrefix(name, "enX")
}

// netifrc keeps an address that a card has already where that is "noop"
// (Gentoo's net.example). The service of a card that is not there goes.
func (p *provision) netifrc(context.Context) error {
	const services, level = "/etc/init.d", "/etc/runlevels/default"
	if !p.tree.Exists(services + "/net.lo") {
		return nil
	}
	old, err := p.tree.Text(netifrcPath)
	if err != nil {
		return err
	}
	block := []string{`config_` + p.place.card + `="noop"`}
	if err := p.tree.Write(netifrcPath, []byte(setBlock(old, block)), 0o644); err != nil {
		return err
	}
	for _, name := range p.tree.List(level) {
		if card, ok := strings.CutPrefix(name, "net."); ok && isCardName(card) && !p.place.hasCard(card) {
			if err := p.tree.Remove(path.Join(level, name)); err != nil {
				return err
			}
		}
	}
	own := "net." + p.place.card
	if err := p.tree.Symlink("net.lo", path.Join(services, own)); err != nil {
		return err
	}
	return p.tree.Symlink(path.Join(services, own), path.Join(level, own))
}

// dhcpcd is told to leave the card alone. Its file ends in sections for single
// cards, so this comes first (dhcpcd.conf(5)).
func (p *provision) dhcpcd(context.Context) error {
	old, err := p.tree.Text(dhcpcdPath)
	if err != nil || !p.tree.Exists(dhcpcdPath) {
		return err
	}
	block := setBlock("", []string{"denyinterfaces " + p.place.card})
	return p.tree.Write(dhcpcdPath, []byte(block+setBlock(old, nil)), 0o644)
}

// sysconfig is for Red Hat's network scripts: cards of another machine do not
// start, and this one is as it is.
func (p *provision) sysconfig(context.Context) error {
	if !p.tree.IsDir(sysconfigDir) {
		return nil
	}
	for _, name := range p.tree.List(sysconfigDir) {
		card, ok := strings.CutPrefix(name, "ifcfg-")
		if !ok || card == p.place.card || !isCardName(card) || p.place.hasCard(card) {
			continue
		}
		file := path.Join(sysconfigDir, name)
		old, err := p.tree.Text(file)
		if err != nil {
			return err
		}
		if err := p.tree.Write(file, []byte(setAssignment(old, "ONBOOT", "no")), 0o644); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("# sublet wrote this file: the card has its address before the network starts.\n"+
		"DEVICE=%s\nHWADDR=%s\nBOOTPROTO=none\nONBOOT=no\nNM_CONTROLLED=no\n", p.place.card, p.seed.MAC)
	return p.tree.Write(path.Join(sysconfigDir, "ifcfg-"+p.place.card), []byte(text), 0o644)
}
