package meter

import (
	"time"

	"sublet/internal/vps"
)

// Reading is what there is to tell of a host at one moment. What could not be
// read is left at zero.
type Reading struct {
	Guests []GuestReading
	Quotas []vps.QuotaUse
	// Uplinks are the counters of the public links.
	Uplinks []vps.LinkTraffic
	Edge    EdgeReading
	Host    HostReading
	Daemon  DaemonReading
}

// GuestReading is what there is to tell of a guest.
type GuestReading struct {
	Spec    vps.GuestSpec
	Status  vps.GuestStatus
	Traffic []vps.LinkTraffic
	Drops   []Dropped
	Disks   []vps.DiskSample
}

// HostReading is what there is to tell of the host as a whole.
type HostReading struct {
	// Memory is all that it has, Promised what guests that run may take of it,
	// DiskFree what is free where guests' disks are.
	Memory, Promised, DiskFree vps.Bytes
}

// DaemonReading is what the daemon did since it started.
type DaemonReading struct {
	// Passes of the loop, when the last one ended, and the steps that are still
	// to be taken.
	Passes   uint64
	LastPass time.Time
	Steps    int
	// Samples of traffic that were kept, those that failed, and when the last
	// one was kept.
	Samples, SampleErrors uint64
	LastSample            time.Time
	// NoticesWaiting are in the outbox, Notices what came of those sent.
	NoticesWaiting int
	Notices        map[vps.NoticeChannel]NoticeCount
}

// NoticeCount is how often notices were sent on a channel, how often a try
// failed, and how many were given up.
type NoticeCount struct{ Sent, Failed, GivenUp uint64 }
