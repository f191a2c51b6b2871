package vps

import "time"

// Image is a read-only root filesystem that guests are cloned from, as its
// manifest describes it. Each build is a new version with an ID of its own;
// guests keep the version they were made from.
type Image struct {
	// Name is what people call it: "debian/12".
	Name string `json:"name"`
	// ID is the version, unique for ever.
	ID           string    `json:"id"`
	Distribution string    `json:"distribution"`
	Release      string    `json:"release"`
	Architecture string    `json:"architecture"`
	Filesystem   string    `json:"filesystem"`
	Packages     []Package `json:"packages"`
	// Size is the length of the file, which bounds the disk of guests whose
	// volume is an overlay on it; Content is what it occupies.
	Size    Bytes     `json:"size"`
	Content Bytes     `json:"content"`
	SHA256  string    `json:"sha256"`
	Created time.Time `json:"created"`
	// Path is where it lies on this host; not part of the manifest.
	Path string `json:"-"`
}

// Package is one installed package of an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Progress is one report from long work. Fraction runs from 0 to 1 within
// the whole work and never goes back; -1 means unknown.
type Progress struct {
	Phase    string  `json:"phase"`
	Fraction float64 `json:"fraction"`
}

// Volume is a guest's disk as it lies on the host.
type Volume struct {
	GuestID string
	Disk    Disk
	// Size is what the guest may use; Used is what is allocated on the host.
	Size Bytes
	Used Bytes
	// Limit is the length that the volume's file may reach: Size, and for an
	// overlay its header and bitmap as well.
	Limit Bytes
	// ImageID is the version of the image it was cloned from.
	ImageID string
}
