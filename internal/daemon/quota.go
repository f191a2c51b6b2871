package daemon

import "sublet/internal/vps"

// stoppedByQuota says why a guest does not run, and what its owner can do.
func stoppedByQuota(name string, r *vps.Restraint) error {
	return vps.Errorf(vps.CodeDenied, "the guest %s is stopped because the quota %s is used up until %s; `sublet quota topup` adds to it, and `sublet quota lift` lifts it", name, r.Quota, r.Until.Format("2006-01-02 15:04 MST"))
}
