package vps

import (
	"strconv"
	"strings"
	"time"
)

// Rescue is what a guest that is being rescued boots, and what follows.
type Rescue struct {
	// ImageID is the version of the rescue system's image.
	ImageID string `json:"image_id"`
	// Keys are the lines of root's authorized_keys there.
	Keys []string `json:"keys"`
	// Until is when the rescue ends by itself.
	Until time.Time `json:"until"`
	// Boots is the guest's count of starts with which it began, and tells one
	// rescue from the next.
	Boots int64 `json:"boots"`
	// Power is what the guest was asked to be before, and is again.
	Power Power `json:"power"`
}

// Bounds of how long a rescue lasts: long enough to log in, and one that is
// forgotten must not keep a guest away for ever.
const (
	DefaultRescue = 2 * time.Hour
	MinRescue     = 10 * time.Second
	MaxRescue     = 7 * 24 * time.Hour
	// RescueDisk is the size of the rescue system's disk.
	RescueDisk = 4 * GiB
)

// Validate refuses a rescue that nobody could log in to, or that is too short
// or too long from now on.
func (r Rescue) Validate(now time.Time) error {
	if len(r.Keys) == 0 {
		return Invalid("keys", "a rescue needs an SSH key, since nobody could log in without one")
	}
	if len(r.Keys) > MaxSSHKeys {
		return Invalid("keys", "%d keys are more than the limit of %d", len(r.Keys), MaxSSHKeys)
	}
	for _, key := range r.Keys {
		if err := ValidSSHKey("keys", key); err != nil {
			return err
		}
	}
	if d := r.Until.Sub(now); d < MinRescue-time.Second || d > MaxRescue {
		return Invalid("for", "a rescue lasts from %s to %s", MinRescue, MaxRescue)
	}
	return nil
}

// rescueMark stands between a guest's ID and the number of its rescue.
const rescueMark = "-rescue-"

// RescueID names the disk that the rescue system boots from; empty when the
// guest is not to be rescued.
func (g *Guest) RescueID() string {
	if g.Rescue == nil {
		return ""
	}
	return g.ID + rescueMark + strconv.FormatInt(g.Rescue.Boots, 10)
}

// RescuedGuest returns the ID of the guest that such a disk is for; empty when
// id is none of them.
func RescuedGuest(id string) string {
	guest, number, found := strings.Cut(id, rescueMark)
	if n, err := strconv.ParseInt(number, 10, 64); !found || err != nil || n < 0 {
		return ""
	}
	return guest
}
