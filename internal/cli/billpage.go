package cli

import (
	"bytes"
	_ "embed" // for the page
	"html/template"
	"io"
	"time"

	"sublet/internal/vps"
)

// billPage is one page without scripts that loads nothing.
//
//go:embed bill.html
var billPage string

// billHTML writes a bill as a page to print. Names and reasons cannot become
// markup: html/template sees to it.
func billHTML(w io.Writer, b vps.Bill) error {
	page, err := template.New("bill").Funcs(template.FuncMap{
		"money": func(m vps.Money) string { return m.Text(b.Digits) },
		"gib":   gib,
		"name":  lineName,
		"date":  func(t time.Time) string { return t.Format("2006-01-02") },
	}).Parse(billPage)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "this build of sublet is broken: its page of bills is")
	}
	s := billSums(b)
	var out bytes.Buffer
	err = page.Execute(&out, map[string]any{"Bill": b, "State": billState(b), "In": s.in, "Out": s.out, "Notes": billNotes(b)})
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the page of the bill cannot be written")
	}
	_, err = w.Write(out.Bytes())
	return err
}
