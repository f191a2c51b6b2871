package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// domainCheckTimeout is longer than name servers and web servers may take.
const domainCheckTimeout = 100 * time.Second

func (a *app) domainVerifyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify NAME...", Short: "Look now for the proof that a name is its tenant's", Args: atLeast(1, "the names of domains"), ValidArgsFunction: a.completeDomainNames(-1),
		Long: `Look now for the proof that a name is its tenant's, and say what to do where
there is none. The daemon looks by itself too: soon after a name was added, then
ever less often, and once a day for names that are live.

It ends with 8 when some are live, and with 1 when none is.`,
		Example: `  sublet domain verify blog.example.org
  sublet domain verify '*.alice.example.org' -o json`,
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		proofs := make([]api.DomainProof, 0, len(names))
		for _, name := range names {
			p, err := a.verifyDomain(cmd.Context(), name)
			if err != nil {
				return err
			}
			proofs = append(proofs, p)
		}
		if err := printList(a, cmd, out, "domains", proofColumns(), proofs); err != nil {
			return err
		}
		return a.proofOutcome(proofs)
	}
	return cmd
}

func (a *app) verifyDomain(ctx context.Context, name string) (api.DomainProof, error) {
	ctx, cancel := context.WithTimeout(ctx, domainCheckTimeout)
	defer cancel()
	return a.client().VerifyDomain(ctx, name)
}

func proofColumns() []column[api.DomainProof] {
	return []column[api.DomainProof]{
		{key: "name", text: func(p api.DomainProof) string { return p.Name }},
		{key: "guest", text: func(p api.DomainProof) string { return p.Guest }},
		{key: "tenant", text: func(p api.DomainProof) string { return p.Tenant }},
		{key: "state", text: func(p api.DomainProof) string { return string(p.State) }, paint: func(p api.DomainProof) string { return domainPaint(p.State) }},
		{key: "proved", wide: true, text: func(p api.DomainProof) string { return stamp(p.Proved) }},
		{key: "checked", wide: true, text: func(p api.DomainProof) string { return stamp(p.Checked) }},
		{key: "failing", wide: true, text: func(p api.DomainProof) string { return stamp(p.Failing) }},
		{key: "found", text: func(p api.DomainProof) string {
			if !p.Needed {
				return "no proof is needed"
			}
			return p.Message
		}},
	}
}

// proofOutcome says what to do for the names that are not proved, and is an error
// unless all are live.
func (a *app) proofOutcome(proofs []api.DomainProof) error {
	dead := 0
	for _, p := range proofs {
		if p.State != vps.DomainLive && p.State != vps.DomainFailing {
			dead++
		}
		if p.Steps != nil && p.State != vps.DomainLive {
			a.sayProof(p.Name, p.Tenant, *p.Steps)
		}
	}
	switch dead {
	case 0:
		return nil
	case len(proofs):
		return vps.Errorf(vps.CodeInternal, "%s not live yet", are(dead))
	default:
		return vps.Errorf(vps.CodePartial, "%d of %d are not live yet", dead, len(proofs))
	}
}

func are(n int) string {
	if n == 1 {
		return "the domain is"
	}
	return fmt.Sprintf("all %d domains are", n)
}

// sayProof says what proves that a name is a tenant's.
func (a *app) sayProof(name, tenant string, s vps.ProofSteps) {
	a.say("To prove that %s is %s's, one of these is enough:", name, tenant)
	if s.Record != "" {
		a.say("  a TXT record   %s  %q", s.Record, s.Value)
	}
	if s.URL != "" {
		a.say("  a file         %s  with %s", s.URL, s.Content)
		a.say("                 (where the name leads to now, as long as that is not this host)")
	}
}

func (a *app) domainTestCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test NAME", Short: "Find out at which hop calls of a name end", Args: one("the name of a domain"), ValidArgsFunction: a.completeDomainNames(1),
		Long: `Go the way of a caller of a name, and say what is found at each hop: whether the
domain is there and live, where its name leads to, whether a firewall of this host
keeps callers off, whether the edge takes calls, whether the guest's ports answer,
and what its certificate is worth. What cannot be seen from the host is unknown.

It ends with 1 when a hop failed.`,
		Example: `  sublet domain test blog.example.org
  sublet domain test imap.example.org --listen 993 -o json`,
	}
	const maxPort = 1<<16 - 1
	listen := 0
	numberFlag(cmd.Flags(), &listen, "listen", "", 0, maxPort, "the host's `port`, unless it is for web")
	fixedCompletion(cmd, "listen")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if listen > maxPort {
			return usage(cmd, "--listen: %d is no port; ports run from 1 to %d", listen, maxPort)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), domainCheckTimeout)
		defer cancel()
		hops, err := a.client().TestDomain(ctx, args[0], uint16(listen))
		if err != nil {
			return err
		}
		if out.structured() {
			err = encode(a.Stdout, out.format, listOf("hops", hops))
		} else {
			err = a.printHops(hops)
		}
		if err == nil && slices.ContainsFunc(hops, func(h vps.Hop) bool { return h.State == vps.HopFailed }) {
			err = errSilent
		}
		return err
	}
	return cmd
}

func (a *app) printHops(hops []vps.Hop) error {
	paints := map[vps.HopState]string{vps.HopOK: paintGreen, vps.HopUnknown: paintYellow, vps.HopFailed: paintRed}
	var rows [][]cell
	for _, h := range hops {
		if a.quiet && h.State != vps.HopFailed {
			continue
		}
		rows = append(rows, []cell{{string(h.State), paints[h.State]}, {string(h.Hop), ""}, {clean(h.Message), ""}})
		if h.Remedy != "" {
			rows = append(rows, []cell{{}, {}, {"to mend it: " + clean(h.Remedy), paintDim}})
		}
	}
	return a.writeRows(rows)
}
