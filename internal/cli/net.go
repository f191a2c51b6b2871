package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
)

func (a *app) netCmd() *cobra.Command {
	return noun("net", "Show and set what guests may do on the network, and prove it",
		a.netShowCmd(), a.netAllowCmd(), a.netDenyCmd(), a.netRemoveCmd(), a.netAuditCmd())
}

func (a *app) netShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show GUEST",
		Short: "Show a guest's network, its rules, and what was dropped",
		Long: `Show a guest's network, its rules with their numbers, and how much was dropped
for which reason. Limits and peers are those that hold, with what comes from
the host's settings and from the tenant.`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		n, err := a.client().GuestNetwork(ctx, args[0])
		switch {
		case err != nil:
			return about(args[0], err)
		case out.structured():
			return encode(a.Stdout, out.format, n)
		}
		return a.printNetwork(n)
	}
	return cmd
}

func (a *app) printNetwork(n api.GuestNetwork) error {
	peers := "none"
	if n.NetworkPeer {
		peers = "the tenant's guests, of which there is no other one now"
	}
	if len(n.Peers) > 0 {
		peers = strings.Join(n.Peers, ", ")
	}
	smtp := "closed"
	if n.SMTP {
		smtp = "open"
	}
	six := prefixText(n.IPv6)
	if n.IPv6.IsValid() && !n.IPv6.IsSingleIP() {
		six += ", of which it uses " + n.Address6.String()
	}
	if six == "" {
		six = "none"
	}
	fields := []field{
		{"name", n.Name},
		{"link", n.Link},
		{"mac", n.MAC},
		{"address", address(n.Address)},
		{"gateway", address(n.Gateway)},
		{"ipv6", six},
		{"ipv6 gateway", address(n.Gateway6)},
		{"bandwidth", rateText(n.Bandwidth)},
		{"peers", peers},
		{"port 25", smtp},
		{value: "Limits"},
		limitField("packets", n.Limits.Packets, "sent per second", "packets", n.Limits),
		limitField("new connections", n.Limits.NewConnections, "per second", "new_connections", n.Limits),
		limitField("connections", n.Limits.Connections, "at a time", "connections", n.Limits),
		{value: "Rules"},
	}
	for i, r := range n.Rules {
		fields = append(fields, field{strconv.Itoa(i + 1), r.String()})
	}
	if len(n.Rules) == 0 {
		fields = append(fields, field{" ", "none of your own"})
	}
	if err := printPage(a.Stdout, append(fields, field{value: "Dropped"})); err != nil {
		return err
	}
	return a.printDrops(n.Drops)
}

func limitField(name string, value int, unit, key string, limits api.GuestLimits) field {
	text := strconv.Itoa(value) + " " + unit
	if slices.Contains(limits.Inherited, key) {
		text += " (the host's setting)"
	}
	return field{name, text}
}

func (a *app) printDrops(drops []api.Drop) error {
	rows := [][]cell{{{text: "REASON"}, {text: "PACKETS"}, {text: "BYTES"}, {text: "LAST"}}}
	for _, d := range drops {
		if d.Packets > 0 {
			rows = append(rows, []cell{
				{text: clean(string(d.Reason))},
				{text: strconv.FormatUint(d.Packets, 10)},
				{text: strconv.FormatUint(d.Bytes, 10)},
				{text: orDash(stamp(d.Last))},
			})
		}
	}
	if len(rows) == 1 {
		_, err := fmt.Fprintln(a.Stdout, "nothing")
		return err
	}
	return a.writeRows(rows)
}
