package web

import (
	"strconv"
	"strings"
	"time"

	"sublet/internal/vps"
)

// What the page and the text form say alike.

// size writes bytes with three digits: "1.46 GiB", as vnStat and the command
// line have units.
func size(n int64) string {
	number, unit := scaled(n)
	return number + " " + unit + "B"
}

// shortSize is size for narrow places: "1.46G".
func shortSize(n int64) string {
	number, unit := scaled(n)
	if unit == "" {
		return number + "B"
	}
	return number + unit[:1]
}

// roundSize is size without zeros that say nothing: "1.5 GiB", "20 MiB".
func roundSize(n int64) string {
	if n == 0 {
		return ""
	}
	number, unit := scaled(n)
	if strings.Contains(number, ".") {
		number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
	}
	return number + " " + unit + "B"
}

func scaled(n int64) (number, unit string) {
	const step = 1024
	units := []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	value, at := float64(n), 0
	// What would be rounded to four digits is told in the next unit.
	for value >= step-0.5 && at < len(units)-1 {
		value /= step
		at++
	}
	digits := 0
	switch {
	case at == 0 || value >= 99.95:
	case value >= 9.995:
		digits = 1
	default:
		digits = 2
	}
	return strconv.FormatFloat(value, 'f', digits, 64), units[at]
}

// rate writes bits per second.
func rate(r vps.BitRate) string {
	value, units, at := float64(r), []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"}, 0
	for value >= 1000 && at < len(units)-1 {
		value /= 1000
		at++
	}
	return strconv.FormatFloat(value, 'f', -1, 64) + " " + units[at]
}

// title says what the page is about.
func title(v *view) string {
	switch {
	case v.Guest != "":
		return v.Guest
	case v.Tenant != "":
		return v.Tenant
	default:
		return v.Host
	}
}

// quotaName says whose quota it is.
func quotaName(lang *language, v *view, u *vps.QuotaUse) string {
	switch u.Quota.Scope {
	case vps.QuotaHost:
		return lang.text("quota.host")
	case vps.QuotaTenant:
		if v.Tenant != "" {
			return lang.text("quota.all")
		}
		return lang.text("quota.tenant", u.Quota.Name)
	case vps.QuotaGuest:
	}
	return lang.text("quota.guest", u.Quota.Name)
}

// resetDate is when a quota's month ends, by the quota's own clock, which is
// named when it is not the page's.
func resetDate(lang *language, now time.Time, u *vps.QuotaUse) string {
	zone := vps.Zone(u.Quota.Timezone)
	date := lang.date("day", u.End.In(zone))
	if zone.String() != now.Location().String() {
		date += " (" + zone.String() + ")"
	}
	return date
}

// counted says which direction a quota counts.
func counted(lang *language, u *vps.QuotaUse) string {
	return lang.text("count." + string(u.Quota.Count))
}

// inForce says what a quota does now.
func inForce(lang *language, now time.Time, u *vps.QuotaUse) string {
	switch {
	case u.Quota.LiftedAt(now):
		return lang.text("force.lifted")
	case u.Action == vps.ActionThrottle:
		return lang.text("force.throttle", rate(u.Rate))
	case u.Action == vps.ActionSuspend:
		return lang.text("force.suspend")
	case u.Action == vps.ActionStop:
		return lang.text("force.stop")
	case u.GraceUntil != nil:
		return lang.text("force.grace", lang.date("full", u.GraceUntil.In(now.Location())))
	default:
		return lang.text("force.none")
	}
}

// forecast says when a quota will be used up; empty when that is not known, or
// not this month.
func forecast(lang *language, now time.Time, u *vps.QuotaUse) string {
	if u.ReachedAt == nil {
		return ""
	}
	return lang.text("quota.reached", lang.date("day", u.ReachedAt.In(now.Location())))
}

// tick is a label below a plot, at a step of it.
type tick struct {
	at    int
	label string
}

// ticks are where the time is told below a plot: every few hours, every week
// of days, each month.
func ticks(lang *language, p *plot) []tick {
	var list []tick
	const hours, days = 4, 7
	for i, start := range p.starts {
		switch p.Name {
		case lastDay:
			if start.Minute() == 0 && start.Hour()%hours == 0 {
				list = append(list, tick{i, lang.date("hour", start)})
			}
		case lastMonth:
			if (len(p.starts)-1-i)%days == 0 {
				list = append(list, tick{i, lang.date("short", start)})
			}
		default:
			list = append(list, tick{i, lang.date("month", start)})
		}
	}
	return list
}

// moment names a step of a plot.
func moment(lang *language, p *plot, at int) string {
	switch p.Name {
	case lastDay:
		return lang.date("time", p.starts[at])
	case lastMonth:
		return lang.date("short", p.starts[at])
	default:
		return lang.date("monthyear", p.starts[at])
	}
}
