package meter

import (
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
