package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) portCmd() *cobra.Command {
	return noun("port", "Lead ports of the host to guests", a.portAddCmd(), a.portRemoveCmd(), a.portListCmd())
}

func (a *app) portAddCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add GUEST HOST:GUEST/PROTOCOL…",
		Short: "Lead further host ports to a guest",
		Example: `  sublet port add alice 8443:443/tcp
  sublet port add alice 5353:53`,
		Args:              atLeast(2, "a guest and a port, for example alice 8443:443/tcp"),
		ValidArgsFunction: a.completeGuests(1),
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		more, err := parseForwardArgs(args[1:])
		if err != nil {
			return err
		}
		return a.editForwards(cmd, args[0], *dryRun, out, func(have []vps.Forward) ([]vps.Forward, error) {
			for _, f := range more {
				if !slices.Contains(have, f) { // adding twice is no mistake
					have = append(have, f)
				}
			}
			return have, nil
		})
	}
	return cmd
}

func (a *app) portRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove GUEST HOST[:GUEST][/PROTOCOL]…",
		Aliases: []string{"rm", "delete"},
		Short:   "Lead host ports to a guest no more",
		Example: `  sublet port remove alice 8443
  sublet port remove alice 5353/udp`,
		Args:              atLeast(2, "a guest and a host port, for example alice 8443"),
		ValidArgsFunction: a.completeForwards,
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		less, err := parseForwardArgs(args[1:])
		if err != nil {
			return err
		}
		return a.editForwards(cmd, args[0], *dryRun, out, func(have []vps.Forward) ([]vps.Forward, error) {
			for i, f := range less {
				left, found := without(have, f, strings.Contains(args[1+i], ":"))
				if !found {
					return nil, vps.Errorf(vps.CodeNotFound, "%s is not forwarded to %s; `sublet port list %s` shows what is", args[1+i], args[0], args[0])
				}
				have = left
			}
			return have, nil
		})
	}
	return cmd
}

func parseForwardArgs(args []string) ([]vps.Forward, error) {
	out := make([]vps.Forward, len(args))
	for i, text := range args {
		f, err := vps.ParseForward(text)
		if err != nil {
			return nil, err
		}
		out[i] = f
	}
	return out, nil
}

// without takes f away: its host port for its protocol, and only towards its
// guest port when exact. Of a forward of both protocols the other one stays.
func without(have []vps.Forward, f vps.Forward, exact bool) (left []vps.Forward, found bool) {
	left = []vps.Forward{}
	for _, h := range have {
		if !h.Collides(f) || exact && h.Guest != f.Guest {
			left = append(left, h)
			continue
		}
		found = true
		if h.Protocol == vps.ProtoBoth && f.Protocol != vps.ProtoBoth {
			h.Protocol = vps.ProtoTCP
			if f.Protocol == vps.ProtoTCP {
				h.Protocol = vps.ProtoUDP
			}
			left = append(left, h)
		}
	}
	return left, found
}

func (a *app) editForwards(cmd *cobra.Command, name string, dryRun bool, out *output, edit func([]vps.Forward) ([]vps.Forward, error)) error {
	return a.editGuest(cmd, name, dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
		forwards, err := edit(slices.Clone(s.Forwards))
		return api.UpdateGuest{Forwards: &forwards, Expect: &api.Expect{Forwards: &s.Forwards}}, err
	})
}

// portRow is one line of port list, and one object of its JSON.
type portRow struct {
	Guest string `json:"guest"`
	// Host and Last are the first and last host port, GuestPort what the
	// first one leads to.
	Host      uint16       `json:"host"`
	Last      uint16       `json:"last"`
	GuestPort uint16       `json:"guest_port"`
	Protocol  vps.Protocol `json:"protocol"`
	// Kind is block, ssh or forward.
	Kind string `json:"kind"`
}

func portRows(g api.Guest) []portRow {
	var rows []portRow
	if b := g.Spec.Ports; b.Count > 0 {
		rows = append(rows,
			portRow{g.Spec.Name, b.First, b.First, vps.SSHPort, vps.ProtoTCP, "ssh"},
			portRow{g.Spec.Name, b.First, b.Last(), b.First, vps.ProtoBoth, "block"})
	}
	for _, f := range g.Spec.Forwards {
		rows = append(rows, portRow{g.Spec.Name, f.Host, f.Host, f.Guest, f.Protocol, "forward"})
	}
	return rows
}

func (a *app) portListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [GUEST…]", Aliases: []string{"ls"}, Short: "List the host ports of guests",
		ValidArgsFunction: a.completeGuests(-1),
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		rows := []portRow{}
		var failed error
		if len(names) == 0 {
			guests, err := client.Guests(ctx)
			if err != nil {
				return err
			}
			for _, g := range guests {
				rows = append(rows, portRows(g)...)
			}
		} else {
			failed = a.each(ctx, names, "guests", func(name string) error {
				g, err := client.Guest(ctx, name)
				rows = append(rows, portRows(g)...)
				return err
			})
		}
		if failed != nil && len(rows) == 0 {
			return failed
		}
		if err := printList(a, cmd, out, "ports", portColumns(), rows); err != nil {
			return err
		}
		return failed
	}
	return cmd
}

func portColumns() []column[portRow] {
	return []column[portRow]{
		{key: "guest", text: func(r portRow) string { return r.Guest }},
		{key: "host", text: func(r portRow) string { return portRange(r.Host, r.Last) }},
		{key: "to", text: func(r portRow) string { return portRange(r.GuestPort, r.GuestPort+(r.Last-r.Host)) }},
		{key: "protocol", text: func(r portRow) string { return string(r.Protocol) }},
		{key: "kind", text: func(r portRow) string { return r.Kind }},
	}
}

func portRange(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}
