package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// trafficCheck shows that what guests had fits into what the public links had.
func (a *app) trafficCheck(cmd *cobra.Command, f *trafficFlags) error {
	ctx, cancel := request(cmd)
	defer cancel()
	c, err := a.client().CheckTraffic(ctx, f.since)
	if err != nil {
		return typed(cmd, err)
	}
	if f.table() && !a.quiet {
		err = printTrafficCheck(a.Stdout, &c, columns(a.Stdout, plainWidth))
	} else {
		columns := []column[vps.TrafficCheckLine]{
			{key: "what", text: func(l vps.TrafficCheckLine) string { return l.What }},
			{key: "in", text: func(l vps.TrafficCheckLine) string { return fmt.Sprint(l.InBytes) }},
			{key: "out", text: func(l vps.TrafficCheckLine) string { return fmt.Sprint(l.OutBytes) }},
			{key: "in_packets", text: func(l vps.TrafficCheckLine) string { return fmt.Sprint(l.InPackets) }},
			{key: "out_packets", text: func(l vps.TrafficCheckLine) string { return fmt.Sprint(l.OutPackets) }},
			{key: "how", text: func(l vps.TrafficCheckLine) string { return string(l.How) }},
			{key: "note", text: func(l vps.TrafficCheckLine) string { return l.Note }},
		}
		if f.out.structured() {
			err = encode(a.Stdout, f.out.format, c)
		} else if !a.quiet {
			err = printList(a, cmd, f.out, "lines", columns, c.Lines)
		}
	}
	if err == nil && !c.OK {
		return errSilent
	}
	return err
}

// printTrafficCheck writes the check for people: amounts, then why.
func printTrafficCheck(w io.Writer, c *vps.TrafficCheck, width int) error {
	const clock = "2006-01-02 15:04"
	var b strings.Builder
	fmt.Fprintf(&b, "%s, from %s to %s (%s)\n\n", clean(strings.Join(c.Links, ", ")), c.Since.Format(clock), c.Until.Format(clock), c.Until.Format("-07:00"))
	t := &barTable{head: []string{"", "IN", "OUT", "HOW"}, text: []int{3}}
	difference := false
	for _, l := range c.Lines {
		if l.Part && !difference {
			difference = true
			t.rows = append(t.rows, barRow{})
		}
		what := l.What
		if l.Part {
			what = "  " + what
		}
		t.rows = append(t.rows, barRow{cells: []string{what, checkAmount(l.InBytes), checkAmount(l.OutBytes), string(l.How)}})
	}
	if err := t.write(&b, plainBars, 0, false); err != nil {
		return err
	}
	b.WriteByte('\n')
	for _, l := range c.Lines {
		if l.Note != "" {
			b.WriteString(wrap(clean(l.What+": "+l.Note), width))
		}
	}
	for _, note := range c.Notes {
		b.WriteString(wrap(clean(note), width))
	}
	verdict := "The guests' sum fits into the public links' counters"
	if !c.OK {
		verdict = "The guests' sum is LARGER than the public links' counters, by more than is allowed"
	}
	fmt.Fprintf(&b, "\n%s.\nTolerance: %s in, %s out (1 MiB and 1 %% of the links' own).\n", verdict, trafficAmount(c.Tolerance.InBytes), trafficAmount(c.Tolerance.OutBytes))
	_, err := io.WriteString(w, b.String())
	return err
}

func checkAmount(n int64) string {
	if n < 0 {
		return "-" + trafficAmount(-n)
	}
	return trafficAmount(n)
}

func (a *app) trafficImportCmd() *cobra.Command {
	var o api.ImportTraffic
	var file string
	cmd := &cobra.Command{
		Use:   "import --vnstat-json FILE",
		Short: "Take over the history of vnStat",
		Long: `Take over the history that vnStat has of guests' links, and of this host's own,
from what ` + "`vnstat --json`" + ` writes (2.x, and 1.13 to 1.18); - reads standard input.

Each interface goes to the guest whose link has its name, as sublet list -o wide
shows them, and a public link's goes to the host's own counter. Others are left
out, and said so. With --guest it is that guest's, whatever the interface is
called; where the file has several, --interface names which one.

What the host's end of a link received (rx) is what the guest sent, so it is
shown as OUT. vnStat's dates are taken for those of this host's clock. It does
not tell classes apart: all counts as internet.

Rows take the place of those of the same step that were imported before, and
what else was imported stays: a file may be imported twice, and a newer one of
the same link adds to it. NEW and REPLACED count the rows of all steps.`,
		Example: `  vnstat --json > old.json
  sublet traffic import --vnstat-json old.json --dry-run
  sublet traffic import --vnstat-json old.json
  sublet traffic import --vnstat-json old.json --interface tap3 --guest alice`,
		Args: atMost(0, "no name; the guest is named by --guest"),
	}
	out := addOutput(cmd, textFormats)
	cmd.Flags().StringVar(&file, "vnstat-json", "", "`file` that vnstat --json wrote")
	cmd.Flags().StringVar(&o.Guest, "guest", "", "guest whose history it is")
	cmd.Flags().StringVar(&o.Interface, "interface", "", "take only this interface of the file")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "change nothing, only tell what would be taken over")
	_ = cmd.RegisterFlagCompletionFunc("guest", a.completeGuests(1))
	fixedCompletion(cmd, "interface")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if file == "" {
			return usage(cmd, "traffic import needs --vnstat-json FILE")
		}
		text, err := a.readFile(file)
		if err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		done, err := a.client().ImportTraffic(ctx, o, bytes.NewReader(text))
		if err != nil {
			return typed(cmd, about(file, err))
		}
		if out.structured() {
			return encode(a.Stdout, out.format, done)
		}
		return a.printImported(done)
	}
	return cmd
}

// readFile reads a file, or standard input for "-".
func (a *app) readFile(file string) ([]byte, error) {
	if file == "-" {
		text, err := io.ReadAll(a.Stdin)
		if err != nil {
			return nil, vps.Wrap(vps.CodeInvalid, err, "standard input cannot be read")
		}
		return text, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "%s cannot be read: %v", file, err)
	}
	return text, nil
}

func (a *app) printImported(done api.ImportedTraffic) error {
	t := &barTable{head: []string{"INTERFACE", "GUEST", "IN", "OUT", "SINCE", "UNTIL", "NEW", "REPLACED"}, text: []int{1}}
	for _, i := range done.Interfaces {
		if i.Skipped != "" {
			a.say("%s: left out: %s", i.Interface, i.Skipped)
			continue
		}
		guest := i.Guest
		if guest == "" {
			guest = "(this host)"
		}
		var lacks []string
		for _, step := range i.Lacks {
			lacks = append(lacks, "no "+stepName(step)+"s")
		}
		if len(lacks) > 0 {
			a.say("%s: the file has %s of it, so those stay as they are; `vnstat --json` without more writes all", i.Interface, strings.Join(lacks, " and "))
		}
		t.rows = append(t.rows, barRow{cells: []string{
			i.Interface, guest, trafficAmount(i.Total.InBytes), trafficAmount(i.Total.OutBytes), day(i.Since), day(i.Until), fmt.Sprint(rowsIn(i.New)), fmt.Sprint(rowsIn(i.Replaced)),
		}})
	}
	if len(t.rows) > 0 && !a.quiet {
		if err := t.write(a.Stdout, plainBars, 0, false); err != nil {
			return err
		}
	}
	if done.DryRun {
		a.say("nothing was changed: this was a dry run")
	}
	return nil
}

// rowsIn adds up the rows of all steps.
func rowsIn(of map[vps.TrafficStep]int) (rows int) {
	for _, n := range of {
		rows += n
	}
	return rows
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.DateOnly)
}
