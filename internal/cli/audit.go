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

Against the network's wall, about 200 forgeries are sent for real, as raw frames,
from a throw-away guest to a throw-away victim, to the host and to the outside:
foreign hardware and IP addresses, ARP and neighbour messages for others, VLAN
tags, router advertisements, DHCP answers, redirects, fragments, packets to where
a guest may not go, floods. The victim and the host listen. Then, against the
jail, a hostile program in a guest's place makes about 90 attempts to get out:
at files, processes, sockets, taps, mounts, devices, control groups.

Each result is shown as it comes: what was expected, what was seen, and which
counter rose; the last line sums up. Some packets have to pass, or the rest would
prove nothing. Long texts are cut in the table, and whole with -o json, which
comes at the end. Other guests are left alone, and nothing is left behind;
interrupted, it cleans up all the same. It needs an image, and memory for two
small guests. The exit code is 1 when any attack got through, or a packet that
has to pass did not.`,
		Args: atMost(0, "no name"),
	}
	durationFlag(cmd.Flags(), &timeout, "timeout", auditTimeout, "how long to wait")
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
		table := newAuditTable(a)
		progress := table.add
		if out.structured() {
			progress = nil
		}
		a.say("attacking %s from a throw-away guest; this takes about a minute", a.host())
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
			err = table.sum(report)
		}
		if err == nil && !report.OK {
			err = errSilent
		}
		return err
	}
	return cmd
}

// auditTable prints results as they come. The columns of what is still to
// come are not known, so they begin at places of their own.
type auditTable struct {
	*app
	kind    string
	columns int   // how many a line may have
	err     error // the first one of writing
}

// unseenColumns is how long lines are where no terminal tells: CI's logs wrap
// longer ones.
const unseenColumns = 120

func newAuditTable(a *app) *auditTable {
	return &auditTable{app: a, columns: columns(a.Stdout, unseenColumns)}
}

// The widths of the mark and of the column with what was expected, which ends
// with two blanks like the others.
const (
	markWidth     = 6
	expectedWidth = 10
)

// longestName is where the name of an attack is cut, so that what follows has
// room in 80 columns.
const longestName = 40

// places returns where the columns of a kind of attack begin: the name, what
// was expected, what was seen, and the counter. What was seen of the network is
// a word or two, and of the jail long, and that has no counters.
func (t *auditTable) places(kind string) [4]int {
	name := 36
	if kind == api.AttackJail {
		name = 24
	}
	seen := markWidth + name + expectedWidth
	const counter = 16 // the longest single one, and some room
	return [4]int{markWidth, markWidth + name, seen, max(min(seen+32, t.columns-counter), seen+10)}
}

func (t *auditTable) add(r api.AuditResult) {
	if t.quiet && r.OK {
		return
	}
	if r.Kind != t.kind && !t.quiet {
		if t.kind != "" {
			t.write("\n")
		}
		title, counter := "ATTACK BY NETWORK", "COUNTER"
		if r.Kind == api.AttackJail {
			title, counter = "ATTACK ON THE JAIL", ""
		}
		t.row(r.Kind, "", "", title, "EXPECTED", "SEEN", counter)
	}
	t.kind = r.Kind
	mark, paint := "ok", paintGreen
	if !r.OK {
		mark, paint = "FAIL", paintRed
	}
	t.row(r.Kind, mark, paint, clean(r.Attack), orDash(clean(r.Expected)), orDash(clean(r.Seen)), clean(r.Counter))
}

// row writes one line. What does not fit is cut: the report in JSON has all of
// it, and the end of the output what failed.
func (t *auditTable) row(kind, mark, paint, name, expected, seen, counter string) {
	var b strings.Builder
	at := 0
	put := func(place int, text string) {
		if pad := place - at; at > 0 && pad < 2 {
			b.WriteString("  ") // what stands before is too long for its column
			at += 2
		} else {
			b.WriteString(strings.Repeat(" ", pad))
			at = place
		}
		b.WriteString(text)
		at += utf8.RuneCountInString(text)
	}
	if mark != "" {
		at = len(mark)
		if t.colour() {
			mark = paint + mark + paintOff
		}
		b.WriteString(mark)
	}
	places := t.places(kind)
	put(places[0], cut(name, longestName))
	put(places[1], expected)
	room := t.columns
	if counter != "" {
		room = places[3] - 2
	}
	put(places[2], cut(seen, max(room-max(places[2], at+2), 10)))
	if counter != "" {
		put(places[3], cut(counter, max(t.columns-max(places[3], at+2), 10)))
	}
	t.write(b.String() + "\n")
}

func (t *auditTable) write(text string) {
	if t.err == nil {
		_, t.err = fmt.Fprint(t.Stdout, text)
	}
}

// mustPass is what is expected of packets that are no attack: that they pass
// shows that the wall does not hold back just everything.
const mustPass = "passes"

// sum names each failure with what was tried, and sums up in the last line.
func (t *auditTable) sum(report api.AuditReport) error {
	if t.quiet {
		return t.err
	}
	through, stopped, attacks := 0, 0, 0
	for _, r := range report.Results {
		if r.Expected != mustPass {
			attacks++
		}
		switch {
		case r.OK:
			continue
		case through+stopped == 0:
			t.write("\n")
		}
		if r.Expected == mustPass {
			stopped++
		} else {
			through++
		}
		t.write(wrap(fmt.Sprintf("%s: %s; expected: %s; seen: %s", clean(r.Attack), clean(r.What), orDash(clean(r.Expected)), orDash(clean(r.Seen))), t.columns))
	}
	text := fmt.Sprintf("%d attacks, %d got through", attacks, through)
	if attacks == 1 {
		text = fmt.Sprintf("1 attack, %d got through", through)
	}
	if passing := len(report.Results) - attacks; stopped > 0 {
		text += fmt.Sprintf("; of %d packets that have to pass, %d did not", passing, stopped)
	}
	if !report.OK && through+stopped == 0 {
		text += "; but the audit failed, see the daemon's log"
	}
	t.write("\n" + text + "\n")
	return t.err
}

// wrap breaks a text into indented lines of at most so many columns, at blanks;
// a word that is longer stays whole.
func wrap(text string, width int) string {
	const first, rest = "  ", "    "
	var b strings.Builder
	line, indent := "", first
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = indent + word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			b.WriteString(line + "\n")
			indent = rest
			line = indent + word
		default:
			line += " " + word
		}
	}
	return b.String() + line + "\n"
}
