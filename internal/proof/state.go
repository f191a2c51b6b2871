package proof

import (
	"hash/fnv"
	"time"

	"sublet/internal/vps"
)

const (
	// What is not proved is looked for again after firstDelay, then twice that and so
	// on up to lastDelay, and after eagerFor once a day.
	firstDelay = time.Minute
	lastDelay  = time.Hour
	eagerFor   = 7 * 24 * time.Hour
	// What is proved is looked at again after a day, less up to spread, so that those
	// that were made together are not asked for together.
	daily  = 24 * time.Hour
	spread = 4 * time.Hour
	// LostAfter is for how long a proof has to be gone for its name not to be live any
	// more, and lostFailures how often that has to have been seen meanwhile: a host
	// that was off for weeks, or whose clock leapt, looks for as long.
	LostAfter    = 14 * 24 * time.Hour
	lostFailures = 7
)

// News is what a check changed that people are told of.
type News string

// The news.
const (
	NewsNone News = ""
	NewsLive News = "live" // proved, and led to the tenant's guests
	NewsGone News = "gone" // the proof of a live name is gone
	NewsBack News = "back" // it is there again
	NewsLost News = "lost" // not live any more
)

// Next is when a proof is to be looked at. It does not depend on when it is asked,
// and lies in the past for what is late.
func Next(p vps.Proof) time.Time {
	switch {
	case p.Checked.IsZero():
		return p.Since
	case p.Live() || p.Checked.Sub(p.Since) >= eagerFor:
		h := fnv.New64a()
		_, _ = h.Write([]byte(p.Name + "\x00" + p.Tenant + p.Checked.UTC().Format(time.RFC3339Nano)))
		return p.Checked.Add(daily - time.Duration(h.Sum64()%uint64(spread)))
	default:
		delay := lastDelay
		if n := p.Failures - 1; n < 6 {
			delay = min(delay, firstDelay<<max(0, n))
		}
		return p.Checked.Add(delay)
	}
}

// Due tells whether a proof is to be looked at. One that was looked at in the future
// was before the clock was put back.
func Due(p vps.Proof, now time.Time) bool {
	return !Next(p).After(now) || p.Checked.After(now.Add(time.Minute))
}

// After is a proof after a check, and what is new about it. What could not be seen
// changes nothing of a name that is live.
func After(p vps.Proof, r Result, now time.Time) (vps.Proof, News) {
	now = now.UTC().Round(0)
	was := p.State()
	p.Checked, p.Message = now, r.Message()
	outcome, method := r.Outcome()
	switch {
	case outcome == Proved:
		if was == vps.DomainPending || was == vps.DomainLost {
			p.Proved = now
		}
		p.Method, p.Failing, p.Failures = method, time.Time{}, 0
	case outcome == Unknown && p.Live():
		return p, NewsNone
	default:
		p.Failures++
		if p.Live() {
			if p.Failing.IsZero() {
				p.Failing = now
			}
			if now.Sub(p.Failing) >= LostAfter && p.Failures >= lostFailures {
				p.Proved, p.Method, p.Since, p.Failures = time.Time{}, "", now, 1
			}
		}
	}
	return p, news(was, p.State())
}

func news(was, is vps.DomainState) News {
	live := func(s vps.DomainState) bool { return s == vps.DomainLive || s == vps.DomainFailing }
	switch {
	case was == is:
		return NewsNone
	case is == vps.DomainLost:
		return NewsLost
	case is == vps.DomainFailing:
		return NewsGone
	case was == vps.DomainFailing:
		return NewsBack
	case !live(was) && live(is):
		return NewsLive
	default:
		return NewsNone
	}
}
