package cli

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"sublet/internal/vps"
)

// barStyle is how bars look: what is received, and what is sent behind it.
type barStyle struct {
	in, out           string
	inPaint, outPaint string // SGR sequences, or empty
}

// plainBars are vnStat's, for where no terminal shows them.
var plainBars = barStyle{in: "%", out: ":"} //nolint:gochecknoglobals // a constant

// barStyle is that of standard output.
func (a *app) barStyle() barStyle {
	if !a.IsTerminal(a.Stdout) || a.Env("TERM") == "dumb" {
		return plainBars
	}
	style := plainBars
	locale := a.Env("LC_ALL")
	for _, name := range []string{"LC_CTYPE", "LANG"} {
		if locale == "" {
			locale = a.Env(name)
		}
	}
	if l := strings.ToLower(locale); strings.Contains(l, "utf-8") || strings.Contains(l, "utf8") {
		style = barStyle{in: "█", out: "▒"}
	}
	if a.colour() {
		style.inPaint, style.outPaint = paintGreen, paintCyan
	}
	return style
}

// barTable is a table of amounts: the first column to the left, the others to
// the right unless they are text, and behind them a bar in what room is left.
type barTable struct {
	head []string
	text []int // further columns to the left
	rows []barRow
	// fit is for terminals: lines are not to be longer than these are wide, as
	// far as that goes. For it the columns drop, rising, are left out, and then
	// names become shorter.
	fit  bool
	drop []int
}

// barRow is a line; one without cells is a rule. Its bar is of two parts; both
// zero for none.
type barRow struct {
	cells   []string
	in, out int64
}

const (
	leastBar = 8
	mostBar  = 60
)

// widths are those of the columns, and used that of all with what is between.
func (t *barTable) widths() (widths []int, used int) {
	widths = make([]int, len(t.head))
	for i, cell := range t.head {
		widths[i] = utf8.RuneCountInString(cell)
	}
	for _, r := range t.rows {
		for i, cell := range r.cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(clean(cell)))
		}
	}
	used = -2
	for _, n := range widths {
		used += n + 2
	}
	return widths, used
}

// fitted returns the table with lines of at most width, as far as that goes.
func (t *barTable) fitted(style barStyle, width int) *barTable {
	const leastName = 8
	f := &barTable{head: slices.Clone(t.head), text: t.text}
	for _, r := range t.rows {
		r.cells = slices.Clone(r.cells)
		f.rows = append(f.rows, r)
	}
	widths, used := f.widths()
	if used > width {
		for _, at := range slices.Backward(t.drop) {
			f.head = slices.Delete(f.head, at, at+1)
			for i, r := range f.rows {
				if r.cells != nil {
					f.rows[i].cells = slices.Delete(r.cells, at, at+1)
				}
			}
		}
		widths, used = f.widths()
	}
	if used <= width {
		return f
	}
	name := max(leastName, widths[0]-(used-width))
	f.head[0] = shortened(f.head[0], name, style)
	for _, r := range f.rows {
		if r.cells != nil {
			r.cells[0] = shortened(clean(r.cells[0]), name, style)
		}
	}
	return f
}

// shortened cuts a text to some characters, the last of which says so.
func shortened(text string, most int, style barStyle) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	end := "…"
	if style.in == plainBars.in {
		end = "~"
	}
	return string([]rune(text)[:most-1]) + end
}

// write fits the table into width columns; bars are left out where they would
// have no room. The longest bar is that of the row with the most.
func (t *barTable) write(w io.Writer, style barStyle, width int, noHeaders bool) error {
	if t.fit {
		t = t.fitted(style, width)
	}
	widths, used := t.widths()
	most := int64(0)
	for _, r := range t.rows {
		most = max(most, vps.SumBytes(r.in, r.out))
	}
	room := min(width-used-2, mostBar)
	if room < leastBar {
		room = 0
	}
	var b strings.Builder
	line := func(cells []string, bar string) {
		var l strings.Builder
		for i, cell := range cells {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(clean(cell)))
			switch {
			case i == 0:
				l.WriteString(clean(cell) + pad)
			case slices.Contains(t.text, i):
				l.WriteString("  " + clean(cell) + pad)
			default:
				l.WriteString("  " + pad + clean(cell))
			}
		}
		if bar != "" {
			l.WriteString("  " + bar)
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	if !noHeaders {
		legend := ""
		if room >= utf8.RuneCountInString("% in  : out") && most > 0 {
			legend = style.legend()
		}
		line(t.head, legend)
	}
	for _, r := range t.rows {
		if r.cells == nil {
			b.WriteString(strings.Repeat("-", used) + "\n")
			continue
		}
		line(r.cells, style.draw(r.in, r.out, most, room))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s barStyle) legend() string {
	return painted(s.in, s.inPaint) + " in  " + painted(s.out, s.outPaint) + " out"
}

// draw makes a bar of two parts; most of it would fill room. Any traffic at
// all is seen.
func (s barStyle) draw(in, out, most int64, room int) string {
	all := vps.SumBytes(in, out)
	if most <= 0 || room <= 0 || all <= 0 {
		return ""
	}
	cells := max(int(float64(all)/float64(most)*float64(room)+0.5), 1)
	first := min(int(float64(in)/float64(all)*float64(cells)+0.5), cells)
	return painted(strings.Repeat(s.in, first), s.inPaint) + painted(strings.Repeat(s.out, cells-first), s.outPaint)
}

func painted(text, paint string) string {
	if paint == "" || text == "" {
		return text
	}
	return paint + text + paintOff
}
