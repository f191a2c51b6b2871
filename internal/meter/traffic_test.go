package meter

import (
	"fmt"
	"slices"
	"testing"
	"testing/quick"
	"time"

	"sublet/internal/vps"
)

func trafficRow(guest string, day int, class vps.TrafficClass, in, out int64) vps.TrafficRow {
	return vps.TrafficRow{
		GuestID: guest, Guest: guest, Step: vps.StepDay, Start: time.Date(2026, 10, day, 0, 0, 0, 0, time.UTC),
		TrafficKey:   vps.TrafficKey{Class: class, Family: 4},
		TrafficCount: vps.TrafficCount{InBytes: in, InPackets: in / 1000, OutBytes: out, OutPackets: out / 1000},
	}
}

// TestNameTraffic goes from Shanghai to New York, in the middle of a day, and
// back.
func TestNameTraffic(t *testing.T) {
	t.Parallel()
	zone := func(name string) *time.Location {
		z, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	east, west := zone("Asia/Shanghai"), zone("America/New_York")
	began := func(step vps.TrafficStep, day int, zone *time.Location) vps.TrafficRow {
		r := trafficRow("a", 1, vps.TrafficInternet, 1, 1)
		r.Step, r.Start = step, step.Begin(time.Date(2026, 11, day, 12, 0, 0, 0, zone), zone).UTC()
		return r
	}
	other := began(vps.StepDay, 2, west)
	other.GuestID, other.Guest = "b", "b"
	days := []vps.TrafficRow{began(vps.StepDay, 1, east), began(vps.StepDay, 2, east), began(vps.StepDay, 2, west), other, began(vps.StepDay, 3, west), began(vps.StepDay, 4, east)}
	months := []vps.TrafficRow{began(vps.StepMonth, 1, east), began(vps.StepMonth, 1, west)}
	now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	for _, zone := range []*time.Location{east, west} {
		for _, c := range []struct {
			rows []vps.TrafficRow
			want string
		}{
			{days, "11-01 a 1; 11-02 a 2; 11-02 b 1; 11-03 a 1; 11-04 a 1; "},
			{months, "11-01 a 2; "},
			{[]vps.TrafficRow{began(vps.StepDay, 1, zone), began(vps.StepDay, 2, zone)}, "11-01 a 1; 11-02 a 1; "},
		} {
			got := ""
			for _, r := range NameTraffic(slices.Clone(c.rows), zone, now) {
				if !r.Step.Begin(r.Start, zone).Equal(r.Start) {
					t.Errorf("%s: %s begins at %s", zone, r.Step, r.Start)
				}
				if began := r.Began(); (r.InBytes > 1 || c.want == "11-01 a 2; ") && !began.Equal(r.Step.Begin(time.Date(2026, 11, r.Start.Day(), 12, 0, 0, 0, east), east)) {
					t.Errorf("%s: what is joined of %s began at %s", zone, r.Start, began)
				}
				got += fmt.Sprintf("%s %s %d; ", r.Start.Format("01-02"), r.Guest, r.InBytes)
			}
			if got != c.want {
				t.Errorf("%s: got %s, want %s", zone, got, c.want)
			}
		}
	}
}

func TestSelectTraffic(t *testing.T) {
	t.Parallel()
	rows := []vps.TrafficRow{
		trafficRow("a", 1, vps.TrafficInternet, 10, 10),
		trafficRow("a", 2, vps.TrafficInternet, 1, 1),
		trafficRow("b", 2, vps.TrafficInternet, 1, 1),
		trafficRow("b", 2, vps.TrafficDropped, 1000, 1000),
		trafficRow("a", 3, vps.TrafficInternet, 5, 5),
	}
	days := func(rows []vps.TrafficRow) (days []int) {
		for _, r := range rows {
			days = append(days, r.Start.Day())
		}
		return days
	}
	for _, c := range []struct {
		what string
		got  []vps.TrafficRow
		want []int
	}{
		{"all", NewestTraffic(rows, 0), []int{1, 2, 2, 2, 3}},
		{"the newest two", NewestTraffic(rows, 2), []int{2, 2, 2, 3}},
		{"more than there are", NewestTraffic(rows, 20), []int{1, 2, 2, 2, 3}},
		{"the biggest two, without drops", TopTraffic(rows, 2), []int{1, 3}},
		{"the sum", SumTraffic(rows), []int{1, 2, 2, 3}},
	} {
		got := days(c.got)
		if len(got) != len(c.want) {
			t.Errorf("%s: days %v, want %v", c.what, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: days %v, want %v", c.what, got, c.want)
				break
			}
		}
	}
	if sum := SumTraffic(rows); sum[2].InBytes != 2 || sum[2].Class != vps.TrafficInternet || sum[2].Guest != "" || sum[2].GuestID != "" {
		t.Errorf("%+v", sum)
	}
}

// Whatever was counted, the parts of a check add up to the difference, and it
// is in order exactly when guests had no more than the links and the
// tolerance.
func TestCheckTrafficAddsUp(t *testing.T) {
	t.Parallel()
	holds := func(host, internet, relayed, dropped uint32, headerless bool) bool {
		u := UplinkTraffic{
			Links: []string{"eth0"},
			Host:  []vps.TrafficRow{trafficRow("", 1, vps.TrafficUplink, int64(host), int64(host)/2)},
			Guests: []vps.TrafficRow{
				trafficRow("a", 1, vps.TrafficInternet, int64(internet), int64(internet)/3),
				trafficRow("a", 1, vps.TrafficHost, int64(relayed), int64(relayed)),
				trafficRow("a", 1, vps.TrafficDropped, int64(dropped), int64(dropped)),
				trafficRow("a", 1, vps.TrafficBetween, 1<<40, 1<<40),
			},
		}
		if headerless {
			u.Headerless = u.Links
		}
		c := CheckTraffic(u)
		rest := c.Lines[2].TrafficCount
		if minus(c.Lines[0].TrafficCount, c.Lines[1].TrafficCount) != rest {
			t.Logf("the difference is %+v", c.Lines)
			return false
		}
		for _, l := range c.Lines[3:] {
			if !l.Part {
				t.Logf("%+v is no part", l)
				return false
			}
			rest = minus(rest, l.TrafficCount)
		}
		in, out := int64(internet), int64(internet)/3
		if headerless {
			in, out = in-vps.FrameBytes*(in/1000), out-vps.FrameBytes*(out/1000)
		}
		fits := in <= int64(host)+c.Tolerance.InBytes && out <= int64(host)/2+c.Tolerance.OutBytes
		if rest != (vps.TrafficCount{}) || c.OK != fits {
			t.Logf("%+v remains, OK %v: %+v", rest, c.OK, c.Lines)
			return false
		}
		return true
	}
	if err := quick.Check(holds, &quick.Config{MaxCount: 5000}); err != nil {
		t.Error(err)
	}
}
