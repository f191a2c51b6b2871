package nft

import (
	"fmt"

	"sublet/internal/vps"
)

// A mark is compared with imitated, and made it by imitate. See vps.EdgeMark.
var (
	imitated = fmt.Sprintf("& 0x%08x == 0x%08x", vps.EdgeMarkMask, vps.EdgeMark)                 //nolint:gochecknoglobals // a constant
	imitate  = fmt.Sprintf("& 0x%08x | 0x%08x", ^uint32(vps.EdgeMarkMask), uint32(vps.EdgeMark)) //nolint:gochecknoglobals // a constant
)

// inetChains are the rules for routed taps and for guests' processes. The one
// verb is the host's address towards the guests.
//
// The source of every packet is looked at before defragmentation (priority
// -400), so that no guest can push fragments in another's name into a packet
// that is being put together; what a packet says is looked at behind it, where
// packets are whole. Chains of other tables see the packets as well: an accept
// here is no promise, and what is none of ours falls through.
//
// A connection that the edge opens to a guest in the name of somebody who is not
// the host has a mark (imitate), and the guest's answers get it as their packet's
// mark, by which internal/hostnet routes them to the host instead of to whom they
// are for (prerouting_answers). A guest cannot make such a connection, and answers
// are of one pair of addresses and ports; they reach a socket that was made for
// this, or none (answered): the port is the caller's choice, and a service of the
// host may come to have it. What the host's kernel itself would tell the caller
// about such a connection, of which he knows nothing, is not sent (output).
//
// A caller may have his port in use already, in a connection to the same port of
// the guest that goes by a forwarded port. Connection tracking then gives the
// edge's another port on its way to the guest, and the kernel would hand the edge's
// socket what is the other connection's (early demultiplexing, before any routing).
// So such a one gets no answers (answer), and the edge takes another port.
var inetChains = `
	chain prerouting_source {
		type filter hook prerouting priority -450; policy accept;
		iifname ` + links + ` jump source
	}

	chain source {
		@ll,96,16 { 0x8100, 0x88a8, 0x9100 } goto drop-vlan
		iifname . ether saddr . ip saddr @guests goto own
		meta nfproto ipv4 goto drop-spoofed
		iifname . ether saddr . ip6 saddr @guests6 goto own
		iifname . ether saddr . ip6 saddr @prefixes6 goto own
		ip6 saddr :: iifname . ether saddr @macs goto unspecified
		goto drop-spoofed
	}

	chain own {
		iifname @packets goto drop-packets
	}

	chain unspecified {
		iifname @packets goto drop-packets
		exthdr frag exists goto drop-fragment
		icmpv6 type { mld-listener-report, mld2-listener-report } return
		icmpv6 type nd-neighbor-solicit ip6 nexthdr icmpv6 iifname . @th,64,128 @targets return
		icmpv6 type nd-neighbor-solicit ip6 nexthdr icmpv6 iifname . @th,64,128 @targets6 return
		goto drop-spoofed
	}

	chain prerouting_said {
		type filter hook prerouting priority raw; policy accept;
		iifname ` + links + ` jump said
	}

	chain said {
		ip frag-off & 0x3fff != 0 goto drop-fragment
		exthdr frag exists goto drop-fragment
		udp sport { 67, 547 } goto drop-dhcp-server
		udp dport { 68, 546 } goto drop-dhcp-server
		icmp type redirect goto drop-redirect
		icmpv6 type nd-redirect goto drop-redirect
		icmpv6 type nd-router-advert goto drop-router-advert
		icmp type router-advertisement goto drop-router-advert
		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } goto neighbour
	}
` + neighbourChains + `
	chain prerouting_answers {
		type filter hook prerouting priority mangle; policy accept;
		iifname ` + links + ` ct direction reply ct mark ` + imitated + ` jump answer
	}

	chain answer {
		ct status snat fib daddr type != local goto drop-astray
		meta mark set meta mark ` + imitate + `
	}

	chain prerouting_nat {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump ports
	}

	chain output_nat {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump ports
	}

	chain ports {
		ip daddr 127.0.0.0/8 return
		ip6 daddr { ::1, fe80::/10 } return
		meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map @forwards
		meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map @blocks
		meta l4proto { tcp, udp } dnat ip6 to meta l4proto . th dport map @forwards6
		meta l4proto { tcp, udp } dnat ip6 to meta l4proto . th dport map @blocks6
	}

	chain postrouting_nat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname @uplinks ip saddr @addresses masquerade
		oifname @uplinks ip6 saddr @masqueraded6 masquerade
		ip saddr . ip daddr @self snat ip to %s
		ip6 saddr . ip6 daddr @self6 snat ip6 to fe80::1
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		iifname ` + links + ` jump leave
	}

	chain leave {
		ct state new iifname @newcomers goto drop-new-connection
		ct state new iifname @connections goto drop-connections
		oifname ` + links + ` goto between
		ct state != new goto drop-astray
		iifname vmap @rules-out
		oifname @uplinks tcp dport 25 iifname != @smtp goto drop-smtp
		oifname @uplinks accept
		ct status dnat accept
		goto drop-astray
	}

	chain between {
		ct state != new goto drop-between-guests
		ct status dnat goto between_ports
		meta mark set iifname map @peers
		meta mark . oifname @members goto between_peers
		goto drop-between-guests
	}

	chain between_ports {
		iifname vmap @rules-out
	}

	chain between_peers {
		meta mark set 0
		iifname vmap @rules-out
	}

	chain forward_in {
		type filter hook forward priority filter + 1; policy accept;
		ct state established,related accept
		oifname ` + links + ` jump enter
	}

	chain enter {
		ct state new oifname @newcomers goto deny-new-connection
		ct state new oifname @connections goto deny-connections
		ct state != new goto deny-uninvited
		oifname vmap @rules-in
		ct status dnat accept
		iifname ` + links + ` accept
		goto deny-uninvited
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname ` + links + ` jump at_host
	}

	chain at_host {
		ct mark ` + imitated + ` goto answered
		ct state established,related accept
		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
		meta l4proto igmp accept
		ct state new iifname @newcomers goto drop-new-connection
		ct state new iifname @connections goto drop-connections
		icmp type echo-request accept
		icmpv6 type echo-request accept
		iifname vmap @rules-host
		ct state new meta l4proto . th dport @services accept
		goto drop-to-host
	}

	chain answered {
		socket transparent 0 goto drop-to-host
		accept
	}

	chain output {
		type filter hook output priority filter; policy accept;
		meta skuid @uids goto drop-socket
		oifname ` + links + ` ct state new meta skuid @edge jump imitate
		ct state related ct direction reply ct mark ` + imitated + ` drop
	}

	chain imitate {
		fib saddr type local return
		meta mark set meta mark ` + imitate + `
		ct mark set ct mark ` + imitate + `
	}
`

// neighbourChains are the same in both tables: what a guest may say of itself
// to its neighbours, and of its hardware address to routers (RFC 4861). The
// table has the sets targets, targets6 and linklayers.
const neighbourChains = `
	chain neighbour {
		ip6 nexthdr != icmpv6 goto drop-neighbour
		icmpv6 type nd-router-solicit goto solicitor
		icmpv6 type nd-neighbor-solicit goto linklayer
		iifname . @th,64,128 @targets goto linklayer
		iifname . @th,64,128 @targets6 goto linklayer
		goto drop-neighbour
	}

	chain solicitor {
		ip6 length 8 return
		ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @linklayers return
		goto drop-neighbour
	}

	chain linklayer {
		ip6 length 24 return
		ip6 length != 32 goto drop-neighbour
		ip6 saddr :: @th,192,16 0x0e01 return
		icmpv6 type nd-neighbor-solicit @th,192,16 != 0x0101 goto drop-neighbour
		icmpv6 type nd-neighbor-advert @th,192,16 != 0x0201 goto drop-neighbour
		iifname . @th,208,48 @linklayers return
		goto drop-neighbour
	}
`
