package cli

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) quotaCmd() *cobra.Command {
	return noun("quota", "Say how much traffic there may be in a month, and what happens then",
		a.quotaSetCmd(), a.quotaListCmd(), a.quotaShowCmd(), a.quotaTopUpCmd(), a.quotaLiftCmd(), a.quotaRemoveCmd())
}

// quotaOf is whose quota a command line means.
type quotaOf struct {
	scope  vps.QuotaScope
	name   string
	tenant string
	host   hostFlag
}

// hostFlag is a switch that may be followed by the host's limit: --host,
// --host 2TiB and --host=2TiB. The word behind it comes as an argument.
type hostFlag struct {
	on    bool
	limit string // as it was written; empty for none
}

func (f *hostFlag) String() string { return "" }

// Set reads the flag (pflag.Value).
func (f *hostFlag) Set(text string) error {
	f.on, f.limit = text != "false", ""
	if text != "true" && text != "false" {
		f.limit = text
	}
	return nil
}

// Type makes the flag look like a switch in help texts.
func (*hostFlag) Type() string { return "bool" }

// addQuotaOf gives cmd the flags that stand in for the name of a guest.
func (a *app) addQuotaOf(cmd *cobra.Command) *quotaOf {
	of := &quotaOf{}
	cmd.Flags().StringVar(&of.tenant, "tenant", "", "the quota of this tenant, over all its guests")
	cmd.Flags().Var(&of.host, "host", "the quota of the host, over its public links")
	cmd.Flags().Lookup("host").NoOptDefVal = "true"
	_ = cmd.RegisterFlagCompletionFunc("tenant", a.completeTenants(1))
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if of.host.on || of.tenant != "" {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeGuests(1)(cmd, args, typed)
	}
	return of
}

// read finds out whose quota is meant, and returns the words that are left: as
// many as the verb takes behind a name.
func (of *quotaOf) read(cmd *cobra.Command, args []string) ([]string, error) {
	if err := exclusive(cmd, "tenant", "host"); err != nil {
		return nil, err
	}
	switch {
	case of.host.on:
		of.scope = vps.QuotaHost
		if of.host.limit != "" {
			args = append([]string{of.host.limit}, args...)
		}
		return args, nil
	case cmd.Flags().Changed("tenant"):
		of.scope, of.name = vps.QuotaTenant, of.tenant
		return args, vps.ValidName("--tenant", of.tenant)
	case len(args) == 0:
		return nil, usage(cmd, "%s needs a guest, --tenant NAME or --host", verb(cmd))
	}
	of.scope, of.name = vps.QuotaGuest, args[0]
	return args[1:], vps.ValidName("", of.name)
}

// thing is what messages call it.
func (of *quotaOf) thing() string { return cmp.Or(of.name, string(vps.QuotaHost)) }

// noMore refuses words that are left over.
func noMore(cmd *cobra.Command, args []string, most int) error {
	if len(args) > most {
		return usage(cmd, "%q is too much", args[most])
	}
	return nil
}

func (a *app) quotaSetCmd() *cobra.Command {
	var f struct {
		month           vps.Bytes
		count, timezone string
		resetDay        int
		at              []string
		grace           time.Duration
	}
	cmd := &cobra.Command{
		Use:   "set {GUEST | --tenant NAME | --host [SIZE]}",
		Short: "Set a quota, or change one",
		Long: `Set how much traffic there may be in a month, and what happens when a part of
it is used up. What no flag names stays as it is.

--at says what happens at how many percent of the limit: notify sends notices,
throttle:RATE slows both directions down, suspend-network stops the network,
and stop stops the guest. It may be repeated, and all that are given replace
those that there were; an empty one leaves none. Without --at a new quota tells
of its use at 80 % and at 100 %, and does nothing else: it is no hard limit
until you say what happens at 100%.

A month begins on --reset-day at midnight in --timezone; 29, 30 and 31 mean the
last day of months that are shorter. At the reset everything is lifted. Traffic
of the guest with the internet and with the host itself counts, and traffic
between guests does not; the quota of the host counts its public links.`,
		Example: `  sublet quota set alice --month 500GiB --at 80%=notify --at 100%=throttle:1Mbit
  sublet quota set alice --reset-day 31 --timezone Asia/Shanghai --grace 24h
  sublet quota set --tenant bob --month 2TiB --count out --at 100%=suspend-network
  sublet quota set --host 2TiB`,
		Args: cobra.ArbitraryArgs,
	}
	of := a.addQuotaOf(cmd)
	cmd.Flags().Var(&f.month, "month", "how much, for example 500GiB")
	cmd.Flags().StringVar(&f.count, "count", string(vps.CountBoth), "what counts, as the guest sees it: in+out, in, out, or max, the larger one")
	f.resetDay = 1
	numberFlag(cmd.Flags(), &f.resetDay, "reset-day", "", 1, 31, "day on which a new month begins, 1 to 31")
	cmd.Flags().StringVar(&f.timezone, "timezone", "", "zone in which it begins (default the host's)")
	cmd.Flags().StringArrayVar(&f.at, "at", nil, "what happens when so much is used, `PERCENT=ACTION`; may be repeated")
	durationFlag(cmd.Flags(), &f.grace, "grace", 0, "how long after a step is reached what is more than a notice is put off")
	fixedCompletion(cmd, "count", string(vps.CountBoth), string(vps.CountIn), string(vps.CountOut), string(vps.CountMax))
	fixedCompletion(cmd, "at", "80%=notify", "100%=throttle:1Mbit", "100%=suspend-network", "100%=stop")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		rest, err := of.read(cmd, args)
		if err != nil {
			return err
		}
		if of.scope == vps.QuotaHost && len(rest) > 0 && !cmd.Flags().Changed("month") {
			if err := cmd.Flags().Set("month", rest[0]); err != nil {
				return usage(cmd, "--host: %s", sentence(err))
			}
			rest = rest[1:]
		} else if of.scope == vps.QuotaHost && len(rest) > 0 {
			if _, err := vps.ParseBytes(rest[0]); err == nil {
				return usage(cmd, "--host %s and --month %s both give the limit; leave one out", rest[0], f.month.Exact())
			}
		}
		if err := noMore(cmd, rest, 0); err != nil {
			return err
		}
		if f.grace < 0 {
			return usage(cmd, "--grace: %s is negative; write for example 24h", f.grace)
		}
		q := api.SetQuota{
			Limit: given(cmd, "month", f.month), Count: given(cmd, "count", vps.QuotaCount(f.count)),
			ResetDay: given(cmd, "reset-day", f.resetDay), Timezone: given(cmd, "timezone", f.timezone),
			Grace: given(cmd, "grace", vps.Duration(f.grace)),
		}
		// The rest is for the daemon to judge, who knows what the quota is now.
		if counts := []vps.QuotaCount{vps.CountBoth, vps.CountIn, vps.CountOut, vps.CountMax}; !slices.Contains(counts, vps.QuotaCount(f.count)) {
			return usage(cmd, "--count: %q is not a way to count; use in+out, in, out or max", f.count)
		}
		if cmd.Flags().Changed("at") {
			if q.Steps, err = parseSteps(f.at); err != nil {
				return err
			}
		}
		return a.editQuota(cmd, of, out, *dryRun, nil, func(ctx context.Context) (api.Change, error) {
			return a.client().SetQuota(ctx, of.scope, of.name, q, *dryRun)
		})
	}
	return cmd
}

// parseSteps reads steps in any order; an empty text is none.
func parseSteps(texts []string) (*[]vps.QuotaStep, error) {
	steps := []vps.QuotaStep{}
	for _, text := range texts {
		if text == "" {
			continue
		}
		s, err := vps.ParseQuotaStep(text)
		if err != nil {
			return nil, vps.Invalid("--at", "%s", sentence(err))
		}
		steps = append(steps, s)
	}
	slices.SortStableFunc(steps, func(a, b vps.QuotaStep) int { return cmp.Compare(a.Percent, b.Percent) })
	return &steps, nil
}

func (a *app) quotaTopUpCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topup {GUEST | --tenant NAME | --host} SIZE",
		Short: "Add to a quota until its next reset",
		Long: `Add to a quota until its next reset. It takes effect at once: what was throttled,
suspended or stopped goes on if less than the new limit is used.`,
		Example: `  sublet quota topup alice 100GiB
  sublet quota topup --host 500GiB`,
		Args: cobra.ArbitraryArgs,
	}
	of := a.addQuotaOf(cmd)
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		rest, err := of.read(cmd, args)
		if err != nil {
			return err
		}
		if len(rest) != 1 {
			return usage(cmd, "%s needs a size, for example 100GiB", verb(cmd))
		}
		more, err := vps.ParseBytes(rest[0])
		if err != nil {
			return err
		}
		return a.editQuota(cmd, of, out, *dryRun, quotaLeft, func(ctx context.Context) (api.Change, error) {
			return a.client().TopUpQuota(ctx, of.scope, of.name, more, *dryRun)
		})
	}
	return cmd
}

func (a *app) quotaLiftCmd() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:   "lift {GUEST | --tenant NAME | --host}",
		Short: "Stop to enforce a quota until its next reset",
		Long: `Stop to enforce a quota until its next reset, at once. Traffic is counted and
notices go out all the same. --undo goes on with enforcing it.`,
		Example: `  sublet quota lift alice
  sublet quota lift alice --undo`,
		Args: cobra.ArbitraryArgs,
	}
	of := a.addQuotaOf(cmd)
	cmd.Flags().BoolVar(&undo, "undo", false, "enforce it again")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		told := quotaLifted
		if undo {
			told = nil
		}
		return a.wholeQuota(cmd, args, of, out, *dryRun, told, func(ctx context.Context) (api.Change, error) {
			return a.client().LiftQuota(ctx, of.scope, of.name, !undo, *dryRun)
		})
	}
	return cmd
}

func (a *app) quotaRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove {GUEST | --tenant NAME | --host}", Aliases: []string{"rm", "delete"},
		Short: "Remove a quota",
		Long: `Remove a quota. Nothing of it is enforced any more. Quotas of guests and tenants
go with them by themselves.`,
		Args: cobra.ArbitraryArgs,
	}
	of := a.addQuotaOf(cmd)
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.wholeQuota(cmd, args, of, out, *dryRun, nil, func(ctx context.Context) (api.Change, error) {
			return a.client().RemoveQuota(ctx, of.scope, of.name, *dryRun)
		})
	}
	return cmd
}

// wholeQuota is an edit that takes nothing but whose quota it is.
func (a *app) wholeQuota(cmd *cobra.Command, args []string, of *quotaOf, out *output, dryRun bool, told func(vps.QuotaUse) string, edit func(context.Context) (api.Change, error)) error {
	if err := of.alone(cmd, args, out); err != nil {
		return err
	}
	return a.editQuota(cmd, of, out, dryRun, told, edit)
}

// alone reads whose quota it is, and wants nothing else to be said.
func (of *quotaOf) alone(cmd *cobra.Command, args []string, out *output) error {
	if err := out.check(cmd); err != nil {
		return err
	}
	rest, err := of.read(cmd, args)
	if err != nil {
		return err
	}
	return noMore(cmd, rest, 0)
}

// editQuota makes an edit and says what it did, and what told makes of the
// quota then; told may be nil.
func (a *app) editQuota(cmd *cobra.Command, of *quotaOf, out *output, dryRun bool, told func(vps.QuotaUse) string, edit func(context.Context) (api.Change, error)) error {
	ctx, cancel := request(cmd)
	defer cancel()
	change, err := edit(ctx)
	switch {
	case err != nil:
		return about(of.thing(), typed(cmd, err))
	case dryRun || out.structured():
		return a.printDryRun(out, change)
	}
	a.sayChange(of.thing(), change)
	if told != nil {
		// The edit is made, whether this can be told or not.
		if u, err := a.client().Quota(ctx, of.scope, of.name); err == nil {
			a.say("%s", told(u.QuotaUse))
		}
	}
	return nil
}
