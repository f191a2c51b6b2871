package vps

import "time"

// TrafficCheck compares the counters of the public links with the sum over all
// guests, in the same time.
type TrafficCheck struct {
	Schema int       `json:"schema_version"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
	// Links are the public links.
	Links []string `json:"links"`
	// Lines are what was counted, then the difference and what it is made of:
	// Links, Guests and Difference are always there, in this order.
	Lines []TrafficCheckLine `json:"lines"`
	// Tolerance is by how many bytes the guests' sum may be larger than the
	// links' counters, in each direction, because they are not read in the very
	// same instant.
	Tolerance TrafficCount `json:"tolerance"`
	// OK is false when the guests' sum is larger by more than that.
	OK bool `json:"ok"`
	// Notes say what to know about these links, for people.
	Notes []string `json:"notes"`
}

// TrafficCheckLine is one amount in a check. In is what the public links
// received.
type TrafficCheckLine struct {
	What string `json:"what"`
	// How says where the amount comes from.
	How TrafficEvidence `json:"how"`
	TrafficCount
	// Part tells that it is a part of the difference.
	Part bool   `json:"part"`
	Note string `json:"note"`
}

// TrafficEvidence says where an amount comes from.
type TrafficEvidence string

// The kinds of evidence.
const (
	// EvidenceMeasured was counted by the kernel.
	EvidenceMeasured TrafficEvidence = "measured"
	// EvidenceAtMost was counted too, but not all of it need be a part of what
	// it is to explain.
	EvidenceAtMost TrafficEvidence = "at most"
	// EvidenceInferred is what remains.
	EvidenceInferred TrafficEvidence = "inferred"
)
