package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/vps"
)

func (a *app) quotaListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all quotas with what is used of them",
		Long: `List all quotas with what is used of them in the present month. FORECAST is the
day on which the limit will be reached if it goes on as in the last days, when
that is before the reset.`,
		Args: atMost(0, "no name; `sublet quota show` shows one quota"),
	}
	return lists(a, cmd, "quotas", Client.Quotas, a.quotaColumns)
}

func (a *app) quotaColumns() []column[vps.QuotaUse] {
	style := a.barStyle()
	size := func(key string, wide bool, of func(vps.QuotaUse) int64) column[vps.QuotaUse] {
		return column[vps.QuotaUse]{
			key: key, wide: wide,
			text: func(u vps.QuotaUse) string { return vps.Bytes(of(u)).String() },
			raw:  func(u vps.QuotaUse) string { return strconv.FormatInt(of(u), 10) },
		}
	}
	return []column[vps.QuotaUse]{
		{key: "quota", text: func(u vps.QuotaUse) string { return u.Quota.ID() }},
		size("used", false, func(u vps.QuotaUse) int64 { return u.Used }),
		size("limit", false, func(u vps.QuotaUse) int64 { return u.Limit }),
		{
			key: "use", text: func(u vps.QuotaUse) string { return useBar(u, style) },
			raw: func(u vps.QuotaUse) string { return strconv.FormatInt(usedPercent(u), 10) }, paint: usePaint,
		},
		size("left", false, func(u vps.QuotaUse) int64 { return max(0, u.Limit-u.Used) }),
		{key: "reset", text: func(u vps.QuotaUse) string { return u.End.Format(time.DateOnly) }, raw: func(u vps.QuotaUse) string { return u.End.Format(time.RFC3339) }},
		{key: "in_force", text: func(u vps.QuotaUse) string { return a.inForce(u) }},
		{key: "forecast", text: forecastText},
		{key: "count", wide: true, text: func(u vps.QuotaUse) string { return string(u.Quota.Count) }},
		size("in", true, func(u vps.QuotaUse) int64 { return u.In }),
		size("out", true, func(u vps.QuotaUse) int64 { return u.Out }),
		{key: "timezone", wide: true, text: func(u vps.QuotaUse) string { return u.Quota.Timezone }},
		{key: "steps", wide: true, text: func(u vps.QuotaUse) string { return stepsText(u.Quota.Steps) }},
	}
}

// usedPercent is rounded down, so that 100 means that the limit is reached.
func usedPercent(u vps.QuotaUse) int64 {
	if u.Limit <= 0 {
		return 0
	}
	return int64(float64(u.Used) / float64(u.Limit) * 100)
}

// useBar draws what is used: "######....  63%".
func useBar(u vps.QuotaUse, style barStyle) string {
	const length = 10
	full, empty := style.in, "░"
	if style == plainBars {
		full, empty = "#", "."
	}
	percent := usedPercent(u)
	n := int(min(length, (percent*length+99)/100))
	return strings.Repeat(full, n) + strings.Repeat(empty, length-n) + fmt.Sprintf(" %3d%%", percent)
}

func usePaint(u vps.QuotaUse) string {
	switch percent := usedPercent(u); {
	case percent >= 100:
		return paintRed
	case percent >= 80:
		return paintYellow
	}
	return paintGreen
}

// inForce says what a quota does now, or is about to do.
func (a *app) inForce(u vps.QuotaUse) string {
	switch {
	case u.Quota.LiftedAt(a.Now()):
		return "lifted"
	case u.Action == vps.ActionThrottle:
		return "throttle:" + u.Rate.String()
	case u.Action != "" && u.Action != vps.ActionNotify:
		return string(u.Action)
	case u.GraceUntil != nil:
		return "grace until " + u.GraceUntil.Format("2006-01-02 15:04")
	}
	return ""
}

func forecastText(u vps.QuotaUse) string {
	switch {
	case u.Used >= u.Limit:
		return "used up"
	case u.ReachedAt != nil:
		return u.ReachedAt.In(u.End.Location()).Format(time.DateOnly)
	}
	return ""
}

func stepsText(steps []vps.QuotaStep) string {
	texts := make([]string, len(steps))
	for i, s := range steps {
		texts[i] = s.String()
	}
	return strings.Join(texts, " ")
}

func (a *app) quotaShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show {GUEST | --tenant NAME | --host}", Short: "Show a quota with what is used of it",
		Example: `  sublet quota show alice
  sublet quota show --host`,
		Args: cobra.ArbitraryArgs,
	}
	of := a.addQuotaOf(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := of.alone(cmd, args, out); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		u, err := a.client().Quota(ctx, of.scope, of.name)
		switch {
		case err != nil:
			return about(of.thing(), err)
		case out.structured():
			return encode(a.Stdout, out.format, u)
		}
		return printPage(a.Stdout, a.quotaPage(u.QuotaUse))
	}
	return cmd
}

func (a *app) quotaPage(u vps.QuotaUse) []field {
	q := &u.Quota
	fields := []field{
		{"quota", "of " + q.Whose()},
		{"use", useBar(u, a.barStyle())},
		{"used", fmt.Sprintf("%s of %s, %s left", vps.Bytes(u.Used), vps.Bytes(u.Limit), vps.Bytes(max(0, u.Limit-u.Used)))},
		{"counted", fmt.Sprintf("%s: %s in, %s out", q.Count, vps.Bytes(u.In), vps.Bytes(u.Out))},
		{"month", fmt.Sprintf("from %s to %s, %s", u.Start.Format("2006-01-02 15:04"), u.End.Format("2006-01-02 15:04"), q.Timezone)},
		{"reset day", resetText(q.ResetDay)},
		{"forecast", forecastSentence(u)},
		{"in force", orNothing(a.inForce(u))},
	}
	if q.Grace > 0 {
		fields = append(fields, field{"grace", q.Grace.String() + " after a step is reached"})
	}
	if q.Topup > 0 && q.TopupMonth == u.Start.Format(time.DateOnly) {
		fields = append(fields, field{"topped up", q.Topup.String() + " until the reset"})
	}
	fields = append(fields, field{value: "Steps"})
	for _, s := range q.Steps {
		what := string(s.Action)
		if s.Action == vps.ActionThrottle {
			what += " to " + s.Rate.String()
		}
		fields = append(fields, field{strconv.Itoa(s.Percent) + "%", fmt.Sprintf("%s, at %s", what, vps.Bytes(s.At(vps.Bytes(u.Limit))))})
	}
	if len(q.Steps) == 0 {
		fields = append(fields, field{" ", "none: it is counted only"})
	}
	return fields
}

func resetText(day int) string {
	if day > 28 {
		return strconv.Itoa(day) + ", or the last day of a shorter month"
	}
	return strconv.Itoa(day)
}

func forecastSentence(u vps.QuotaUse) string {
	switch {
	case u.Used >= u.Limit:
		return "the limit is used up"
	case u.ReachedAt != nil:
		return "the limit will be reached on " + forecastText(u) + " if it goes on as in the last days"
	}
	return "not known, or not before the reset"
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// quotaLifted says how long a quota is lifted.
func quotaLifted(u vps.QuotaUse) string {
	return fmt.Sprintf("the quota of %s is not enforced until its reset on %s", u.Quota.Whose(), u.End.Format(time.DateOnly))
}

// quotaLeft says how a quota stands.
func quotaLeft(u vps.QuotaUse) string {
	return fmt.Sprintf("the limit of %s is %s until the reset on %s; %s are left", u.Quota.Whose(), vps.Bytes(u.Limit), u.End.Format(time.DateOnly), vps.Bytes(max(0, u.Limit-u.Used)))
}
