package cli

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

const formatHTML = "html"

// pageWidth is how wide texts on a bill's page are, in characters.
const pageWidth = 80

func (a *app) billCmd() *cobra.Command {
	var month, tenant string
	cmd := &cobra.Command{
		Use: "bill", Short: "Show what each tenant owes for a month",
		Long: `Show what each tenant owes for a month: its guests' shares of the host's fixed
price, and the price of their traffic, as sublet price set them. The bill of the
month that runs is up to now. That of a month that is over is kept when it is
first made, and never changes; sublet bill correct adds lines to it.

JSON has, for every figure, the rows of the ledger that it comes from. HTML is one
page to print or to send.`,
		Example: `  sublet bill
  sublet bill --month 2026-10 --tenant bob -o html > bob-2026-10.html
  sublet bill list
  sublet bill correct --month 2026-10 --guest alice --amount -1.50 --reason "down for a day"`,
		Args: knownVerb,
	}
	cmd.Flags().StringVar(&month, "month", "", "which month, as 2026-10 (default the one that runs)")
	cmd.Flags().StringVar(&tenant, "tenant", "", "only this tenant's part")
	a.monthCompletion(cmd)
	a.tenantCompletion(cmd)
	out := addOutput(cmd, []string{formatTable, formatCSV, formatJSON, formatHTML})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		q := api.BillQuery{Tenant: tenant, Rows: out.structured()}
		if cmd.Flags().Changed("month") {
			m, err := billMonth(month)
			if err != nil {
				return err
			}
			q.Month = &m
		}
		ctx, cancel := request(cmd)
		defer cancel()
		bill, err := a.client().Bill(ctx, q)
		if err != nil {
			return typed(cmd, err)
		}
		return a.printBill(out.format, bill)
	}
	cmd.AddCommand(a.billListCmd(), a.billCorrectCmd())
	return cmd
}

func billMonth(text string) (vps.Month, error) {
	m, err := vps.ParseMonth(text)
	if err != nil {
		return m, vps.Invalid("--month", "%s", vps.ErrorMessage(err))
	}
	return m, nil
}

func (a *app) billCorrectCmd() *cobra.Command {
	var month string
	var c api.CorrectBill
	cmd := &cobra.Command{
		Use: "correct", Short: "Add a line to the bill of a month that is over",
		Long: `Add a line to the bill of a month that is over. What the bill has stays as it
is; to take a correction back, add one with the opposite amount.`,
		Example: `  sublet bill correct --month 2026-10 --guest alice --amount -1.50 --reason "down for a day"
  sublet bill correct --month 2026-10 --tenant bob --amount 20 --reason "a second address"`,
		Args: atMost(0, "no name"),
	}
	fs := cmd.Flags()
	fs.StringVar(&month, "month", "", "which month, as 2026-10")
	fs.StringVar(&c.Guest, "guest", "", "the guest that it is about")
	fs.StringVar(&c.Tenant, "tenant", "", "who gets it (default whose the guest was)")
	fs.StringVar(&c.Amount, "amount", "", "how much more, or with a minus less: -1.50")
	fs.StringVar(&c.Reason, "reason", "", "stands on the bill")
	for _, name := range []string{"amount", "reason"} {
		fixedCompletion(cmd, name)
	}
	a.monthCompletion(cmd)
	a.tenantCompletion(cmd)
	guests := a.completeGuests(-1)
	_ = cmd.RegisterFlagCompletionFunc("guest", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return guests(cmd, nil, typed)
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{"month", "amount", "reason"} {
			if !cmd.Flags().Changed(name) {
				return usage(cmd, "%s needs --%s", verb(cmd), name)
			}
		}
		m, err := billMonth(month)
		if err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		bill, err := a.client().CorrectBill(ctx, m, c)
		if err != nil {
			return typed(cmd, err)
		}
		a.say("the bill of %s is corrected; its total is %s %s now", m.Title(), bill.Total.Text(bill.Digits), bill.Price.Currency)
		return nil
	}
	return cmd
}

func (a *app) printBill(format string, b vps.Bill) error {
	switch format {
	case formatJSON:
		return encode(a.Stdout, format, b)
	case formatCSV:
		return billCSV(a.Stdout, b)
	case formatHTML:
		return billHTML(a.Stdout, b)
	}
	return billTable(a.Stdout, b)
}

// billTable writes a bill for people: a heading, the lines, and what they come
// from.
func billTable(w io.Writer, b vps.Bill) error {
	var out strings.Builder
	fmt.Fprintf(&out, "Bill of %s in %s: %s\n\n", b.Month.Title(), b.Price.Currency, billState(b))
	rows := [][]string{{"TENANT", "GUEST", "DAYS", "FIXED", "GIB IN", "PRICE", "GIB OUT", "PRICE", "TOTAL"}}
	for _, t := range b.Tenants {
		for _, l := range t.Lines {
			rows = append(rows, []string{
				t.Tenant, lineName(l), strconv.Itoa(l.Days), l.Fixed.Text(b.Digits), gib(l.In.Bytes), l.In.Amount.Text(b.Digits),
				gib(l.Out.Bytes), l.Out.Amount.Text(b.Digits), l.Total.Text(b.Digits),
			})
		}
		for _, c := range t.Corrections {
			rows = append(rows, []string{t.Tenant, "correction " + strconv.FormatInt(c.ID, 10), "", "", "", "", "", "", c.Amount.Text(b.Digits)})
		}
		if len(t.Lines)+len(t.Corrections) > 1 {
			rows = append(rows, []string{t.Tenant, "together", "", "", "", "", "", "", t.Total.Text(b.Digits)})
		}
	}
	s := billSums(b)
	rows = append(rows, []string{"total", "", "", b.Fixed.Text(b.Digits), gib(s.in.Bytes), s.in.Amount.Text(b.Digits), gib(s.out.Bytes), s.out.Amount.Text(b.Digits), b.Total.Text(b.Digits)})
	alignRight(&out, rows, 2)
	out.WriteByte('\n')
	for _, t := range b.Tenants {
		for _, c := range t.Corrections {
			about := c.Reason
			if c.Guest != "" {
				about = c.Guest + ": " + about
			}
			out.WriteString(wrapped(fmt.Sprintf("Correction %d, %s: %s", c.ID, c.Made.Format("2006-01-02"), about), pageWidth))
		}
	}
	notes := append(billNotes(b), fmt.Sprintf("`sublet bill --month %s -o json` has the days and the rows of the ledger that each figure comes from.", b.Month))
	for _, text := range notes {
		out.WriteString(wrapped(text, pageWidth))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// sums are those of a bill's traffic.
type sums struct{ in, out vps.BillUsage }

func billSums(b vps.Bill) (s sums) {
	for _, t := range b.Tenants {
		for _, l := range t.Lines {
			for _, x := range []struct {
				to   *vps.BillUsage
				from vps.BillUsage
			}{{&s.in, l.In}, {&s.out, l.Out}} {
				x.to.Bytes += x.from.Bytes
				x.to.Undated += x.from.Undated
				x.to.Free += x.from.Free
				x.to.Amount += x.from.Amount
			}
		}
	}
	return s
}

func billState(b vps.Bill) string {
	if b.State == vps.BillFinal {
		return "final, made " + b.Made.Format("2006-01-02")
	}
	return fmt.Sprintf("provisional, %d of %d days", b.Passed, b.Days)
}

func lineName(l vps.BillLine) string {
	if l.GuestID == "" {
		return "(no guest)"
	}
	return l.Guest
}

// gib writes bytes in GiB, which traffic is priced by.
func gib(n int64) string {
	if n == 0 {
		return "0"
	}
	if n < int64(vps.GiB)/1000 {
		return "<0.001"
	}
	return strconv.FormatFloat(float64(n)/float64(vps.GiB), 'f', 3, 64)
}

// billNotes say what a bill's figures come from.
func billNotes(b vps.Bill) []string {
	p := b.Price
	fixed := fmt.Sprintf("The host costs %s %s a month, %d equal parts for its days. The part of each day is shared %s of that day",
		p.MonthMoney().Text(b.Digits), p.Currency, b.Days, shareText(p.Share))
	least := vps.Money(1).Text(b.Digits) + " " + p.Currency
	notes := []string{fixed + fmt.Sprintf("; days without a guest are the owner's. The shares are cut to %s, and what is left goes to the largest remainders, so that they add up exactly.", least)}
	traffic := fmt.Sprintf("A GiB (2^30 bytes) costs %s received and %s sent. Traffic with the internet and with the host counts, that between guests and what was dropped does not.", p.In, p.Out)
	if p.FreeIn > 0 || p.FreeOut > 0 {
		traffic += fmt.Sprintf(" Free of charge in the month for %s: %s received and %s sent, used in proportion where several share it.", freeText(p.FreePer), p.FreeIn, p.FreeOut)
	}
	notes = append(notes, traffic+fmt.Sprintf(" Each amount is rounded half up to %s, and totals are sums of rounded amounts.", least))
	if s := billSums(b); s.in.Undated > 0 || s.out.Undated > 0 {
		notes = append(notes, fmt.Sprintf("Of the traffic, %s GiB received and %s GiB sent were imported of the month as a whole, without its days.", gib(s.in.Undated), gib(s.out.Undated)))
	}
	when := fmt.Sprintf("Days begin at midnight in %s. ", b.Timezone)
	if b.State == vps.BillFinal {
		when += "This bill is final: it never changes, and corrections are lines of their own."
	} else {
		when += "This bill is provisional: it is up to now, and changes until the month is over for sure."
	}
	notes = append(notes, when)
	if b.Estimate != nil {
		notes = append(notes, fmt.Sprintf("If the guests of today stay and traffic goes on as so far, the month comes to about %s %s.", b.Estimate.Text(b.Digits), p.Currency))
	}
	return notes
}

// wrapped breaks a text into lines of so many characters, and ends it. Words that
// are longer than a line, as sentences without spaces, are cut.
func wrapped(text string, width int) string {
	var words []string
	for word := range strings.FieldsSeq(clean(text)) {
		for part := range slices.Chunk([]rune(word), width) {
			words = append(words, string(part))
		}
	}
	return strings.Join(fold(words, width), "\n") + "\n"
}

// alignRight writes rows in columns, of which those from first on end, and
// those before begin, at the same place.
func alignRight(out *strings.Builder, rows [][]string, first int) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if i > 0 {
				line.WriteString("  ")
			}
			if i < first {
				line.WriteString(clean(text) + pad)
			} else {
				line.WriteString(pad + clean(text))
			}
		}
		out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// billCSV writes a line for each line of a bill (RFC 4180); they add up to its
// total.
func billCSV(w io.Writer, b vps.Bill) error {
	out := csv.NewWriter(w)
	out.UseCRLF = true
	records := [][]string{{
		"month", "state", "currency", "tenant", "kind", "guest", "guest_id", "days", "fixed",
		"in_bytes", "in_free", "in_amount", "out_bytes", "out_free", "out_amount", "total", "reason",
	}}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, t := range b.Tenants {
		head := []string{b.Month.String(), string(b.State), b.Price.Currency, harmless(t.Tenant)}
		for _, l := range t.Lines {
			kind := "guest"
			if l.GuestID == "" {
				kind = "no-guest"
			}
			records = append(records, append(head[:4:4], kind, harmless(l.Guest), harmless(l.GuestID), strconv.Itoa(l.Days), l.Fixed.Text(b.Digits),
				number(l.In.Bytes), number(l.In.Free), l.In.Amount.Text(b.Digits), number(l.Out.Bytes), number(l.Out.Free), l.Out.Amount.Text(b.Digits), l.Total.Text(b.Digits), ""))
		}
		for _, c := range t.Corrections {
			records = append(records, append(head[:4:4], "correction", harmless(c.Guest), "", "", "", "", "", "", "", "", "", c.Amount.Text(b.Digits), harmless(c.Reason)))
		}
	}
	return out.WriteAll(records)
}

// harmless keeps a spreadsheet from taking a text for a formula.
func harmless(text string) string {
	first, _ := utf8.DecodeRuneInString(text)
	if text != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠", first) {
		return "'" + text
	}
	return text
}
