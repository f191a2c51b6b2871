package nft

import "sublet/internal/vps"

// mark is the table's comment; the one verb is the digest of its text.
const mark = "made by sublet (%s); changes by hand are undone"

// links is the pattern of all guests' links. Rules match it by name (iifname,
// not iif), so that they may be there before a link is.
const links = `"` + vps.LinkPrefix + `*"`

// head opens the table. add before delete makes the delete succeed on the
// first run; nft 1.0.6 has no destroy. The file is one transaction: packets
// see the old table or the new one, and connection tracking keeps what it
// knows, so established connections live on. The one verb is the mark:
// a table that was made from another text shows it at first sight.
const head = `add table inet sublet
delete table inet sublet
table inet sublet {
	comment "%s"

	counter spoofed {
		comment "from a guest, but not from its own MAC and address"
	}
	counter not_ipv4 {
		comment "from a guest, of a protocol that guests have no address for"
	}
	counter between_guests {
		comment "from guest to guest past the public ports"
	}
	counter astray {
		comment "from a guest to networks of the host that are not public"
	}
	counter uninvited {
		comment "to a guest's private address from outside"
	}
	counter to_host {
		comment "from a guest to the host itself"
	}
	counter guest_sockets {
		comment "from the host's own network by a guest's process"
	}
`

// chains follow the sets. The one verb is the gateway's address.
//
// Chains of other tables see the packets as well; an accept here is no
// promise, and a packet that is none of ours falls through.
const chains = `
	chain prerouting_raw {
		type filter hook prerouting priority raw; policy accept;
		iifname ` + links + ` jump from_guest
	}

	chain from_guest {
		iifname . ether saddr . ip saddr @guests accept
		meta nfproto ipv4 counter name spoofed drop
		counter name not_ipv4 drop
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
		meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map @forwards
		meta l4proto { tcp, udp } dnat ip to th dport map @blocks
	}

	chain postrouting_nat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname @uplinks ip saddr @addresses masquerade
		ip saddr . ip daddr @self snat ip to %s
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		oifname ` + links + ` jump to_guest
		iifname ` + links + ` jump leave
	}

	chain to_guest {
		ct status dnat accept
		iifname ` + links + ` counter name between_guests drop
		counter name uninvited drop
	}

	chain leave {
		ct state new oifname @uplinks accept
		ct status dnat accept
		counter name astray drop
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname ` + links + ` jump at_host
	}

	chain at_host {
		ct state established,related accept
		icmp type echo-request accept
		counter name to_host drop
	}

	chain output {
		type filter hook output priority filter; policy accept;
		meta skuid @uids counter name guest_sockets drop
	}
}
`
