package vps

import (
	"math"
	"time"
)

// TrafficClass says between whom traffic went.
type TrafficClass string

// The classes of a guest's traffic. Each packet is in one of them.
const (
	// TrafficInternet went between the guest and the world outside the host.
	TrafficInternet TrafficClass = "internet"
	// TrafficHost went between the guest and the host itself: its services,
	// and what its programs pass on for the guest's domains.
	TrafficHost TrafficClass = "host"
	// TrafficBetween went between two guests of the host; both have it.
	TrafficBetween TrafficClass = "between"
	// TrafficDropped was dropped by the wall or by a quota: sent by the guest
	// (out), or towards it (in). It is in no other class.
	TrafficDropped TrafficClass = "dropped"
	// TrafficUplink is the host's own counter of a public link: of the host,
	// not of a guest.
	TrafficUplink TrafficClass = "uplink"
)

// TrafficClasses returns the classes of guests' traffic in the order in which
// people see them.
func TrafficClasses() []TrafficClass {
	return []TrafficClass{TrafficInternet, TrafficHost, TrafficBetween, TrafficDropped}
}

// Billed tells whether quotas and bills count the class.
func (c TrafficClass) Billed() bool { return c == TrafficInternet || c == TrafficHost }

// TrafficCount is an amount of traffic, as the guest sees it: in is what it
// received. Bytes are those of Ethernet frames without their checksum, as the
// kernel counts a link's: the IP packet and 14 bytes.
type TrafficCount struct {
	InBytes    int64 `json:"in_bytes"`
	InPackets  int64 `json:"in_packets"`
	OutBytes   int64 `json:"out_bytes"`
	OutPackets int64 `json:"out_packets"`
}

// FrameBytes is what a frame is longer than its IP packet (IEEE 802.3): two
// addresses and a type.
const FrameBytes = 14

// Limits of history that is taken over from other programs, in bytes and
// packets of each direction: of one row, which is what 200 Gbit/s come to in a
// month, and of all rows of one step together. There is room to count on from
// there.
const (
	MaxImportedRow = 1 << 56
	MaxImportedSum = 1 << 60
)

// Add returns the sum of two amounts, as SumBytes makes it.
func (c TrafficCount) Add(o TrafficCount) TrafficCount {
	return TrafficCount{SumBytes(c.InBytes, o.InBytes), SumBytes(c.InPackets, o.InPackets), SumBytes(c.OutBytes, o.OutBytes), SumBytes(c.OutPackets, o.OutPackets)}
}

// Bytes is what went both ways.
func (c TrafficCount) Bytes() int64 { return SumBytes(c.InBytes, c.OutBytes) }

// SumBytes adds up two amounts. What does not fit is as much as does: an amount
// that is too large to count is not a small one.
func SumBytes(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}

// TrafficKey is what a link's traffic is split by.
type TrafficKey struct {
	Class TrafficClass `json:"class"`
	// Family is 4 or 6; 0 where it is not known, as for a link's own counter, and
	// for dropped frames that were no IP.
	Family int `json:"family"`
}

// LinkTraffic is a counter of one link since its epoch began.
type LinkTraffic struct {
	Link string
	TrafficKey
	TrafficCount
}

// TrafficCounters are the kernel's counters at one moment.
type TrafficCounters struct {
	// At is when they were read; it has Go's monotonic clock.
	At time.Time
	// Epoch tells counters that go on from such as began anew: it differs after
	// the host has booted, or the table that holds them was made anew.
	Epoch string
	Links []LinkTraffic
}

// TrafficStep is the length of time that one row of history covers.
type TrafficStep string

// The steps of history.
const (
	StepFiveMinutes TrafficStep = "5min"
	StepHour        TrafficStep = "hour"
	StepDay         TrafficStep = "day"
	StepMonth       TrafficStep = "month"
)

// TrafficRow is a guest's traffic of one class and family in one step of
// history.
type TrafficRow struct {
	// GuestID is empty for the host's own counter (TrafficUplink). Guest is the
	// name that the guest has, or had when it was deleted, and Tenant likewise.
	// To a query for one tenant they are as he saw them last. TenantMade is when
	// the tenant was: zero for the owner, and where it is not known.
	GuestID    string    `json:"guest_id"`
	Guest      string    `json:"guest"`
	Tenant     string    `json:"-"`
	TenantMade time.Time `json:"-"`
	// Start is the begin of the step; days and months begin in the host's time
	// zone.
	Start time.Time   `json:"start"`
	Step  TrafficStep `json:"step"`
	// From is when what it holds began to be counted, where that was not at Start:
	// the step is called as it was in another zone of the host. It is zero else.
	From time.Time `json:"from,omitzero"`
	TrafficKey
	TrafficCount
}

// Began is when what the row holds began to be counted.
func (r *TrafficRow) Began() time.Time {
	if r.From.IsZero() {
		return r.Start
	}
	return r.From
}

// Join adds another row of the same step to r.
func (r *TrafficRow) Join(o *TrafficRow) {
	if began := o.Began(); began.Before(r.Began()) {
		r.From = began
	}
	r.TrafficCount = r.Add(o.TrafficCount)
}

// TrafficQuery selects rows of history.
type TrafficQuery struct {
	// Step is the step of the rows.
	Step TrafficStep
	// GuestIDs are whose rows are wanted, "" for the host's own counter; nil
	// means everybody's, also those of guests that are gone.
	GuestIDs []string
	// Tenant, by its name and when it was made, leaves only what guests had while
	// they were his; nil means no matter whose. Another one who had the name
	// before him is not him.
	Tenant *Tenant
	// Together adds up all guests but those whose IDs are in Apart: the rows name
	// none.
	Together bool
	Apart    []string
	// Whole adds up all steps: a guest's rows begin where the first that it has
	// does. One that went over to another tenant has rows of each.
	Whole bool
	// Since and Until bound the begin of rows: from Since on and before Until.
	// The zero value means no bound.
	Since, Until time.Time
	// Counted leaves out what was taken over from other programs, Imported all
	// but that.
	Counted, Imported bool
}
