package web

import (
	"embed"
	"html/template"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

//go:embed templates/*.html
var templateFiles embed.FS

var templates = sync.OnceValue(func() *template.Template {
	return template.Must(template.ParseFS(templateFiles, "templates/*.html"))
})

// htmlPage is a view as the template sees it: with words and shapes.
type htmlPage struct {
	*view
	assets *assets
}

func (s *Server) writeHTML(w io.Writer, v *view) error {
	return templates().ExecuteTemplate(w, "page.html", htmlPage{v, s.assets})
}

// htmlFailure is a page that says why there is none.
type htmlFailure struct {
	htmlPage
	Sentence string
}

func (s *Server) writeFailure(w io.Writer, lang *language, sentence string) error {
	return templates().ExecuteTemplate(w, "failure.html", htmlFailure{htmlPage{&view{Lang: lang}, s.assets}, lang.text(sentence)})
}

// T returns a text of the catalogue.
func (p htmlPage) T(key string, of ...string) string { return p.Lang.text(key, of...) }

// Asset returns the address of a file, from where the page is; "" when it was
// not built. It is relative, so that the edge may put pages below any path.
func (p htmlPage) Asset(name string) string {
	if p.assets.names[name] == "" {
		return ""
	}
	return "../assets/" + p.assets.names[name]
}

// Title says what the page is about.
func (p htmlPage) Title() string { return title(p.view) }

// Size, Date and Share write amounts, times and parts.
func (htmlPage) Size(n int64) string                      { return size(n) }
func (p htmlPage) Date(layout string, t time.Time) string { return p.Lang.date(layout, t) }
func (p htmlPage) QuotaName(u *vps.QuotaUse) string       { return quotaName(p.Lang, p.view, u) }
func (p htmlPage) Reset(u *vps.QuotaUse) string           { return resetDate(p.Lang, p.Now, u) }
func (p htmlPage) Counted(u *vps.QuotaUse) string         { return counted(p.Lang, u) }
func (p htmlPage) InForce(u *vps.QuotaUse) string         { return inForce(p.Lang, p.Now, u) }
func (p htmlPage) Forecast(u *vps.QuotaUse) string        { return forecast(p.Lang, p.Now, u) }
func (htmlPage) Left(u *vps.QuotaUse) int64               { return left(u) }
func (htmlPage) Percent(u *vps.QuotaUse) string {
	return strconv.FormatFloat(percent(u.Used, u.Limit), 'f', 1, 64)
}
func (p htmlPage) Figures(plot int) *figures { return newFigures(p.Lang, &p.Plots[plot]) }
func (p htmlPage) Spark(of plot) shape {
	s := of.series
	if of.step == vps.StepFiveMinutes { // more than there is room for
		s = coarser(s, inHour)
	}
	return shapeOf(s, s.peak())
}

func (p htmlPage) Languages() []*language         { return languages() }
func (p htmlPage) Total(c vps.TrafficCount) int64 { return c.Bytes() }
func (p htmlPage) State(s vps.State) string       { return p.Lang.text("state." + string(s)) }

// Level is how serious the use of a quota is: ok, high or full.
func (htmlPage) Level(u *vps.QuotaUse) string {
	const high, full = 80, 100
	switch used := percent(u.Used, u.Limit); {
	case used >= full:
		return "full"
	case used >= high:
		return "high"
	default:
		return "ok"
	}
}

// Meter is the width of a meter's bar, as SVG has it.
func (htmlPage) Meter(u *vps.QuotaUse) string {
	const whole = 100
	return strconv.FormatFloat(min(percent(u.Used, u.Limit), whole), 'f', 2, 64) + "%"
}

// Marks are where the quota's steps are on its meter.
func (htmlPage) Marks(u *vps.QuotaUse) []string {
	const whole = 100
	var list []string
	for _, s := range u.Quota.Steps {
		if s.Percent < whole {
			list = append(list, strconv.Itoa(s.Percent)+"%")
		}
	}
	return list
}

// Rows are the guests that the page lists: the busiest, or all when asked.
func (p htmlPage) Rows() []guestView {
	if p.All {
		return p.Guests
	}
	return p.Guests[:min(len(p.Guests), listedGuests)]
}

// More is the number of guests that are not listed; empty for none.
func (p htmlPage) More() string {
	if n := len(p.Guests) - len(p.Rows()); n > 0 {
		return strconv.Itoa(n)
	}
	return ""
}

// Here returns the query of the same page for another guest, or language.
func (p htmlPage) Here(guest, lang string) string {
	q := url.Values{}
	if guest != "" {
		q.Set("guest", guest)
	}
	if lang != "" {
		q.Set("lang", lang)
	}
	return "?" + q.Encode()
}

// figures is a plot that is drawn: its shape, and what stands beside it.
type figures struct {
	*plot
	shape
	Sum amount // in all of it
	// Middle and Top are the labels of the lines at half and full height.
	Middle, Top string
	Ticks       []placedTick
	// Data is the plot for the script, which draws it anew.
	Data plotData
	// Rows are its steps for those who read tables, the newest first.
	Rows []figureRow
}

// placedTick is a label at a place along the plot, which narrow pages may leave
// out.
type placedTick struct {
	Place string
	Spare bool
	Label string
}

type figureRow struct {
	When string
	amount
}

// plotData is a plot as static/plot.js reads it.
type plotData struct {
	// Each says how much time a step is, and Joined how much so many are.
	Each   string         `json:"each"`
	Joined map[int]string `json:"joined,omitempty"`
	Labels []string       `json:"labels"`
	Ticks  []int          `json:"ticks"`
	Names  []string       `json:"names"`
	In     []int64        `json:"in"`
	Out    []int64        `json:"out"`
}

func newFigures(lang *language, of *plot) *figures {
	top := niceCeiling(of.peak())
	f := &figures{plot: of, shape: shapeOf(of.series, top), Sum: of.Sum(), Middle: roundSize(top / 2), Top: roundSize(top)}
	f.Data.Each = lang.text("each." + string(of.step))
	if of.step == vps.StepFiveMinutes {
		f.Data.Joined = map[int]string{3: lang.text("each.15min"), 6: lang.text("each.30min"), inHour: lang.text("each.hour")}
	}
	for i, a := range of.series {
		f.Data.Labels = append(f.Data.Labels, moment(lang, of, i))
		f.Data.In = append(f.Data.In, a.In)
		f.Data.Out = append(f.Data.Out, a.Out)
	}
	all := ticks(lang, of)
	for i, t := range all {
		f.Data.Ticks = append(f.Data.Ticks, t.at)
		f.Data.Names = append(f.Data.Names, t.label)
		f.Ticks = append(f.Ticks, place(t, of, (len(all)-i)%2 == 0))
	}
	f.Rows = rowsOf(lang, of)
	return f
}

// place puts a label below its step: the hour at its begin, a day or a month
// below the middle of its bar. Left out on phones is every other one.
func place(t tick, of *plot, spare bool) placedTick {
	const whole = 100
	at := float64(t.at)
	if of.Name != lastDay {
		at += 0.5
	}
	return placedTick{strconv.FormatFloat(at/float64(len(of.starts))*whole, 'f', 2, 64) + "%", of.Name != lastDay && spare, t.label}
}

// rowsOf lists the steps of a plot, those of five minutes by the hour.
func rowsOf(lang *language, of *plot) []figureRow {
	each := 1
	if of.step == vps.StepFiveMinutes {
		each = inHour
	}
	var rows []figureRow
	for end := len(of.series); end > 0; end -= each {
		begin := max(end-each, 0)
		rows = append(rows, figureRow{moment(lang, of, begin), of.series[begin:end].Sum()})
	}
	return rows
}

// shape is two paths of SVG: the bars of what came in, and on top of them
// those of what went out. Width is that of the picture, its height is 100.
type shape struct {
	Width   int
	In, Out string
}

// shapeOf draws a series below a top.
func shapeOf(s series, top int64) shape {
	const wide, gap, high = 10, 2, 100
	var in, out strings.Builder
	for i, a := range s {
		if top == 0 {
			break
		}
		base := high - float64(a.In)/float64(top)*high
		x := i*wide + gap/2
		bar(&in, x, wide-gap, high, base)
		bar(&out, x, wide-gap, base, base-float64(a.Out)/float64(top)*high)
	}
	return shape{len(s) * wide, in.String(), out.String()}
}

// bar adds a rectangle to a path. What would not be seen is left out.
func bar(path *strings.Builder, x, width int, foot, head float64) {
	const visible = 0.05
	if foot-head < visible {
		return
	}
	for _, part := range []string{
		"M", strconv.Itoa(x), " ", short(foot), "V", short(head), "h", strconv.Itoa(width), "V", short(foot), "z",
	} {
		path.WriteString(part)
	}
}

func short(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }

// niceCeiling is the next number of bytes that is round, and whose half is too:
// 1, 2, 3, 4, 6 or 8 times a power of ten of a unit.
func niceCeiling(n int64) int64 {
	const step = 1024
	if n <= 0 {
		return 0
	}
	unit := int64(1)
	for unit <= n/step && unit < 1<<60 {
		unit *= step
	}
	for ten := int64(1); ; ten *= 10 {
		for _, of := range []int64{1, 2, 3, 4, 6, 8} {
			if of*ten >= step {
				return min(unit, 1<<52) * step
			}
			if nice := of * ten * unit; nice >= n || nice < 0 {
				return max(nice, n)
			}
		}
	}
}
