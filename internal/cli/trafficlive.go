package cli

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// trafficSpeed is how fast traffic is: of a guest, of a public link, or of one
// class of a guest's.
type trafficSpeed struct {
	At time.Time `json:"at"`
	// Guest is empty for a public link.
	Guest      string           `json:"guest"`
	Link       string           `json:"link"`
	Class      vps.TrafficClass `json:"class,omitempty"`
	In         vps.BitRate      `json:"in_rate"`
	Out        vps.BitRate      `json:"out_rate"`
	InPackets  float64          `json:"in_packet_rate"`
	OutPackets float64          `json:"out_packet_rate"`
	// Since is what passed since the first reading.
	Since vps.TrafficCount `json:"since_begin"`
}

// liveRates are the speeds of one moment, for programs.
type liveRates struct {
	Schema int            `json:"schema_version"`
	Rates  []trafficSpeed `json:"rates"`
}

// The bounds of how often --live looks.
const (
	leastInterval = 100 * time.Millisecond
	mostInterval  = time.Hour
)

// trafficLive reads the counters again and again until ctx ends, which is no
// failure. A daemon that is being restarted is waited for.
func (a *app) trafficLive(cmd *cobra.Command, f *trafficFlags, guest string) error {
	if f.interval < leastInterval || f.interval > mostInterval {
		return usage(cmd, "--interval must be from %s to %s", leastInterval, mostInterval)
	}
	client, ctx := a.client(), cmd.Context()
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	watch := speedWatch{byClass: guest != ""}
	screen := liveScreen{app: a, out: f.out, guest: guest}
	first := true
	for {
		reading, err := client.TrafficNow(ctx, guest)
		switch {
		case ctx.Err() != nil:
			return screen.end()
		case err != nil && (first || vps.ErrorCode(err) != vps.CodeUnavailable):
			return about(guest, err)
		case err == nil:
			if first {
				a.say("Press Ctrl-C to end.")
			}
			first = false
			if speeds := watch.next(reading); speeds != nil {
				if err := screen.show(cmd, speeds); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return screen.end()
		case <-tick.C:
		}
	}
}

// speedWatch makes speeds of readings.
type speedWatch struct {
	byClass bool
	last    api.TrafficReading
	begin   map[speedKey]vps.TrafficCount
}

type speedKey struct {
	guest, link string
	class       vps.TrafficClass
}

// sums adds up a reading's counters: without classes dropped traffic is in
// none of them.
func (w *speedWatch) sums(r api.TrafficReading) map[speedKey]vps.TrafficCount {
	sums := map[speedKey]vps.TrafficCount{}
	for _, c := range r.Counters {
		k := speedKey{guest: c.Guest, link: c.Link}
		switch {
		case w.byClass:
			k.class = c.Class
		case c.Class == vps.TrafficDropped:
			continue
		}
		sums[k] = sums[k].Add(c.TrafficCount)
	}
	return sums
}

// next returns the speeds between the last reading and this one, guests first;
// nil for a first one, and for one whose counters began anew. A link that was
// not there before counts from zero.
func (w *speedWatch) next(r api.TrafficReading) []trafficSpeed {
	before, now := w.sums(w.last), w.sums(r)
	took := r.At.Sub(w.last.At).Seconds()
	anew := w.begin == nil || r.Epoch != w.last.Epoch
	w.last = r
	if anew {
		w.begin = now
	}
	if anew || took <= 0 { // or the host's clock was set back
		return nil
	}
	speeds := []trafficSpeed{}
	for k, n := range now {
		o, b := before[k], w.begin[k]
		if n.InBytes < o.InBytes || n.OutBytes < o.OutBytes { // the link was made anew
			o, b = vps.TrafficCount{}, vps.TrafficCount{}
			w.begin[k] = b
		}
		speeds = append(speeds, trafficSpeed{
			At: r.At, Guest: k.guest, Link: k.link, Class: k.class,
			In:         vps.BitRate(math.Round(float64(n.InBytes-o.InBytes) * 8 / took)),
			Out:        vps.BitRate(math.Round(float64(n.OutBytes-o.OutBytes) * 8 / took)),
			InPackets:  float64(n.InPackets-o.InPackets) / took,
			OutPackets: float64(n.OutPackets-o.OutPackets) / took,
			Since:      vps.TrafficCount{InBytes: n.InBytes - b.InBytes, InPackets: n.InPackets - b.InPackets, OutBytes: n.OutBytes - b.OutBytes, OutPackets: n.OutPackets - b.OutPackets},
		})
	}
	slices.SortFunc(speeds, func(a, b trafficSpeed) int {
		switch {
		case (a.Guest == "") != (b.Guest == ""):
			if a.Guest == "" {
				return 1
			}
			return -1
		case a.Class != b.Class:
			return classRank(a.Class) - classRank(b.Class)
		}
		return strings.Compare(a.Guest+" "+a.Link, b.Guest+" "+b.Link)
	})
	return speeds
}

// liveScreen shows speeds: on a terminal in the same place again and again, and
// elsewhere below each other.
type liveScreen struct {
	*app
	out   *output
	guest string
	lines int // that were drawn, and are drawn over
}

func (s *liveScreen) show(cmd *cobra.Command, speeds []trafficSpeed) error {
	speeds, err := filter(cmd, s.out.filters, speedColumns(), speeds)
	if err != nil {
		return err
	}
	switch {
	case s.out.format == formatJSON:
		return encodeLine(s.Stdout, liveRates{api.SchemaVersion, speeds})
	case s.out.format == formatYAML:
		return encodeDocument(s.Stdout, liveRates{api.SchemaVersion, speeds})
	case s.out.format == formatCSV || s.out.format == formatName || s.quiet:
		err := printList(s.app, cmd, s.out, "rates", speedColumns(), speeds)
		s.out.noHeaders = true
		return err
	case len(speeds) == 0:
		return nil
	}
	var b strings.Builder
	terminal := s.IsTerminal(s.Stdout)
	if terminal && s.guest == "" {
		speeds = busiest(speeds, rows(s.Stdout))
	}
	t := speedTable(speeds, s.guest)
	t.fit = terminal // or what is drawn over would not be where it was
	switch again := s.lines > 0; {
	case !terminal || s.Env("TERM") == "dumb":
		if again {
			b.WriteByte('\n')
		}
		b.WriteString(stamp(speeds[0].At) + "\n")
	case again:
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", s.lines) // up, and empty from there on (ECMA-48 CUU, ED)
	}
	if err := t.write(&b, s.barStyle(), columns(s.Stdout, plainWidth)-1, s.out.noHeaders); err != nil {
		return err
	}
	text := b.String()
	s.lines = strings.Count(text, "\n")
	_, err = io.WriteString(s.Stdout, text)
	return err
}

// busiest keeps guests with the most traffic, so many that the table has no more
// lines than a screen, and adds up the others to one; 0 lines is no bound.
func busiest(speeds []trafficSpeed, lines int) []trafficSpeed {
	guests := slices.IndexFunc(speeds, func(s trafficSpeed) bool { return s.Guest == "" })
	if guests < 0 {
		guests = len(speeds)
	}
	// Besides guests there are: the head, the rule, all, the others, where the
	// cursor is, and links.
	const besides = 5
	room := max(lines-besides-(len(speeds)-guests), 1)
	if lines == 0 || guests <= room+1 {
		return speeds
	}
	order := slices.Clone(speeds[:guests])
	slices.SortStableFunc(order, func(a, b trafficSpeed) int { return cmp.Compare(b.In+b.Out, a.In+a.Out) })
	others := trafficSpeed{Guest: fmt.Sprintf("%d others", guests-room)}
	for _, o := range order[room:] {
		others.In, others.Out = others.In+o.In, others.Out+o.Out
		others.InPackets, others.OutPackets = others.InPackets+o.InPackets, others.OutPackets+o.OutPackets
		others.Since = others.Since.Add(o.Since)
	}
	shown := order[:room]
	slices.SortFunc(shown, func(a, b trafficSpeed) int { return cmp.Compare(a.Guest, b.Guest) })
	return slices.Concat(shown, []trafficSpeed{others}, speeds[guests:])
}

// end leaves what was shown last.
func (s *liveScreen) end() error {
	if s.lines > 0 && s.IsTerminal(s.Stderr) {
		_, err := fmt.Fprint(s.Stderr, "\r\x1b[K") // the ^C that the terminal echoed
		return err
	}
	return nil
}

// speedTable shows a line for each guest, or for each class of one guest.
func speedTable(speeds []trafficSpeed, guest string) *barTable {
	t := &barTable{head: []string{"GUEST", "IN", "OUT", "IN PKT/S", "OUT PKT/S", "SO FAR"}, drop: []int{3, 4}}
	if guest != "" {
		t.head[0] = guest
	}
	var sum trafficSpeed
	row := func(label string, s trafficSpeed, bar bool) {
		r := barRow{cells: []string{
			label, trafficRate(s.In), trafficRate(s.Out), packetRate(s.InPackets), packetRate(s.OutPackets),
			trafficAmount(s.Since.Bytes()),
		}}
		if bar {
			r.in, r.out = int64(s.In), int64(s.Out)
		}
		t.rows = append(t.rows, r)
	}
	shown, links := 0, false
	for _, s := range speeds {
		switch {
		case guest != "":
			row(string(s.Class), s, s.Class != vps.TrafficDropped)
			if s.Class == vps.TrafficDropped {
				continue
			}
		case s.Guest == "":
			if !links {
				t.rows = append(t.rows, barRow{})
				links = true
			}
			row(s.Link, s, false)
			continue
		default:
			row(s.Guest, s, true)
		}
		shown++
		sum.In, sum.Out = sum.In+s.In, sum.Out+s.Out
		sum.InPackets, sum.OutPackets = sum.InPackets+s.InPackets, sum.OutPackets+s.OutPackets
		sum.Since = sum.Since.Add(s.Since)
	}
	if shown > 1 {
		at := slices.IndexFunc(t.rows, func(r barRow) bool { return r.cells == nil })
		row("all", sum, false)
		last := t.rows[len(t.rows)-1]
		t.rows = t.rows[:len(t.rows)-1]
		if at < 0 {
			t.rows = append(t.rows, barRow{}, last)
		} else {
			t.rows = slices.Insert(t.rows, at+1, last)
		}
	}
	return t
}

func packetRate(p float64) string { return strconv.FormatFloat(p, 'f', 0, 64) }

func speedColumns() []column[trafficSpeed] {
	return []column[trafficSpeed]{
		{key: "guest", text: func(s trafficSpeed) string { return s.Guest }},
		{key: "link", text: func(s trafficSpeed) string { return s.Link }},
		{key: "class", text: func(s trafficSpeed) string { return string(s.Class) }, wide: true},
		{key: "in", text: func(s trafficSpeed) string { return trafficRate(s.In) }, raw: func(s trafficSpeed) string { return strconv.FormatInt(int64(s.In), 10) }},
		{key: "out", text: func(s trafficSpeed) string { return trafficRate(s.Out) }, raw: func(s trafficSpeed) string { return strconv.FormatInt(int64(s.Out), 10) }},
		{key: "in_packets", text: func(s trafficSpeed) string { return packetRate(s.InPackets) }},
		{key: "out_packets", text: func(s trafficSpeed) string { return packetRate(s.OutPackets) }},
		{key: "time", text: func(s trafficSpeed) string { return stamp(s.At) }},
	}
}
