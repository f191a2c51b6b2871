package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// auditTimeout is how long an audit may take: two guests boot, and every
// attack waits for what does not come.
const auditTimeout = 30 * time.Minute

func (a *app) netAuditCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Attack this host from a throw-away guest, and show what the wall makes of it",
		Long: `Attack this host from a throw-away guest, and show what came of it.

About 200 forgeries are sent for real, as raw frames, from a throw-away guest:
foreign hardware and IP addresses, ARP and neighbour messages for others, VLAN
tags, router advertisements, DHCP answers, redirects, fragments, packets to a
throw-away victim and to the host, floods. The victim and the host listen. Then a
hostile program in a guest's place tries to leave its jail.

For each attack the report tells what was expected, what was seen, and which
counter rose. Some packets must pass, or the rest would prove nothing. Other
guests are left alone, and nothing is left behind; interrupted, it cleans up all
the same. The exit code is 1 when any attack got through.`,
		Args: atMost(0, "no name"),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", auditTimeout, "how long to wait")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if timeout <= 0 {
			return usage(cmd, "--timeout must be more than nothing")
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		table := &auditTable{app: a}
		progress := table.add
		if out.structured() {
			progress = nil
		}
		a.say("attacking this host from a throw-away guest; this takes about a minute")
		report, err := a.client().Audit(ctx, progress)
		if errors.Is(err, context.DeadlineExceeded) && cmd.Context().Err() == nil {
			return vps.Errorf(vps.CodeTimeout, "the audit was not done after %s and is stopped; give it longer with --timeout", timeout)
		}
		if err != nil {
			return errors.Join(err, table.err)
		}
		if out.structured() {
			err = encode(a.Stdout, out.format, report)
		} else {
			err = errors.Join(table.err, a.sayAudit(report))
		}
		if err == nil && !report.OK {
			err = errSilent
		}
		return err
	}
	return cmd
}

// auditTable prints results as they come. The columns of what is still to
// come are not known, so they have widths of their own, which long texts
// break.
type auditTable struct {
	*app
	kind string
	err  error // the first one of writing
}

// The widths of the columns: attack, expected, seen. The counter is last.
var auditWidths = [...]int{32, 12, 12}

func (t *auditTable) add(r api.AuditResult) {
	if t.quiet && r.OK {
		return
	}
	if r.Kind != t.kind && !t.quiet {
		title := map[string]string{api.AttackNetwork: "ATTACK BY NETWORK", api.AttackJail: "ATTACK ON THE JAIL"}[r.Kind]
		if t.kind != "" {
			t.write("\n")
		}
		t.row("    ", title, "EXPECTED", "SEEN", "COUNTER")
	}
	t.kind = r.Kind
	mark := "ok  "
	if !r.OK {
		mark = "FAIL"
	}
	if t.colour() {
		paint := paintGreen
		if !r.OK {
			paint = paintRed
		}
		mark = paint + mark + paintOff
	}
	t.row(mark, clean(r.Attack), clean(r.Expected), clean(r.Seen), clean(r.Counter))
}

func (t *auditTable) row(mark string, columns ...string) {
	var b strings.Builder
	b.WriteString(mark)
	for i, text := range columns {
		b.WriteString("  " + orDash(text))
		if i < len(auditWidths) {
			b.WriteString(strings.Repeat(" ", max(auditWidths[i]-utf8.RuneCountInString(orDash(text)), 0)))
		}
	}
	t.write(strings.TrimRight(b.String(), " ") + "\n")
}

func (t *auditTable) write(text string) {
	if t.err == nil {
		_, t.err = fmt.Fprint(t.Stdout, text)
	}
}

// sayAudit sums up, and names each failure again with what was tried.
func (a *app) sayAudit(report api.AuditReport) error {
	var b strings.Builder
	failed := 0
	for _, r := range report.Results {
		if r.OK {
			continue
		}
		failed++
		fmt.Fprintf(&b, "  %s: %s; expected %s, seen %s\n", clean(r.Attack), clean(r.What), orDash(clean(r.Expected)), orDash(clean(r.Seen)))
	}
	total := len(report.Results)
	switch {
	case a.quiet:
		return nil
	case failed > 0:
		_, err := fmt.Fprintf(a.Stdout, "\n%d of %d attacks were not met as expected:\n%s", failed, total, b.String())
		return err
	case !report.OK:
		_, err := fmt.Fprintf(a.Stdout, "\nthe audit failed, although %d attacks were met as expected\n", total)
		return err
	}
	_, err := fmt.Fprintf(a.Stdout, "\nall %d attacks were met as expected\n", total)
	return err
}
