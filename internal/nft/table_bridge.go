package nft

// bridgeChains are the rules for guests' links that are ports of a bridge.
// Nothing puts fragments together here, so those that could hide what a packet
// says are dropped: all of ICMP and ICMPv6, first ones too small for ports
// (RFC 1858), second ones that could write over them, and in IPv6 those whose
// upper header is not the first thing in them.
const bridgeChains = `
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname ` + links + ` jump from_port
	}

	chain from_port {
		@ll,96,16 { 0x8100, 0x88a8, 0x9100 } goto drop-vlan
		iifname . ether saddr != @macs goto drop-spoofed
		@ll,96,16 0x0806 goto arp_said
		@ll,96,16 0x0800 goto say
		@ll,96,16 0x86dd goto say6
		goto drop-ethertype
	}

	chain arp_said {
		iifname @packets goto drop-packets
		arp htype != 1 goto drop-arp
		arp ptype != ip goto drop-arp
		arp hlen != 6 goto drop-arp
		arp plen != 4 goto drop-arp
		arp operation != { request, reply } goto drop-arp
		iifname . arp saddr ether . arp saddr ip @speakers return
		arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @speakers return
		goto drop-arp
	}

	chain say {
		iifname . ether saddr . ip saddr != @guests goto drop-spoofed
		iifname @packets goto drop-packets
		ip frag-off & 0x3fff != 0 jump fragment
		ip frag-off & 0x1fff != 0 return
		@th,0,8 >= 0 goto said
		goto drop-ethertype
	}

	chain said {
		udp sport 67 goto drop-dhcp-server
		udp dport 68 goto drop-dhcp-server
		icmp type redirect goto drop-redirect
		icmp type router-advertisement goto drop-router-advert
		igmp type membership-query goto drop-router-advert
		tcp dport 25 iifname != @smtp goto drop-smtp
	}

	chain fragment {
		ip protocol { icmp, igmp } goto drop-fragment
		ip frag-off & 0x1fff 1 goto drop-fragment
		ip frag-off & 0x1fff 0 ip length < 68 goto drop-fragment
	}

	chain say6 {
		iifname . ether saddr . ip6 saddr @guests6 goto own6
		iifname . ether saddr . ip6 saddr @prefixes6 goto own6
		ip6 saddr :: goto unspecified
		goto drop-spoofed
	}

	chain unspecified {
		iifname @packets goto drop-packets
		exthdr frag exists goto drop-fragment
		icmpv6 type { mld-listener-report, mld2-listener-report } return
		icmpv6 type nd-neighbor-solicit ip6 nexthdr icmpv6 iifname . @th,64,128 @targets goto linklayer
		icmpv6 type nd-neighbor-solicit ip6 nexthdr icmpv6 iifname . @th,64,128 @targets6 goto linklayer
		goto drop-spoofed
	}

	chain own6 {
		iifname @packets goto drop-packets
		exthdr frag exists jump fragment6
		@th,0,8 >= 0 goto said6
		goto drop-ethertype
	}

	chain said6 {
		udp sport 547 goto drop-dhcp-server
		udp dport 546 goto drop-dhcp-server
		icmpv6 type nd-redirect goto drop-redirect
		icmpv6 type { nd-router-advert, mld-listener-query } goto drop-router-advert
		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } goto neighbour
		tcp dport 25 iifname != @smtp goto drop-smtp
	}

	chain fragment6 {
		frag nexthdr != { tcp, udp } goto drop-fragment
		frag frag-off != 0 accept
		meta l4proto != { tcp, udp } goto drop-fragment
	}
` + neighbourChains + `
	chain forward {
		type filter hook forward priority -200; policy accept;
		iifname ` + links + ` oifname ` + links + ` jump between
	}

	chain between {
		meta mark set iifname map @peers
		meta mark . oifname @members goto between_peers
		goto drop-between-guests
	}

	chain between_peers {
		meta mark set 0
	}
`
