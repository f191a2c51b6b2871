package vps

import (
	"cmp"
	"time"
)

// QuotaReached is a step of a quota that was reached in the quota's month that
// begins at Start.
type QuotaReached struct {
	Quota string // its ID
	Start time.Time
	Step  QuotaStep
	At    time.Time // when it was seen to be reached
}

// Restraint is what quotas have in force for a guest.
type Restraint struct {
	// Quota is the ID of the quota that is in force.
	Quota  string      `json:"quota" doc:"The quota that is in force: host, tenant/NAME or guest/NAME."`
	Action QuotaAction `json:"action" doc:"What it does: throttle, suspend-network or stop."`
	// Rate is what each direction is throttled to; 0 when it is not.
	Rate BitRate `json:"rate,omitempty" doc:"Rate of a throttle in bits per second, for each direction."`
	// Until is when the quota's month ends, and the restraint with it.
	Until time.Time `json:"until" doc:"When the quota is reset."`
}

// Stricter tells whether r takes more from a guest than o; nil takes nothing.
func (r *Restraint) Stricter(o *Restraint) bool {
	switch {
	case r == nil:
		return false
	case o == nil:
		return true
	}
	// Of two throttles the slower one is the stricter.
	return cmp.Or(cmp.Compare(r.Action.rank(), o.Action.rank()), cmp.Compare(o.Rate, r.Rate)) > 0
}

// Stops tells whether the guest is not to run; nil tells that it may.
func (r *Restraint) Stops() bool { return r != nil && r.Action == ActionStop }

// Refusal is the error for what a guest that r stops cannot do: it says why, and
// what its owner can do.
func (r *Restraint) Refusal(guest string) error {
	return Errorf(CodeDenied, "the guest %s is stopped because the quota %s is used up until %s; `sublet quota topup` adds to it, and `sublet quota lift` lifts it", guest, r.Quota, r.Until.Format("2006-01-02 15:04 MST"))
}

// Suspends tells whether nothing of the guest's network passes.
func (r *Restraint) Suspends() bool {
	return r != nil && (r.Action == ActionSuspend || r.Action == ActionStop)
}

// Throttle returns what of a bandwidth is left; 0 of either is no bound.
func (r *Restraint) Throttle(own BitRate) BitRate {
	if r == nil || r.Rate == 0 || own != 0 && own < r.Rate {
		return own
	}
	return r.Rate
}

// String says what is in force in few words: "stopped by the quota tenant/bob".
func (r *Restraint) String() string {
	what := "stopped"
	switch r.Action {
	case ActionThrottle:
		what = "throttled to " + r.Rate.String()
	case ActionSuspend:
		what = "network suspended"
	case ActionNotify, ActionStop:
	}
	return what + " by the quota " + r.Quota
}

// rank orders actions, the mildest first.
func (a QuotaAction) rank() int {
	switch a {
	case ActionThrottle:
		return 1
	case ActionSuspend:
		return 2
	case ActionStop:
		return 3
	case ActionNotify:
	}
	return 0
}

// Power is whether the guest is to run: what its spec asks for, unless a quota
// has stopped it.
func (g *Guest) Power() Power {
	if g.Restraint.Stops() {
		return PowerStopped
	}
	return g.Spec.Power
}
