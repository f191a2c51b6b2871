package nft

import "fmt"

// netdevChains are the rules for frames, which a base chain for each tap jumps
// to. The kernel gives the type on the wire also where it has taken the tag
// off a frame (skb->vlan_tci), so a tag of VID 0 is seen as well. IPv4 and
// IPv6 pass to the table inet: a limit of bandwidth takes them round this hook.
const netdevChains = `
	chain frames {
		@ll,96,16 { 0x0800, 0x86dd } return
		@ll,96,16 { 0x8100, 0x88a8, 0x9100 } goto drop-vlan
		@ll,96,16 != 0x0806 goto drop-ethertype
		iifname . ether saddr @macs goto arp_said
		goto drop-spoofed
	}

	chain arp_said {
		arp htype != 1 goto drop-arp
		arp ptype != ip goto drop-arp
		arp hlen != 6 goto drop-arp
		arp plen != 4 goto drop-arp
		arp operation != { request, reply } goto drop-arp
		iifname . arp saddr ether . arp saddr ip @speakers return
		arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @speakers return
		goto drop-arp
	}
`

// linkRules are what the base chain of a link holds: the way of a frame that
// comes in by it. The verb is the link's name, which matched linkName.
const linkRules = "type filter hook ingress device \"%s\" priority -150; policy accept;"

// linkChain returns the base chain of a link as a part of the table.
func linkChain(link string) string {
	return fmt.Sprintf("\n\tchain %s {\n\t\t"+linkRules+"\n\t\tjump frames\n\t}\n", link, link)
}

// guardNew returns the commands that put the base chain in place of a link that
// has none. Nothing goes, so the kernel does not wait for packets on their way.
func guardNew(link string) string {
	where := ours(netdev) + " " + link
	return fmt.Sprintf("add chain %s { %s }\nadd rule %s jump frames\n", where, fmt.Sprintf(linkRules, link), where)
}

// guardLink returns the commands that put the base chain of a link in place,
// whether or not there is one; the new one stands before the old one goes.
func guardLink(link string) string {
	where := ours(netdev) + " " + link
	hook := fmt.Sprintf(linkRules, link)
	return fmt.Sprintf("add chain %s\nflush chain %s\ndelete chain %s\nadd chain %s { %s }\nadd rule %s jump frames\n", where, where, where, where, hook, where)
}
