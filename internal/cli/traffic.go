package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// trafficFlags are those of `sublet traffic`.
type trafficFlags struct {
	out          *output
	steps        map[string]*bool
	top          bool
	live         bool
	interval     time.Duration
	check        bool
	host         bool
	since, until string
	by           string
}

// trafficViews are the flags that choose one view, each with the step of its
// lines and how many of them are shown unless a time is given: as many as
// vnStat shows.
var trafficViews = []struct { //nolint:gochecknoglobals // a constant
	flag, help string
	step       vps.TrafficStep
	last       int
	lines      string // what they are called
}{
	{"5min", "by 5 minutes: the last 2 hours", vps.StepFiveMinutes, 24, "5 minutes"},
	{"hours", "by hour: the last 24", vps.StepHour, 24, "hours"},
	{"days", "by day: the last 30", vps.StepDay, 30, "days"},
	{"months", "by month: the last 12", vps.StepMonth, 12, "months"},
}

// topDays is how many of the biggest days --top shows.
const topDays = 10

func (a *app) trafficCmd() *cobra.Command {
	f := trafficFlags{steps: map[string]*bool{}}
	cmd := &cobra.Command{
		Use:   "traffic [GUEST]",
		Short: "Show what traffic guests had",
		Long: `Show what traffic a guest had, or all guests together when none is named: today
and this month, or by 5 minutes, hours, days or months.

IN is what the guest received, OUT what it sent, counted by the kernel as
vnStat counts a link: the IP packet and 14 bytes of Ethernet. Both are of all
that passed: with the world outside (internet), with this host (host), and with
other guests (between). What the wall dropped is in none of it; -o wide and
--by class show it. Days begin at midnight of the host's clock. An estimate is
what a step will have had at its end if it goes on like this.

Guests that are deleted keep their history, under the name that they had.
5 minutes are kept for 2 days, hours for 90 days, days and months for ever.

--live shows the rates of this moment, until it is interrupted. --check compares
the sum over all guests with the public links' own counters, and explains the
difference; the exit code is 1 when guests had more than the links.`,
		Example: `  sublet traffic
  sublet traffic alice --days
  sublet traffic --months --by guest -o csv
  sublet traffic alice --hours --since 36h --by class
  sublet traffic --live`,
		Args: atMost(1, "at most one guest"), ValidArgsFunction: a.completeGuests(1),
	}
	f.out = addListOutput(cmd)
	fs := cmd.Flags()
	for _, v := range trafficViews {
		f.steps[v.flag] = fs.Bool(v.flag, false, v.help)
	}
	fs.BoolVar(&f.top, "top", false, "the ten days with the most traffic")
	fs.BoolVar(&f.live, "live", false, "rates of this moment, until interrupted")
	durationFlag(fs, &f.interval, "interval", 2*time.Second, "how often --live looks")
	fs.BoolVar(&f.check, "check", false, "compare all guests with the public links, and explain the difference")
	fs.BoolVar(&f.host, "host", false, "the host's own counters of its public links, instead of guests")
	fs.StringVar(&f.since, "since", "", "only what begins then or later, for example 2026-10-01, 36h or 7d")
	fs.StringVar(&f.until, "until", "", "only what begins before then")
	fs.StringVar(&f.by, "by", "", "split lines by class or guest")
	fixedCompletion(cmd, "by", "class", "guest")
	for _, name := range []string{"since", "until", "interval"} {
		fixedCompletion(cmd, name)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.traffic(cmd, &f, args) }
	cmd.AddCommand(a.trafficImportCmd())
	return cmd
}

// view returns the flag that chooses what is shown, and refuses two.
func (f *trafficFlags) view(cmd *cobra.Command) (string, error) {
	chosen := ""
	for _, name := range []string{"5min", "hours", "days", "months", "top", "live", "check"} {
		if on, _ := cmd.Flags().GetBool(name); !on {
			continue
		}
		if chosen != "" {
			return "", usage(cmd, "--%s and --%s exclude each other", chosen, name)
		}
		chosen = name
	}
	return chosen, nil
}

func (a *app) traffic(cmd *cobra.Command, f *trafficFlags, args []string) error {
	if err := f.out.check(cmd); err != nil {
		return err
	}
	view, err := f.view(cmd)
	if err != nil {
		return err
	}
	guest := strings.Join(args, "")
	switch {
	case f.by != "" && f.by != "class" && f.by != "guest":
		return usage(cmd, "--by %q is none of class, guest", f.by)
	case f.host && guest != "":
		return usage(cmd, "--host is of no guest; leave out %s", guest)
	case view == "check" && (guest != "" || f.host || f.by != "" || f.until != ""):
		return usage(cmd, "--check is about all guests, up to now; it goes with --since only")
	case view == "live" && (f.since != "" || f.until != "" || f.by != "" || f.host):
		return usage(cmd, "--live shows this moment; it goes with --interval only")
	case view == "" && (f.since != "" || f.until != "" || f.by != ""):
		return usage(cmd, "--since, --until and --by go with one of --5min, --hours, --days, --months and --top")
	case cmd.Flags().Changed("interval") && view != "live":
		return usage(cmd, "--interval goes with --live")
	}
	switch view {
	case "check":
		return a.trafficCheck(cmd, f)
	case "live":
		return a.trafficLive(cmd, f, guest)
	case "":
		return a.trafficSummary(cmd, f, guest)
	}
	return a.trafficHistory(cmd, f, guest, view)
}

// trafficHistory shows one line for each step of time.
func (a *app) trafficHistory(cmd *cobra.Command, f *trafficFlags, guest, view string) error {
	q := api.TrafficQuery{Guest: guest, Host: f.host, Step: vps.StepDay, Since: f.since, Until: f.until, Sum: guest == "" && f.by != "guest" && !f.host}
	for _, v := range trafficViews {
		if v.flag == view {
			if q.Step = v.step; f.since == "" && f.until == "" {
				q.Last = v.last
			}
		}
	}
	if view == "top" {
		q.Top = topDays
	}
	ctx, cancel := request(cmd)
	defer cancel()
	h, err := a.history(ctx, q)
	if err != nil {
		return typed(cmd, about(guest, err))
	}
	split := trafficSplit{guest: f.by == "guest" || guest != "", class: f.by == "class"}
	lines := trafficLines(h, split)
	if view == "top" {
		slices.SortStableFunc(lines, func(a, b trafficLine) int { return cmp.Compare(b.Total, a.Total) })
	}
	if lines, err = filter(cmd, f.out.filters, trafficColumns(), lines); err != nil {
		return err
	}
	switch {
	case !f.table() || a.quiet:
		return printList(a, cmd, f.out, "traffic", trafficColumns(), lines)
	case len(lines) == 0 && len(h.Rows) > 0:
		a.say("there is traffic, but --filter lets none of it through")
		return nil
	case len(lines) == 0:
		return a.sayNoSteps(ctx, guest, f, q)
	}
	t := historyTable(lines, f.by, f.out.format == formatWide, view != "top")
	return a.writeBars(t, f)
}

// history asks the daemon, and tells once when it does not know the newest.
func (a *app) history(ctx context.Context, q api.TrafficQuery) (api.TrafficHistory, error) {
	h, err := a.client().Traffic(ctx, q)
	if h.Behind != "" && !a.toldBehind {
		a.toldBehind = true
		since := "the newest traffic"
		if !h.At.IsZero() {
			since = "what passed since " + h.At.Format(time.DateTime)
		}
		a.say("warning: %s is not shown, and will be counted later: %s", since, h.Behind)
	}
	return h, err
}

// plainWidth is how many columns tables have where no terminal tells.
const plainWidth = 80

// writeBars shows a table, which on a terminal fits there unless it is a wide one.
func (a *app) writeBars(t *barTable, f *trafficFlags) error {
	t.fit = a.IsTerminal(a.Stdout) && f.out.format != formatWide
	return t.write(a.Stdout, a.barStyle(), columns(a.Stdout, plainWidth), f.out.noHeaders)
}

// table tells whether the output is for people.
func (f *trafficFlags) table() bool { return f.out.format == formatTable || f.out.format == formatWide }

// sayNoSteps explains an empty table of a view, and names those that have
// something: longer steps are kept for longer, and what is imported may have no
// others.
func (a *app) sayNoSteps(ctx context.Context, guest string, f *trafficFlags, q api.TrafficQuery) error {
	q.Since, q.Until, q.Top = "", "", 0
	var step string
	var others []string
	for _, v := range trafficViews {
		if v.step == q.Step {
			step = v.lines
			continue
		}
		if step == "" {
			continue
		}
		q.Step, q.Last = v.step, v.last // what that view shows
		h, err := a.history(ctx, q)
		if err != nil {
			return err
		}
		if len(h.Rows) > 0 {
			others = append(others, "--"+v.flag)
		}
	}
	if len(others) == 0 {
		a.say("%s", noTraffic(guest, f))
		return nil
	}
	when := ""
	if f.since != "" || f.until != "" {
		when = " of that time"
	}
	a.say("no %s of %s are on record%s; see %s for what there is", step, whoseTraffic(guest, f), when, strings.Join(others, " and "))
	return nil
}

// whoseTraffic names what is shown.
func whoseTraffic(guest string, f *trafficFlags) string {
	switch {
	case f.host:
		return "public links"
	case guest != "":
		return guest
	}
	return "guests"
}

// noTraffic explains an empty table.
func noTraffic(guest string, f *trafficFlags) string {
	whose := whoseTraffic(guest, f)
	if f.since != "" || f.until != "" {
		return "no traffic of " + whose + " is kept of that time: there was none, or it is older than what is kept"
	}
	return "no traffic of " + whose + " is kept yet: it is counted from the first packet on; `sublet traffic import` takes over vnStat's history"
}

// trafficColumns are those of CSV, and what filters go by.
func trafficColumns() []column[trafficLine] {
	number := func(key string, n func(*trafficLine) int64) column[trafficLine] {
		return column[trafficLine]{key: key, text: func(l trafficLine) string { return strconv.FormatInt(n(&l), 10) }}
	}
	all := []column[trafficLine]{
		{key: "start", text: func(l trafficLine) string { return l.Start.Format(time.RFC3339) }},
		{key: "step", text: func(l trafficLine) string { return string(l.Step) }},
		{key: "guest", text: func(l trafficLine) string { return l.Guest }},
		{key: "class", text: func(l trafficLine) string { return string(l.Class) }},
		number("in", func(l *trafficLine) int64 { return l.InBytes }),
		number("out", func(l *trafficLine) int64 { return l.OutBytes }),
		number("total", func(l *trafficLine) int64 { return l.Total }),
		number("average_rate", func(l *trafficLine) int64 { return int64(l.Rate) }),
		number("in_packets", func(l *trafficLine) int64 { return l.InPackets }),
		number("out_packets", func(l *trafficLine) int64 { return l.OutPackets }),
		{key: "estimate", text: func(l trafficLine) string {
			if l.Estimate == nil {
				return ""
			}
			return strconv.FormatInt(l.Estimate.Total, 10)
		}},
	}
	for _, class := range vps.TrafficClasses() {
		all = append(all,
			number(string(class)+"_in", func(l *trafficLine) int64 { return l.Classes[class].InBytes }),
			number(string(class)+"_out", func(l *trafficLine) int64 { return l.Classes[class].OutBytes }))
	}
	return all
}

// trafficNow returns the lines of the day and of the month that run now.
func (a *app) trafficNow(ctx context.Context, q api.TrafficQuery, split trafficSplit) (day, month []trafficLine, err error) {
	for _, x := range []struct {
		step vps.TrafficStep
		to   *[]trafficLine
	}{{vps.StepDay, &day}, {vps.StepMonth, &month}} {
		q.Step, q.Last = x.step, 1
		h, err := a.history(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		*x.to = slices.DeleteFunc(trafficLines(h, split), func(l trafficLine) bool { return !l.Running })
	}
	return day, month, nil
}

func (a *app) trafficSummary(cmd *cobra.Command, f *trafficFlags, guest string) error {
	ctx, cancel := request(cmd)
	defer cancel()
	if guest != "" || f.host {
		return a.trafficOf(ctx, cmd, f, guest)
	}
	days, months, err := a.trafficNow(ctx, api.TrafficQuery{}, trafficSplit{guest: true})
	if err != nil {
		return err
	}
	guests, err := a.client().Guests(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for i := range guests {
		there[guests[i].ID] = true
	}
	lines := slices.Concat(months, days)
	for i := range lines {
		lines[i].Deleted = !there[lines[i].GuestID]
	}
	if lines, err = filter(cmd, f.out.filters, trafficColumns(), lines); err != nil {
		return err
	}
	switch {
	case a.quiet || f.out.format == formatName:
		return a.trafficNames(lines)
	case !f.table():
		return printList(a, cmd, f.out, "traffic", trafficColumns(), lines)
	case len(lines) == 0:
		a.say("no guest has had traffic this month; --months shows earlier ones")
		return nil
	}
	hostDays, hostMonths, err := a.trafficNow(ctx, api.TrafficQuery{Host: true}, trafficSplit{})
	if err != nil {
		return err
	}
	host := slices.Concat(hostMonths, hostDays)
	return a.writeBars(summaryTable(lines, host, f.out.format == formatWide), f)
}

func (a *app) trafficNames(lines []trafficLine) error {
	var names []string
	for _, l := range lines {
		names = append(names, l.Guest)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if _, err := fmt.Fprintln(a.Stdout, clean(name)); err != nil {
			return err
		}
	}
	return nil
}

// trafficOf is the page about one guest, or about the host's own counters.
func (a *app) trafficOf(ctx context.Context, cmd *cobra.Command, f *trafficFlags, guest string) error {
	q := api.TrafficQuery{Guest: guest, Host: f.host, Step: vps.StepDay, Last: 2}
	days, err := a.history(ctx, q)
	if err != nil {
		return about(guest, err)
	}
	q.Step, q.Last = vps.StepMonth, 0
	months, err := a.history(ctx, q)
	if err != nil {
		return about(guest, err)
	}
	split := trafficSplit{guest: guest != ""}
	byMonth, byDay := trafficLines(months, split), trafficLines(days, split)
	if !f.table() || a.quiet {
		lines := slices.Concat(byMonth[max(0, len(byMonth)-2):], byDay)
		return printList(a, cmd, f.out, "traffic", trafficColumns(), lines)
	}
	if len(byMonth) == 0 {
		a.say("%s", noTraffic(guest, f))
		return nil
	}
	page := guestTable(cmp.Or(guest, "PUBLIC LINKS"), byDay, byMonth, days)
	if err := a.writeBars(page, f); err != nil {
		return err
	}
	if last := byMonth[len(byMonth)-1]; last.Running && !f.host {
		if _, err := fmt.Fprintln(a.Stdout); err != nil {
			return err
		}
		return a.writeBars(classTable(&last), f)
	}
	return nil
}
