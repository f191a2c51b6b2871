package nft

import (
	"fmt"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// quotaDroppers count and drop, and lead a link's packet past the quotas that
// count it, which traffic between guests is not. The verbs are what adds to the
// sums of both directions.
const quotaDroppers = `
	chain drop_out {
		update @dropped-quota { iifname counter }
		%[1]s
		drop
	}

	chain drop_in {
		update @denied-quota { oifname counter }
		%[2]s
		drop
	}

	chain count_out {
		oifname ` + links + ` return
		quota name iifname map @throttle-tenant-out iifname @rates-tenant-out goto drop_out
		quota name iifname map @throttle-guest-out iifname @rates-guest-out goto drop_out
		quota name iifname map @block-tenant-out goto drop_out
		quota name iifname map @block-guest-out goto drop_out
	}

	chain count_in {
		iifname ` + links + ` return
		quota name oifname map @throttle-tenant-in oifname @rates-tenant-in goto drop_in
		quota name oifname map @throttle-guest-in oifname @rates-guest-in goto drop_in
		quota name oifname map @block-tenant-in goto drop_in
		quota name oifname map @block-guest-in goto drop_in
	}
`

// neighbours are the messages without which a link is deaf (RFC 4861). They
// pass between a guest and its next neighbour alone.
const neighbours = "ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept"

// inetQuota stands behind the wall and before the counters.
const inetQuota = `
	chain forward {
		type filter hook forward priority 900; policy accept;
		iifname ` + links + ` iifname vmap @out
		oifname ` + links + ` oifname vmap @in
	}

	chain input {
		type filter hook input priority 900; policy accept;
		iifname ` + links + ` jump to_host
	}

	chain to_host {
		` + neighbours + `
		iifname vmap @out
	}

	chain postrouting {
		type filter hook postrouting priority 900; policy accept;
		oifname ` + links + ` meta iif 0 jump from_host
	}

	chain from_host {
		` + neighbours + `
		oifname vmap @in
	}
`

// bridgeQuota does the same for ports of bridges. What a guest sends to a group
// is held once, before the bridge makes copies of it.
const bridgeQuota = `
	chain prerouting {
		type filter hook prerouting priority 900; policy accept;
		meta protocol != { ip, ip6 } accept
		` + neighbours + `
		iifname ` + links + ` ` + group + ` iifname vmap @out
	}

	chain forward {
		type filter hook forward priority 900; policy accept;
		meta protocol != { ip, ip6 } accept
		` + neighbours + `
		iifname ` + links + ` ` + alone + ` iifname vmap @out
		oifname ` + links + ` oifname vmap @in
	}

	chain input {
		type filter hook input priority 900; policy accept;
		meta protocol != { ip, ip6 } accept
		` + neighbours + `
		iifname ` + links + ` ` + alone + ` iifname vmap @out
	}

	chain output {
		type filter hook output priority 900; policy accept;
		meta protocol != { ip, ip6 } accept
		` + neighbours + `
		oifname ` + links + ` oifname vmap @in
	}
`

// writeHost writes the chains of the host's quota. It counts what the public
// links receive, before anybody drops it, and what they are given to send; but
// it drops only what goes between them and guests.
func (w *quotaWall) writeHost(b *strings.Builder, family string) {
	for _, way := range directions() {
		fmt.Fprintf(b, "\n\tset rates-host-%s {\n\t\ttype ifname\n\t\tsize %d\n\t\tflags dynamic\n\t}\n", way, setSize)
		key := "oifname"
		if way == vps.Out {
			key = "iifname"
		}
		var counts, holds []string
		for i := range w.objects {
			o := &w.objects[i]
			if o.family != family || o.quota != w.host || !slices.Contains(o.ways, way) {
				continue
			}
			name := "quota name " + quote(o.name)
			counts = append(counts, name)
			if o.kind == throttles {
				name += fmt.Sprintf(" update @rates-host-%s { %s %s }", way, key, rateOver(o.quota.Rate))
			}
			holds = append(holds, name+" goto drop_"+string(way))
		}
		chain := func(name string, rules []string) {
			fmt.Fprintf(b, "\n\tchain %s_%s {\n\t\t%s\n\t}\n", name, way, strings.Join(rules, "\n\t\t"))
		}
		chain("hold", holds)
		chain("own", counts)
	}
	if family == bridge {
		b.WriteString(bridgeHost)
		return
	}
	b.WriteString("\n\tset uplinks {\n\t\ttype ifname\n")
	var elements []string
	for _, u := range w.uplinks {
		elements = append(elements, quote(u))
	}
	writeElements(b, elements)
	b.WriteString(inetHost)
}

const inetHost = `
	chain received {
		type filter hook forward priority -350; policy accept;
		iifname @uplinks oifname ` + links + ` goto hold_in
		iifname @uplinks goto own_in
	}

	chain received_own {
		type filter hook input priority -350; policy accept;
		iifname @uplinks goto own_in
	}

	chain sent {
		type filter hook forward priority 901; policy accept;
		iifname ` + links + ` oifname @uplinks goto hold_out
		oifname @uplinks goto own_out
	}

	chain sent_own {
		type filter hook postrouting priority 901; policy accept;
		oifname @uplinks meta iif 0 goto own_out
	}
`

// bridgeHost counts what passes a bridge; the host's own part of it meets the
// table inet. A frame for a group counts with each copy that it holds back, which
// is too much where there are several, until the quota is counted again: who
// holds it before there are copies keeps it from those that the host's quota is
// not about.
const bridgeHost = `
	chain passed {
		type filter hook forward priority 901; policy accept;
		meta protocol != { ip, ip6 } accept
		iifname ` + links + ` oifname ` + links + ` accept
		iifname ` + links + ` goto hold_out
		oifname ` + links + ` goto hold_in
	}
`
