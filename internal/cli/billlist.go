package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/vps"
)

func (a *app) billListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the bills of all months",
		Long: `List the bills of all months: those that are final, and while there is a price
the open one of the month that runs. TOTAL has the corrections in it.`,
		Args: atMost(0, "no name; `sublet bill --month 2026-10` shows one bill"),
	}
	return lists(a, cmd, "bills", Client.Bills, billColumns)
}

func billColumns() []column[vps.BillSummary] {
	return []column[vps.BillSummary]{
		{key: "month", text: func(s vps.BillSummary) string { return s.Month.String() }},
		{key: "state", text: func(s vps.BillSummary) string { return string(s.State) }},
		{key: "total", text: func(s vps.BillSummary) string { return s.Total.Text(s.Digits) }},
		{key: "currency", text: func(s vps.BillSummary) string { return s.Currency }},
		{key: "estimate", text: func(s vps.BillSummary) string {
			if s.Estimate == nil {
				return ""
			}
			return s.Estimate.Text(s.Digits)
		}},
		{key: "corrections", text: func(s vps.BillSummary) string { return strconv.Itoa(s.Corrections) }},
		{key: "corrected", text: func(s vps.BillSummary) string { return s.Corrected.Text(s.Digits) }},
		{
			key: "made", text: func(s vps.BillSummary) string { return s.Made.Format(time.DateOnly) },
			raw: func(s vps.BillSummary) string { return s.Made.Format(time.RFC3339) },
		},
	}
}

// monthCompletion offers the months that have a bill for the flag --month.
func (a *app) monthCompletion(cmd *cobra.Command) {
	complete := a.names(-1, func(ctx context.Context, c Client) ([]string, error) {
		bills, err := c.Bills(ctx)
		out := make([]string, len(bills))
		for i, b := range bills {
			out[i] = b.Month.String()
		}
		return out, err
	})
	_ = cmd.RegisterFlagCompletionFunc("month", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return complete(cmd, nil, typed)
	})
}
