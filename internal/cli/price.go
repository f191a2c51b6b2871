package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) priceCmd() *cobra.Command {
	return noun("price", "Keep what guests are billed by", a.priceShowCmd(), a.priceSetCmd(), a.priceRemoveCmd())
}

func (a *app) priceShowCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show what guests are billed by", Args: atMost(0, "no name")}
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		h, err := a.client().Host(ctx)
		if err != nil {
			return err
		}
		if out.structured() {
			return encode(a.Stdout, out.format, struct {
				Schema int `json:"schema_version"`
				vps.Price
			}{api.SchemaVersion, h.Settings.Price})
		}
		if !h.Settings.Price.Set() {
			a.say("no price is set, so nobody is billed; set one with `sublet price set --currency CNY --month 94`")
			return nil
		}
		return printPage(a.Stdout, priceFields(h.Settings.Price))
	}
	return cmd
}

// priceFields are the lines of a page for a price; none without one.
func priceFields(p vps.Price) []field {
	if !p.Set() {
		return nil
	}
	return []field{
		{"currency", p.Currency},
		{"month", p.MonthMoney().Text(p.Digits()) + ", shared " + shareText(p.Share)},
		{"received", priceText(p.In, p.FreeIn, p.FreePer)},
		{"sent", priceText(p.Out, p.FreeOut, p.FreePer)},
	}
}

func shareText(r vps.ShareRule) string {
	switch r {
	case vps.ShareMemory:
		return "by the guests' memory"
	case vps.ShareWeights:
		return "by the guests' billing weights"
	case vps.ShareEqual:
	}
	return "equally by the guests"
}

// priceText says what traffic of one direction costs.
func priceText(price vps.Decimal, free vps.Bytes, per vps.QuotaScope) string {
	text := price.String() + " for each GiB"
	if free > 0 {
		text += fmt.Sprintf(" after %s free for %s", free, freeText(per))
	}
	return text
}

// freeText says who has an allowance.
func freeText(per vps.QuotaScope) string {
	if per == vps.QuotaHost {
		return "all guests of the host together"
	}
	return "each " + string(per)
}

func (a *app) priceSetCmd() *cobra.Command {
	var p vps.Price
	var share, per string
	var free vps.Bytes
	cmd := &cobra.Command{
		Use: "set", Short: "Set what guests are billed by",
		Long: `Set what guests are billed by: the host's fixed price of a month, shared by the
guests of each day, and prices of traffic. What no flag names stays as it is.

It holds for the month that runs and those to come. A month that is over keeps
the price that it had. Only traffic with the internet and with the host itself
is billed. sublet bill shows what each tenant owes.`,
		Example: `  sublet price set --currency CNY --month 94 --in 0.53 --out 0.53
  sublet price set --share memory --free 10GiB
  sublet price set --free-in 0 --free-out 1TiB --free-per host`,
		Args: atMost(0, "no name"),
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	fs := cmd.Flags()
	fs.StringVar(&p.Currency, "currency", "", "`code` of the currency, as ISO 4217 has it: CNY, EUR, USD")
	fs.Var(&p.Month, "month", "the host's fixed price of a month, for example 94")
	fs.StringVar(&share, "share", "", "how the guests of each day share it: equal, memory, weights")
	fs.Var(&p.In, "in", "price of a GiB that a guest received, for example 0.53; at most 6 digits behind the point")
	fs.Var(&p.Out, "out", "price of a GiB that a guest sent")
	fs.Var(&free, "free", "what is free of charge in each month, received and as much sent, for example 10GiB")
	fs.Var(&p.FreeIn, "free-in", "what is free of charge of what is received")
	fs.Var(&p.FreeOut, "free-out", "what is free of charge of what is sent")
	fs.StringVar(&per, "free-per", "", "who has so much free: each guest, each tenant, or the host with all guests together")
	for _, name := range []string{"month", "in", "out", "free", "free-in", "free-out"} {
		fs.Lookup(name).DefValue = ""
		fixedCompletion(cmd, name)
	}
	fixedCompletion(cmd, "currency", "CNY", "EUR", "USD")
	fixedCompletion(cmd, "share", string(vps.ShareEqual), string(vps.ShareMemory), string(vps.ShareWeights))
	fixedCompletion(cmd, "free-per", string(vps.QuotaGuest), string(vps.QuotaTenant), string(vps.QuotaHost))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		change := api.SetPrice{
			Currency: given(cmd, "currency", strings.ToUpper(p.Currency)), Month: given(cmd, "month", p.Month),
			Share: given(cmd, "share", vps.ShareRule(share)), In: given(cmd, "in", p.In), Out: given(cmd, "out", p.Out),
			FreeIn: given(cmd, "free-in", p.FreeIn), FreeOut: given(cmd, "free-out", p.FreeOut), FreePer: given(cmd, "free-per", vps.QuotaScope(per)),
		}
		if cmd.Flags().Changed("free") {
			if change.FreeIn != nil || change.FreeOut != nil {
				return usage(cmd, "--free sets both --free-in and --free-out; name either it or them")
			}
			change.FreeIn, change.FreeOut = &free, &free
		}
		if change == (api.SetPrice{}) {
			return usage(cmd, "%s needs a flag that says what to set", verb(cmd))
		}
		if change.Currency != nil && *change.Currency == "" {
			return usage(cmd, "--currency needs a code; `sublet price remove` removes the price")
		}
		return a.changePrice(cmd, out, *dryRun, func(ctx context.Context) (api.Change, error) {
			return a.client().SetPrice(ctx, change, *dryRun)
		})
	}
	return cmd
}

func (a *app) priceRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove", Aliases: []string{"rm", "delete"}, Short: "Bill nobody any more; the bills that were made stay",
		Args: atMost(0, "no name"),
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		return a.changePrice(cmd, out, *dryRun, func(ctx context.Context) (api.Change, error) {
			return a.client().RemovePrice(ctx, *dryRun)
		})
	}
	return cmd
}

// changePrice lets change edit the price, and tells of it.
func (a *app) changePrice(cmd *cobra.Command, out *output, dryRun bool, change func(context.Context) (api.Change, error)) error {
	ctx, cancel := request(cmd)
	defer cancel()
	c, err := change(ctx)
	if err != nil {
		return typed(cmd, err)
	}
	if dryRun || out.structured() {
		return a.printDryRun(out, c)
	}
	if len(c.Edits) == 0 {
		a.say("the price is so already")
	}
	for _, line := range c.Edits {
		a.say("%s", line)
	}
	return nil
}
