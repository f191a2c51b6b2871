package meter

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"sublet/internal/vps"
)

// QuotaState is what a quota comes to at one moment.
type QuotaState struct {
	Use vps.QuotaUse
	// New are the steps that are reached for the first time in this month, the
	// lowest first. Undone were reached, and are not any more since the limit
	// was raised: reaching them once more is news again.
	New, Undone []vps.QuotaReached
	// Redated are steps that seem to have been reached in the future, as the
	// clock was stepped back since: they count as reached now. To be kept, or
	// grace would begin anew with each look.
	Redated []vps.QuotaReached
	// Next is when something changes although nothing is used: the end of grace
	// or of the month.
	Next time.Time
	// block and throttle are as in vps.NetworkQuota.
	block, throttle int64
	rate            vps.BitRate
}

// EvaluateQuotas tells what each quota comes to by what was counted, and by the
// steps that were reached before. Accounts and steps of other months, and of
// other quotas, count as none. It is pure.
func EvaluateQuotas(quotas []vps.Quota, accounts []vps.QuotaAccount, reached []vps.QuotaReached, now time.Time) []QuotaState {
	states := make([]QuotaState, 0, len(quotas))
	byQuota := make(map[string][]vps.QuotaReached, len(quotas))
	for _, r := range reached {
		byQuota[r.Quota] = append(byQuota[r.Quota], r)
	}
	counted := make(map[string]vps.QuotaAccount, len(accounts))
	for _, a := range accounts {
		counted[a.ID] = a
	}
	for _, q := range quotas {
		id := q.ID()
		states = append(states, evaluate(q, counted[id], byQuota[id], now))
	}
	return states
}

func evaluate(q vps.Quota, a vps.QuotaAccount, reached []vps.QuotaReached, now time.Time) QuotaState {
	start, end := q.Period(now)
	if !a.Start.Equal(start) {
		a.In, a.Out = 0, 0
	}
	s := QuotaState{
		Use: vps.QuotaUse{
			Quota: q, Start: start, End: end, In: a.In, Out: a.Out,
			Used: q.Count.Used(a.In, a.Out), Limit: int64(q.LimitAt(now)),
		},
		Next: end, block: -1, throttle: -1,
	}
	before := map[vps.QuotaStep]vps.QuotaReached{}
	for _, r := range reached {
		if r.Start.Equal(start) {
			before[r.Step] = r
		}
	}
	var force *vps.Restraint
	for _, step := range q.Steps {
		at := step.At(vps.Bytes(s.Use.Limit))
		r, told := before[step]
		if s.Use.Used < at {
			if told {
				s.Undone = append(s.Undone, r)
			}
			continue
		}
		if !told {
			r = vps.QuotaReached{Quota: q.ID(), Start: start, Step: step, At: now}
			s.New = append(s.New, r)
			before[step] = r
		}
		if r.At.After(now) {
			r.At = now
			s.Redated = append(s.Redated, r)
		}
		if would := s.follow(r, now); would.Stricter(force) {
			force = would
		}
	}
	if force != nil {
		s.Use.Action, s.Use.Rate = force.Action, force.Rate
	}
	s.marks(force)
	return s
}

// follow returns what a step that is reached puts in force, nil for nothing.
func (s *QuotaState) follow(r vps.QuotaReached, now time.Time) *vps.Restraint {
	q := &s.Use.Quota
	if r.Step.Action == vps.ActionNotify || q.LiftedAt(now) {
		return nil
	}
	if due := s.due(r); now.Before(due) {
		if s.Use.GraceUntil == nil || due.Before(*s.Use.GraceUntil) {
			s.Use.GraceUntil = &due
		}
		if due.Before(s.Next) {
			s.Next = due
		}
		return nil
	}
	return &vps.Restraint{Quota: q.ID(), Action: r.Step.Action, Rate: r.Step.Rate, Until: s.Use.End}
}

// due is when a step that was reached comes into force.
func (s *QuotaState) due(r vps.QuotaReached) time.Time {
	return r.At.Add(time.Duration(s.Use.Quota.Grace))
}

// marks sets where the kernel acts by itself. It knows nothing of grace, so a
// quota that has some is not held there before it is over.
func (s *QuotaState) marks(force *vps.Restraint) {
	q := &s.Use.Quota
	if q.Grace > 0 || q.LiftedAt(s.Use.Start) {
		return
	}
	for _, step := range q.Steps {
		at := step.At(vps.Bytes(s.Use.Limit))
		would := &vps.Restraint{Action: step.Action, Rate: step.Rate}
		if s.Use.Used >= at || step.Action == vps.ActionNotify || !would.Stricter(force) {
			continue
		}
		switch {
		case would.Suspends() && s.block < 0:
			s.block = at
		case step.Action == vps.ActionThrottle && s.throttle < 0 && s.block < 0:
			s.throttle, s.rate = at, step.Rate
		}
	}
}

// Restrain sets what is in force for each guest of a host: the strictest of
// what its own quota, its tenant's and the host's call for.
func Restrain(states []QuotaState, h *vps.Host) {
	force := map[whose]*vps.Restraint{}
	for i := range states {
		if u := &states[i].Use; u.Action != "" {
			force[whoseOf(&u.Quota)] = &vps.Restraint{Quota: u.Quota.ID(), Action: u.Action, Rate: u.Rate, Until: u.End}
		}
	}
	for i := range h.Guests {
		g := &h.Guests[i]
		g.Restraint = nil
		if len(force) == 0 {
			continue
		}
		for _, w := range countedBy(g) {
			if r := force[w]; r.Stricter(g.Restraint) {
				g.Restraint = r
			}
		}
	}
}

// whose says whose traffic a quota counts.
type whose struct {
	scope vps.QuotaScope
	name  string
}

func whoseOf(q *vps.Quota) whose { return whose{q.Scope, q.Name} }

// countedBy are those whose quotas count a guest's traffic.
func countedBy(g *vps.Guest) [3]whose {
	return [3]whose{{vps.QuotaHost, ""}, {vps.QuotaTenant, g.Spec.Tenant}, {vps.QuotaGuest, g.Spec.Name}}
}

// KernelQuotas returns what the kernel is to hold by itself until it is told
// more: for each quota its next marks, and the links that nothing passes,
// sorted. h was restrained by the same states, and at is when they were
// counted. What is throttled is shaped elsewhere, which takes a moment: until
// shaped says that a link is at its rate, the kernel goes on with that.
func KernelQuotas(states []QuotaState, h *vps.Host, at time.Time, shaped func(link string, rate vps.BitRate) bool) (quotas []vps.NetworkQuota, suspended []string) {
	links := make(map[whose][]string, len(states))
	for i := range states {
		links[whoseOf(&states[i].Use.Quota)] = nil
	}
	for i := range h.Guests {
		for _, w := range countedBy(&h.Guests[i]) {
			if of, wanted := links[w]; wanted {
				links[w] = append(of, h.Guests[i].Link())
			}
		}
	}
	cut := map[string]bool{} // nothing passes there that could be shaped
	for i := range h.Guests {
		if g := &h.Guests[i]; g.Restraint.Suspends() {
			cut[g.Link()] = true
			suspended = append(suspended, g.Link())
		}
	}
	slices.Sort(suspended)
	for i := range states {
		s := &states[i]
		k := vps.NetworkQuota{
			ID: s.Use.Quota.ID(), Scope: s.Use.Quota.Scope, Count: s.Use.Quota.Count,
			At: at, In: s.Use.In, Out: s.Use.Out, Block: s.block, Throttle: s.throttle, Rate: s.rate,
		}
		rough := func(link string) bool { return !cut[link] && !shaped(link, s.Use.Rate) }
		if s.Use.Action == vps.ActionThrottle && slices.ContainsFunc(links[whoseOf(&s.Use.Quota)], rough) {
			k.Throttle, k.Rate = 0, s.Use.Rate
		}
		if k.Block < 0 && k.Throttle < 0 {
			continue
		}
		if k.Scope != vps.QuotaHost {
			k.Links = links[whoseOf(&s.Use.Quota)]
			slices.Sort(k.Links)
		}
		quotas = append(quotas, k)
	}
	return quotas, suspended
}

// Tell says in a sentence that a step was reached, and what follows.
func (s *QuotaState) Tell(r vps.QuotaReached, now time.Time) string {
	u := &s.Use
	text := fmt.Sprintf("%d%% of the quota of %s is used: %s of %s since %s", r.Step.Percent, u.Quota.Whose(), vps.Bytes(u.Used), vps.Bytes(u.Limit), u.Start.Format(time.DateOnly))
	if u.Quota.Scope == vps.QuotaGuest {
		return text + s.outcome(r, now, "its network is", "it is")
	}
	return text + s.outcome(r, now, "the network of its guests is", "its guests are")
}

// TellTenant says what a step of the host's quota means for a tenant with
// guests. What the host used and may use is its owner's own business.
func (s *QuotaState) TellTenant(r vps.QuotaReached, now time.Time, tenant string) string {
	text := fmt.Sprintf("%d%% of the traffic that the whole host may have in its month is used", r.Step.Percent)
	return text + s.outcome(r, now, "the network of all guests of "+tenant+" is", "all guests of "+tenant+" are")
}

// outcome is what follows from a step that was reached, with the beginnings of
// what is said of networks and of guests.
func (s *QuotaState) outcome(r vps.QuotaReached, now time.Time, networks, guests string) string {
	var what string
	switch r.Step.Action {
	case vps.ActionNotify:
		return ""
	case vps.ActionThrottle:
		what = networks + " throttled to " + r.Step.Rate.String()
	case vps.ActionSuspend:
		what = networks + " suspended"
	case vps.ActionStop:
		what = guests + " stopped"
	}
	const minute = "2006-01-02 15:04 MST"
	end := s.Use.End
	switch due := s.due(r); {
	case s.Use.Quota.LiftedAt(now):
		return "; the quota is lifted, so nothing else follows"
	case !due.Before(end) && now.Before(due):
		return "; the month ends before the grace does"
	case now.Before(due):
		return fmt.Sprintf("; %s from %s until %s", what, due.In(end.Location()).Format(minute), end.Format(minute))
	}
	return fmt.Sprintf("; %s until %s", what, end.Format(minute))
}

// Acts tells whether a step that was reached comes into force in this month,
// at once or after grace, unless somebody raises or lifts the quota before.
func (s *QuotaState) Acts(r vps.QuotaReached, now time.Time) bool {
	q := &s.Use.Quota
	return r.Step.Action != vps.ActionNotify && !q.LiftedAt(now) && s.due(r).Before(s.Use.End)
}

// stepData is what TellTenant tells, for programs.
type stepData struct {
	Quota   string          `json:"quota"`
	Percent int             `json:"percent"`
	Action  vps.QuotaAction `json:"action"`
	Rate    vps.BitRate     `json:"rate,omitempty"`
	Start   time.Time       `json:"start"`
	End     time.Time       `json:"end"`
	// From is when the action is in force; absent when it never is.
	From *time.Time `json:"from,omitempty"`
}

func (s *QuotaState) data(r vps.QuotaReached, now time.Time) stepData {
	u := &s.Use
	data := stepData{u.Quota.ID(), r.Step.Percent, r.Step.Action, r.Step.Rate, u.Start, u.End, nil}
	if s.Acts(r, now) {
		due := s.due(r)
		data.From = &due
	}
	return data
}

// Data tells for programs what Tell tells for people: a JSON object.
func (s *QuotaState) Data(r vps.QuotaReached, now time.Time) json.RawMessage {
	return object(struct {
		stepData
		Used  int64 `json:"used"`
		Limit int64 `json:"limit"`
	}{s.data(r, now), s.Use.Used, s.Use.Limit})
}

// TenantData tells for programs what TellTenant tells for people.
func (s *QuotaState) TenantData(r vps.QuotaReached, now time.Time) json.RawMessage {
	return object(s.data(r, now))
}

func object(data any) json.RawMessage {
	text, err := json.Marshal(data)
	if err != nil {
		return nil // There is nothing in it that cannot be written.
	}
	return text
}

// ForecastQuota tells when a quota's limit is reached when it goes on with in
// and out bytes per second; nil when it is reached already, or is not in this
// month.
func ForecastQuota(u *vps.QuotaUse, in, out float64, now time.Time) *time.Time {
	if u.Used >= u.Limit {
		return nil
	}
	until := func(used int64, rate float64) float64 {
		if rate <= 0 {
			return math.Inf(1)
		}
		return float64(u.Limit-used) / rate
	}
	var seconds float64
	switch u.Quota.Count {
	case vps.CountIn:
		seconds = until(u.In, in)
	case vps.CountOut:
		seconds = until(u.Out, out)
	case vps.CountMax:
		seconds = min(until(u.In, in), until(u.Out, out))
	case vps.CountBoth:
		seconds = until(u.Used, in+out)
	}
	if seconds >= u.End.Sub(now).Seconds() {
		return nil
	}
	at := now.Add(time.Duration(seconds * float64(time.Second))).Round(time.Minute)
	return &at
}
