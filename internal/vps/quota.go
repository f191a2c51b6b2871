package vps

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// QuotaScope says whose traffic a quota counts.
type QuotaScope string

// The scopes of quotas.
const (
	QuotaHost   QuotaScope = "host"   // the public link's own counter
	QuotaTenant QuotaScope = "tenant" // all guests of a tenant together
	QuotaGuest  QuotaScope = "guest"
)

// QuotaCount says which direction a quota counts, as the guest sees it; for
// the host in is what the public link received.
type QuotaCount string

// The ways to count.
const (
	CountBoth QuotaCount = "in+out"
	CountIn   QuotaCount = "in"
	CountOut  QuotaCount = "out"
	CountMax  QuotaCount = "max" // the larger one of in and out
)

// QuotaAction is what happens when a part of a quota is used up.
type QuotaAction string

// The actions, the mildest first.
const (
	ActionNotify   QuotaAction = "notify"
	ActionThrottle QuotaAction = "throttle"
	ActionSuspend  QuotaAction = "suspend-network"
	ActionStop     QuotaAction = "stop"
)

// QuotaStep is a part of a quota in percent, and what happens when it is used
// up.
type QuotaStep struct {
	Percent int         `json:"percent"`
	Action  QuotaAction `json:"action"`
	// Rate is what each direction is throttled to; 0 for other actions.
	Rate BitRate `json:"rate,omitempty"`
}

// Quota is an amount of billed traffic (TrafficClass.Billed) in a month.
type Quota struct {
	Scope QuotaScope `json:"scope"`
	// Name is the tenant's or the guest's; empty for the host.
	Name string `json:"name"`
	// Limit is in bytes of frames, as the ledger counts, for each month.
	Limit Bytes      `json:"limit"`
	Count QuotaCount `json:"count"`
	// ResetDay is the day of the month on which a new month begins, at midnight
	// in Timezone; 29 to 31 mean the last day of months that are shorter.
	ResetDay int    `json:"reset_day"`
	Timezone string `json:"timezone"`
	// Steps have rising percentages; several may have the same.
	Steps []QuotaStep `json:"steps"`
	// Grace is how long after a step is reached that throttles, suspends or
	// stops the action is put off.
	Grace Duration `json:"grace"`
	// Topup is added to Limit in the month that TopupMonth names, as
	// Quota.Month; in others it is nothing.
	Topup      Bytes  `json:"topup"`
	TopupMonth string `json:"topup_month"`
	// LiftedMonth is the month in which the quota is not enforced; notices go
	// out all the same.
	LiftedMonth string `json:"lifted_month"`
}

// MaxQuotaSteps bounds the steps of a quota, and MaxQuotaPercent each of them.
const (
	MaxQuotaSteps   = 16
	MaxQuotaPercent = 1000
	MaxQuotaGrace   = Duration(31 * 24 * time.Hour)
)

// NewQuota returns a quota with the defaults of all that its owner need not
// say. Timezone is the host's.
func NewQuota(scope QuotaScope, name, timezone string) Quota {
	return Quota{
		Scope: scope, Name: name, Count: CountBoth, ResetDay: 1, Timezone: timezone,
		Steps: []QuotaStep{{80, ActionNotify, 0}, {100, ActionNotify, 0}},
	}
}

// ID names the quota among those of the host: "host", "tenant/bob",
// "guest/alice".
func (q *Quota) ID() string {
	if q.Scope == QuotaHost {
		return string(QuotaHost)
	}
	return string(q.Scope) + "/" + q.Name
}

// CompareQuotas orders quotas: the host's, tenants', guests', each by name.
func CompareQuotas(a, b Quota) int {
	rank := func(s QuotaScope) int {
		switch s {
		case QuotaHost:
			return 0
		case QuotaTenant:
			return 1
		default:
			return 2
		}
	}
	return cmp.Or(cmp.Compare(rank(a.Scope), rank(b.Scope)), cmp.Compare(a.Name, b.Name))
}

// Period returns the quota's month that holds t: it begins at start and ends
// before end. A zone that is unknown counts as UTC. Midnight that a zone skips
// is the first moment after it.
func (q *Quota) Period(t time.Time) (start, end time.Time) {
	zone, err := time.LoadLocation(q.Timezone)
	if err != nil {
		zone = time.UTC
	}
	local := t.In(zone)
	reset := func(year int, month time.Month) time.Time {
		last := time.Date(year, month+1, 0, 0, 0, 0, 0, zone).Day()
		day := min(q.ResetDay, last)
		begin := time.Date(year, month, day, 0, 0, 0, 0, zone)
		for begin.Day() != day { // normalised to the day before
			begin = begin.Add(30 * time.Minute)
		}
		return begin
	}
	start = reset(local.Year(), local.Month())
	if t.Before(start) {
		return reset(local.Year(), local.Month()-1), start
	}
	return start, reset(local.Year(), local.Month()+1)
}

// Month names the quota's month that holds t by the day on which it begins:
// "2026-10-31".
func (q *Quota) Month(t time.Time) string {
	start, _ := q.Period(t)
	return start.Format(time.DateOnly)
}

// LimitAt is the limit in the month that holds t, with what was topped up.
func (q *Quota) LimitAt(t time.Time) Bytes {
	if q.Topup != 0 && q.TopupMonth == q.Month(t) {
		return q.Limit + q.Topup
	}
	return q.Limit
}

// LiftedAt tells whether the quota is not enforced in the month that holds t.
func (q *Quota) LiftedAt(t time.Time) bool {
	return q.LiftedMonth != "" && q.LiftedMonth == q.Month(t)
}

// Used is what counts of traffic in both directions.
func (c QuotaCount) Used(in, out int64) int64 {
	switch c {
	case CountIn:
		return in
	case CountOut:
		return out
	case CountMax:
		return max(in, out)
	default:
		return in + out
	}
}

// At is the number of bytes at which a step of a limit is reached, rounded up.
func (s QuotaStep) At(limit Bytes) int64 {
	whole, rest := int64(limit)/100, int64(limit)%100
	if whole > math.MaxInt64/int64(max(s.Percent, 1))-int64(s.Percent) {
		return math.MaxInt64
	}
	return whole*int64(s.Percent) + (rest*int64(s.Percent)+99)/100
}

// ParseQuotaStep reads "80%=notify", "100%=throttle:1Mbit",
// "100%=suspend-network" or "110%=stop". It returns an Error with CodeInvalid
// and no field.
func ParseQuotaStep(s string) (QuotaStep, error) {
	bad := func() (QuotaStep, error) {
		return QuotaStep{}, Invalid("", "%q is not a step of a quota; write for example 80%%=notify, 100%%=throttle:1Mbit, 100%%=suspend-network or 110%%=stop", s)
	}
	part, action, ok := strings.Cut(strings.TrimSpace(s), "=")
	number, percent := strings.CutSuffix(part, "%")
	n, err := strconv.Atoi(number)
	if !ok || !percent || err != nil {
		return bad()
	}
	step := QuotaStep{Percent: n}
	name, rate, throttled := strings.Cut(action, ":")
	step.Action = QuotaAction(name)
	if throttled {
		if step.Rate, err = ParseBitRate(rate); err != nil {
			return QuotaStep{}, err
		}
	}
	if err := step.validate(""); err != nil {
		return QuotaStep{}, err
	}
	return step, nil
}

// String writes the step as ParseQuotaStep reads it.
func (s QuotaStep) String() string {
	text := fmt.Sprintf("%d%%=%s", s.Percent, s.Action)
	if s.Action == ActionThrottle {
		text += ":" + s.Rate.String()
	}
	return text
}

func (s QuotaStep) validate(field string) error {
	switch s.Action {
	case ActionThrottle:
		if s.Rate < MinBandwidth {
			return Invalid(field, "a throttle needs a rate of at least %s, as in throttle:1Mbit", MinBandwidth)
		}
	case ActionNotify, ActionSuspend, ActionStop:
		if s.Rate != 0 {
			return Invalid(field, "only throttle has a rate, %s has none", s.Action)
		}
	default:
		return Invalid(field, "%q is not what a quota can do; use notify, throttle:RATE, suspend-network or stop", string(s.Action))
	}
	if s.Percent < 1 || s.Percent > MaxQuotaPercent {
		return Invalid(field, "%d%% is out of range; use 1%% to %d%%", s.Percent, MaxQuotaPercent)
	}
	return nil
}

// Validate checks all that can be known without the host. field is what the
// quota is called in the input.
func (q *Quota) Validate(field string) error {
	switch q.Scope {
	case QuotaHost:
		if q.Name != "" {
			return Invalid(field+".name", "the host's quota has no name")
		}
	case QuotaTenant, QuotaGuest:
		if err := ValidName(field+".name", q.Name); err != nil {
			return err
		}
	default:
		return Invalid(field+".scope", "%q is not whose traffic a quota counts; use host, tenant or guest", string(q.Scope))
	}
	switch {
	case q.Limit <= 0:
		return Invalid(field+".limit", "a quota of %d bytes lets nothing through; use at least 1 byte, or remove the quota with `sublet quota remove`", int64(q.Limit))
	case q.Topup < 0 || q.Topup > math.MaxInt64-q.Limit:
		return Invalid(field+".topup", "%d bytes more are out of range; limit and top-up together stay below 2^63 bytes", int64(q.Topup))
	case q.ResetDay < 1 || q.ResetDay > 31:
		return Invalid(field+".reset_day", "%d is not a day of a month; use 1 to 31, and 29 to 31 mean the last day of shorter months", q.ResetDay)
	case q.Grace < 0 || q.Grace > MaxQuotaGrace:
		return Invalid(field+".grace", "%s is out of range; use 0 to %s", q.Grace, MaxQuotaGrace)
	case len(q.Steps) > MaxQuotaSteps:
		return Invalid(field+".steps", "%d steps are too many; use at most %d", len(q.Steps), MaxQuotaSteps)
	}
	switch q.Count {
	case CountBoth, CountIn, CountOut, CountMax:
	default:
		return Invalid(field+".count", "%q is not a way to count; use in+out, in, out or max", string(q.Count))
	}
	if err := validZone(field+".timezone", q.Timezone); err != nil {
		return err
	}
	for i, s := range q.Steps {
		at := fmt.Sprintf("%s.steps[%d]", field, i)
		if err := s.validate(at); err != nil {
			return err
		}
		if i > 0 && s.Percent < q.Steps[i-1].Percent {
			return Invalid(at, "%d%% stands behind %d%%; put the lowest first", s.Percent, q.Steps[i-1].Percent)
		}
	}
	return nil
}

// QuotaUse is how much of a quota is used.
type QuotaUse struct {
	Quota Quota `json:"quota"`
	// Start and End bound the quota's present month.
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// In, Out and Used are bytes in it, Used by the quota's way to count; Limit
	// has what was topped up.
	In    int64 `json:"in"`
	Out   int64 `json:"out"`
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"`
	// Action is what is in force, empty for nothing, Rate that of a throttle.
	Action QuotaAction `json:"action,omitempty"`
	Rate   BitRate     `json:"rate,omitempty"`
	// GraceUntil is when what was put off comes into force; nil for nothing.
	GraceUntil *time.Time `json:"grace_until,omitempty"`
	// ReachedAt is when the limit will be reached if it goes on as in the last
	// days; nil when that is not in this month, or not known.
	ReachedAt *time.Time `json:"reached_at,omitempty"`
}

// QuotaAccount is what a quota has counted since Start, the begin of its month.
type QuotaAccount struct {
	ID      string
	Start   time.Time
	In, Out int64
}

// NetworkQuota is the part of a quota that the kernel holds: what is left until
// its next step is reached.
type NetworkQuota struct {
	ID    string
	Scope QuotaScope
	// Links are those of the guests that it counts, sorted; empty for the
	// host's, which counts the public links.
	Links []string
	Count QuotaCount
	// At is when In and Out, in bytes of frames, were counted: they go on from
	// there.
	At      time.Time
	In, Out int64
	// Block is the use in bytes from which on nothing passes any more, Throttle
	// that from which on each direction has Rate. Negative means never.
	Block, Throttle int64
	Rate            BitRate
}

// validZone wants the name of a zone that is known.
func validZone(field, name string) error {
	// LoadLocation takes "" and "Local" for what the server happens to have.
	if name == "" || name == "Local" || len(name) > 64 || !zonePattern.MatchString(name) {
		return Invalid(field, "%q is not a time zone; write for example Etc/UTC or Asia/Shanghai", name)
	}
	if _, err := time.LoadLocation(name); err != nil {
		return Invalid(field, "there is no time zone %q; write for example Etc/UTC or Asia/Shanghai", name)
	}
	return nil
}
