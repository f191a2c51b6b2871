package vps

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	Percent int         `json:"percent" doc:"How much of the limit is used up, 1 to 1000."`
	Action  QuotaAction `json:"action" doc:"What happens then."`
	// Rate is what each direction is throttled to; 0 for other actions.
	Rate BitRate `json:"rate,omitempty" doc:"What each direction is throttled to, in bits per second; left out for other actions."`
}

// Quota is an amount of billed traffic (TrafficClass.Billed) in a month.
type Quota struct {
	Scope QuotaScope `json:"scope" doc:"Whose traffic it counts."`
	// Name is the tenant's or the guest's; empty for the host.
	Name string `json:"name" doc:"Of the tenant or the guest; empty for the host."`
	// Limit is in bytes of frames, as the ledger counts, for each month.
	Limit Bytes      `json:"limit" doc:"Bytes in each month."`
	Count QuotaCount `json:"count" doc:"What counts."`
	// ResetDay is the day of the month on which a new month begins, at midnight
	// in Timezone; 29 to 31 mean the last day of months that are shorter.
	ResetDay int    `json:"reset_day" doc:"Day on which a new month begins; 29 to 31 mean the last day of shorter months."`
	Timezone string `json:"timezone" doc:"Zone in which it begins at midnight."`
	// Steps have rising percentages; several may have the same.
	Steps []QuotaStep `json:"steps" doc:"What happens when a part of the limit is used up, the lowest first."`
	// Grace is how long after a step is reached that throttles, suspends or
	// stops the action is put off.
	Grace Duration `json:"grace" doc:"How long after a step is reached what is more than a notice is put off."`
	// Topup is added to Limit in the month that TopupMonth names, as
	// Quota.Month; in others it is nothing.
	Topup      Bytes  `json:"topup" doc:"What is added to the limit in one month."`
	TopupMonth string `json:"topup_month" doc:"The day on which that month begins; empty without one."`
	// LiftedMonth is the month in which the quota is not enforced; notices go
	// out all the same.
	LiftedMonth string `json:"lifted_month" doc:"The day on which the month begins in which nothing is enforced; empty without one."`
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

// Whose says in words whose traffic the quota counts: "the host", "the tenant
// bob", "the guest alice".
func (q *Quota) Whose() string {
	if q.Scope == QuotaHost {
		return "the host"
	}
	return "the " + string(q.Scope) + " " + q.Name
}

// NoQuota is the error for a quota that does not exist.
func NoQuota(scope QuotaScope, name string) error {
	q := Quota{Scope: scope, Name: name}
	return Errorf(CodeNotFound, "%s has no quota; `sublet quota list` shows all", q.Whose())
}

// CompareQuotas orders quotas: the host's, tenants', guests', each by name.
func CompareQuotas(a, b Quota) int {
	rank := func(s QuotaScope) int {
		return slices.Index([]QuotaScope{QuotaHost, QuotaTenant, QuotaGuest}, s)
	}
	return cmp.Or(cmp.Compare(rank(a.Scope), rank(b.Scope)), cmp.Compare(a.Name, b.Name))
}

// Period returns the quota's month that holds t: it begins at start and ends
// before end, where the next one begins. Both are in the quota's zone; one that
// is unknown counts as UTC.
func (q *Quota) Period(t time.Time) (start, end time.Time) {
	zone, err := loadZone(q.Timezone)
	if err != nil {
		zone = time.UTC
	}
	year, month, _ := t.In(zone).Date()
	// A clock that is set back at midnight shows the month before once more, so
	// the month that it shows is a first guess only.
	for t.Before(q.reset(year, month, zone)) {
		month--
	}
	for start = q.reset(year, month, zone); ; start = end {
		month++
		if end = q.reset(year, month, zone); t.Before(end) {
			return start, end
		}
	}
}

// reset returns when the quota's month begins in a month of the calendar, which
// may be out of range as time.Date takes it.
func (q *Quota) reset(year int, month time.Month, zone *time.Location) time.Time {
	last := time.Date(year, month+1, 0, 0, 0, 0, 0, time.UTC).Day()
	return startOfDay(year, month, min(q.ResetDay, last), zone)
}

// startOfDay returns the first moment of a day: its first midnight where clocks
// are set back to it, and where midnight or the whole day is skipped the moment
// at which clocks are set forward.
func startOfDay(year int, month time.Month, day int, zone *time.Location) time.Time {
	want := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	shown := func(t time.Time) time.Time { // the clock on the wall, as if it were UTC
		_, offset := t.Zone()
		return t.UTC().Add(time.Duration(offset) * time.Second)
	}
	t := time.Date(year, month, day, 0, 0, 0, 0, zone)
	since, until := t.ZoneBounds()
	switch s := shown(t); {
	case s.Before(want):
		return until
	case s.After(want):
		return since
	case since.IsZero():
		return t
	}
	_, offset := since.Add(-1).Zone()
	if first := want.Add(-time.Duration(offset) * time.Second).In(zone); first.Before(since) && shown(first).Equal(want) {
		return first
	}
	return t
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

// Used is what counts of traffic in both directions, neither negative.
func (c QuotaCount) Used(in, out int64) int64 {
	switch c {
	case CountIn:
		return in
	case CountOut:
		return out
	case CountMax:
		return max(in, out)
	case CountBoth:
	}
	return SumBytes(in, out)
}

// At is the use in bytes at which a step of a limit is reached, rounded up, and
// 2^63-1 when it is beyond that.
func (s QuotaStep) At(limit Bytes) int64 {
	high, low := bits.Mul64(uint64(limit), uint64(s.Percent))
	low, carry := bits.Add64(low, 99, 0)
	if high += carry; high >= 100 {
		return math.MaxInt64
	}
	at, _ := bits.Div64(high, low, 100)
	return int64(min(at, math.MaxInt64))
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
			return QuotaStep{}, Invalid("", "%q is not a rate; write a number and a unit, for example %d%%=throttle:1Mbit", rate, n)
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
		if s.Rate < MinBandwidth || s.Rate > MaxBandwidth {
			return Invalid(field, "a throttle needs a rate from %s to %s, for example %d%%=throttle:1Mbit", MinBandwidth, MaxBandwidth, s.Percent)
		}
	case ActionNotify, ActionSuspend, ActionStop:
		if s.Rate != 0 {
			return Invalid(field, "a rate belongs to throttle only, and not to %s", s.Action)
		}
	default:
		return Invalid(field, "%q is not what a quota can do; use notify, throttle:RATE, suspend-network or stop", string(s.Action))
	}
	if s.Percent < 1 || s.Percent > MaxQuotaPercent {
		return Invalid(field, "%d%% is out of range; use 1%% to %d%%", s.Percent, MaxQuotaPercent)
	}
	return nil
}

// Validate checks all that can be told from the quota alone. It returns the
// first fault, naming the field, or nil.
func (q *Quota) Validate() error {
	if err := q.validate(); err != nil {
		return err
	}
	return ValidZone("timezone", q.Timezone)
}

// validate is Validate for a quota that was good once: its zone may be unknown
// since.
func (q *Quota) validate() error {
	switch q.Scope {
	case QuotaHost:
		if q.Name != "" {
			return Invalid("name", "the host's quota has no name")
		}
	case QuotaTenant, QuotaGuest:
		if err := ValidName("name", q.Name); err != nil {
			return err
		}
	default:
		return Invalid("scope", "%q is not whose traffic a quota counts; use host, tenant or guest", string(q.Scope))
	}
	switch {
	case q.Limit == 0:
		return Invalid("limit", "a quota of zero lets nothing through; give a limit of at least 1 byte, for example 500GiB")
	case q.Limit < 0:
		return Invalid("limit", "%d bytes are out of range; give 1 byte to 2^63-1", int64(q.Limit))
	case q.ResetDay < 1 || q.ResetDay > 31:
		return Invalid("reset_day", "%d is not a day of a month; use 1 to 31, where 29 to 31 mean the last day of shorter months", q.ResetDay)
	case q.Grace < 0 || q.Grace > MaxQuotaGrace:
		return Invalid("grace", "%s is out of range; use 0s to %s, which is 31 days", q.Grace, MaxQuotaGrace)
	}
	switch q.Count {
	case CountBoth, CountIn, CountOut, CountMax:
	default:
		return Invalid("count", "%q is not a way to count; use in+out, in, out or max", string(q.Count))
	}
	if err := validZoneName("timezone", q.Timezone); err != nil {
		return err
	}
	if err := q.validateMonths(); err != nil {
		return err
	}
	return q.validateSteps()
}

// validateMonths checks what holds for one month only.
func (q *Quota) validateMonths() error {
	switch {
	case q.Topup < 0 || q.Topup > math.MaxInt64-q.Limit:
		return Invalid("topup", "%d bytes more are out of range; limit and top-up together stay below 2^63 bytes", int64(q.Topup))
	case q.Topup > 0 && q.TopupMonth == "":
		return Invalid("topup_month", "a top-up needs the month that it is for; write the day on which it begins, for example 2026-10-31")
	}
	for _, m := range [][2]string{{"topup_month", q.TopupMonth}, {"lifted_month", q.LiftedMonth}} {
		if _, err := time.Parse(time.DateOnly, m[1]); m[1] != "" && err != nil {
			return q.noDay(m[0], m[1])
		}
	}
	return nil
}

// noDay is the error for what is no day of the calendar.
func (q *Quota) noDay(field, text string) error {
	return Invalid(field, "%q is not a day; write the one on which the quota's month begins, for example 2026-10-%02d", text, q.ResetDay)
}

// ValidMonth wants month to be a day on which a month of the quota begins, as
// Month names it; field is named in the error.
func (q *Quota) ValidMonth(field, month string) error {
	day, err := time.Parse(time.DateOnly, month)
	if err != nil {
		return q.noDay(field, month)
	}
	zone, err := loadZone(q.Timezone)
	if err != nil {
		zone = time.UTC
	}
	begin := startOfDay(day.Year(), day.Month(), day.Day(), zone)
	if is := q.Month(begin); is != month {
		return Invalid(field, "no month of the quota begins on %s; with the reset day %d the one that holds this day begins on %s", month, q.ResetDay, is)
	}
	return nil
}

func (q *Quota) validateSteps() error {
	if len(q.Steps) > MaxQuotaSteps {
		return Invalid("steps", "%d steps are too many; use at most %d", len(q.Steps), MaxQuotaSteps)
	}
	for i, s := range q.Steps {
		at := fmt.Sprintf("steps[%d]", i)
		if err := s.validate(at); err != nil {
			return err
		}
		if i > 0 && s.Percent < q.Steps[i-1].Percent {
			return Invalid(at, "%d%% stands behind %d%%; put the lowest first", s.Percent, q.Steps[i-1].Percent)
		}
		if slices.ContainsFunc(q.Steps[:i], func(o QuotaStep) bool { return o.Percent == s.Percent && o.Action == s.Action }) {
			return Invalid(at, "there are two steps for %s at %d%%; keep one", s.Action, s.Percent)
		}
	}
	return nil
}

// Warning is what its owner should know of a quota that lets traffic pass once
// all of it is used, for some time or without an end, or that has a step which
// never acts: a sentence, or "" for one that does something at once.
func (q *Quota) Warning() string {
	acts := func(s QuotaStep) bool { return s.Action != ActionNotify }
	i := slices.IndexFunc(q.Steps, acts)
	const way = "`sublet quota set` makes it a hard limit with a step --at 100%=throttle:1Mbit, --at 100%=suspend-network or --at 100%=stop"
	switch {
	case len(q.Steps) == 0:
		return fmt.Sprintf("the quota of %s does nothing but count: nobody is told, and traffic goes on when it is used up; %s", q.Whose(), way)
	case i < 0:
		return fmt.Sprintf("the quota of %s does nothing but tell of its use: traffic goes on when it is used up; %s", q.Whose(), way)
	case q.Steps[i].Percent > 100:
		return fmt.Sprintf("the quota of %s lets traffic go on when it is used up, until %s; %s", q.Whose(), q.Steps[i], way)
	case q.Grace > 0:
		return fmt.Sprintf("the quota of %s lets traffic go on for %s after it is used up, and without a daemon for longer: the kernel holds nothing during grace; leave --grace out for a hard limit", q.Whose(), q.Grace)
	}
	if idle, by := q.idleStep(); idle != nil {
		return fmt.Sprintf("of the quota of %s the step %s never acts: %s comes before it and does as much or more", q.Whose(), idle, by)
	}
	return ""
}

// idleStep returns the first step that changes nothing, because one before it is
// as strict, and that one; nil when there is none.
func (q *Quota) idleStep() (idle, by *QuotaStep) {
	var strictest *Restraint
	for i := range q.Steps {
		s := &q.Steps[i]
		if s.Action == ActionNotify {
			continue
		}
		would := &Restraint{Action: s.Action, Rate: s.Rate}
		if !would.Stricter(strictest) {
			return s, by
		}
		strictest, by = would, s
	}
	return nil, nil
}

// QuotaUse is how much of a quota is used.
type QuotaUse struct {
	Quota Quota `json:"quota"`
	// Start and End bound the quota's present month.
	Start time.Time `json:"start" doc:"Begin of the present month."`
	End   time.Time `json:"end" doc:"The next reset."`
	// In, Out and Used are bytes in it, Used by the quota's way to count; Limit
	// has what was topped up.
	In    int64 `json:"in" doc:"Bytes received in the month."`
	Out   int64 `json:"out" doc:"Bytes sent in the month."`
	Used  int64 `json:"used" doc:"Bytes of both that count."`
	Limit int64 `json:"limit" doc:"Bytes in this month, with what was topped up."`
	// Action is what is in force, empty for nothing, Rate that of a throttle.
	Action QuotaAction `json:"action,omitempty" doc:"What is in force; left out for nothing."`
	Rate   BitRate     `json:"rate,omitempty" doc:"Rate of a throttle that is in force."`
	// GraceUntil is when what was put off comes into force; nil for nothing.
	GraceUntil *time.Time `json:"grace_until,omitempty" doc:"When what is put off comes into force; left out for nothing."`
	// ReachedAt is when the limit will be reached if it goes on as in the last
	// days; nil when that is not in this month, or not known.
	ReachedAt *time.Time `json:"reached_at,omitempty" doc:"When the limit will be reached if it goes on as in the last days; left out when not in this month, or not known."`
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

// ValidZone wants the name of a zone that is known; field is named in the error.
func ValidZone(field, name string) error {
	if err := validZoneName(field, name); err != nil {
		return err
	}
	if _, err := loadZone(name); err != nil {
		return Invalid(field, "there is no time zone %q; write for example Etc/UTC or Asia/Shanghai", name)
	}
	return nil
}

// validZoneName wants what may be the name of a zone, known here or not.
func validZoneName(field, name string) error {
	// LoadLocation takes "" and "Local" for what the server happens to have.
	if name == "" || name == "Local" || len(name) > 64 || !zonePattern.MatchString(name) {
		return Invalid(field, "%q is not a time zone; write for example Etc/UTC or Asia/Shanghai", name)
	}
	return nil
}

// zones are those that were loaded once: time.LoadLocation reads a file each
// time, and quotas ask for theirs with each sample.
var zones sync.Map // string -> *time.Location

// Zone returns the zone of a name, and UTC where there is none of it here. It is
// safe for concurrent use, and quick but for the first time.
func Zone(name string) *time.Location {
	zone, err := loadZone(name)
	if err != nil {
		return time.UTC
	}
	return zone
}

func loadZone(name string) (*time.Location, error) {
	if zone, ok := zones.Load(name); ok {
		return zone.(*time.Location), nil
	}
	zone, err := time.LoadLocation(name)
	if err == nil {
		zones.Store(name, zone)
	}
	return zone, err
}
