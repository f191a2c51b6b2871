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
	Packages     []Package `json:"packages"`
	// OS is what the system calls itself: "Debian GNU/Linux 12 (bookworm)". Init
	// is the program that starts the rest of it, and empty when it has none or
	// nobody looked.
	OS   string `json:"os,omitempty" doc:"What the system calls itself."`
	Init string `json:"init,omitempty" doc:"The program that starts the rest: systemd, openrc, runit, sysvinit, busybox, or another's name."`
	// Source is what it was made of.
	Source string `json:"source,omitempty" doc:"What it was made of: recipe, tarball, oci, docker or disk."`
	// Warnings say what will not work, one sentence each.
	Warnings []string `json:"warnings,omitempty" doc:"What will not work, one sentence each."`
	// Filesystem is how it is mounted. FilesystemSize is how much of the file the
	// filesystem takes from its start, which is the smallest disk of a guest;
	// SHA256 covers just that, as the rest is a hole.
	Filesystem     string `json:"filesystem"`
	FilesystemSize Bytes  `json:"filesystem_size"`
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
// the whole work and never goes back; -1 means unknown. Remaining is how long
// the rest will take, as far as can be told; 0 means that nobody knows.
type Progress struct {
	Phase     string   `json:"phase"`
	Fraction  float64  `json:"fraction"`
	Remaining Duration `json:"remaining,omitzero"`
}

// Volume is what a guest's disks are on the host.
type Volume struct {
	GuestID string
	// Disk is the one that it boots from.
	Disk Disk
	// Size is what the guest may use of that one; Used is what is allocated on
	// the host for all of its disks.
	Size Bytes
	Used Bytes
	// Limit is the length that the longest of the disks' files may reach: its
	// size, and for an overlay its header and bitmap as well. 0 when there are
	// no files.
	Limit Bytes
	// ImageID is the version of the image it was cloned from.
	ImageID string
	// Generation is the one that it was made for; see Guest.Generation.
	Generation int64
	// Storage is where the disk lies, as GuestSpec.Storage says it.
	Storage string
	// Data are the guest's other disks, in the order in which they were made.
	Data []DataVolume
}

// DataVolume is one of a guest's disks beside the one that it boots from.
type DataVolume struct {
	Name string
	Disk Disk
	Size Bytes
	Used Bytes
}

// VolumeSpec says what a new disk is to be.
type VolumeSpec struct {
	// Storage is where it lies, as GuestSpec.Storage says it; empty is a file.
	Storage string
	Size    Bytes
	// UID is the user who may open it.
	UID uint32
	// Generation goes into the volume that is made; see Guest.Generation.
	Generation int64
}

// Snapshot is what all disks of a guest were at one instant.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// State is what its filesystems are like.
	State SnapshotState `json:"state" enum:"stopped,frozen,running" doc:"What the guest did: stopped, running with its filesystems frozen, or running as in a crash."`
	// Size is the size of all disks together, Used what the snapshot occupies on
	// the host; extents that it shares with others are counted too.
	Size  Bytes    `json:"size"`
	Used  Bytes    `json:"used"`
	Disks []string `json:"disks" doc:"The names of its disks; root is the one that the guest boots from."`
}

// SnapshotState is what a guest did when a snapshot of it was taken.
type SnapshotState string

// The states. Filesystems in a snapshot of a running guest are as after a
// crash, and their journals make them whole; frozen ones need not even that.
const (
	SnapshotStopped SnapshotState = "stopped"
	SnapshotFrozen  SnapshotState = "frozen"
	SnapshotRunning SnapshotState = "running"
)
