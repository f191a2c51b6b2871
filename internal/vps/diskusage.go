package vps

import "time"

// DiskFormat is how a disk's bytes are kept on the host.
type DiskFormat string

// The formats.
const (
	DiskRaw   DiskFormat = "raw"   // a file or device with the disk's own bytes
	DiskCOW   DiskFormat = "cow"   // an overlay of User Mode Linux
	DiskQcow2 DiskFormat = "qcow2" // QEMU's format
)

// DiskUsage is how full one disk is, as its own bytes tell.
type DiskUsage struct {
	// Guest and Disk say whose disk it is: Disk is "root" or the name of a
	// data disk. Both are empty for a file or device that was named.
	Guest string `json:"guest,omitempty" doc:"Name of the guest; left out for a file or device."`
	Disk  string `json:"disk,omitempty" doc:"root, or the name of a data disk."`
	// Path is where it lies on the host.
	Path   string     `json:"path,omitempty"`
	Format DiskFormat `json:"format,omitempty" enum:"raw,cow,qcow2" doc:"How its bytes are kept on the host."`
	// Size is the disk's length as its user sees it, in bytes.
	Size Bytes `json:"size" doc:"Its length as the guest sees it, in bytes."`
	// Allocated is what it really takes on the host, in bytes; for a block
	// device all of it. What it lies on (Backing) is not counted.
	Allocated Bytes `json:"allocated" doc:"What it takes on the host in bytes, without what it lies on."`
	// Backing is what an overlay lies on; empty for a disk that stands alone.
	Backing string `json:"backing,omitempty"`
	// Table is the partition table: "gpt", "mbr", or "" for none.
	Table string `json:"table,omitempty" doc:"gpt or mbr; left out when there are no partitions."`
	// Running says that the guest was running, and so wrote meanwhile.
	Running bool      `json:"running"`
	At      time.Time `json:"at" doc:"When it was read."`
	// Parts are what is on it, by place: one without a partition table.
	Parts []DiskPart `json:"parts"`
	// Error says why nothing could be read; Parts are empty then.
	Error string `json:"error,omitempty" doc:"Why it could not be read."`
}

// DiskPart is one partition of a disk, or the whole of one that has none.
type DiskPart struct {
	// Number is the partition's, 0 for the whole disk.
	Number int    `json:"number" doc:"0 for a disk without partitions."`
	Name   string `json:"name,omitempty"`
	Start  Bytes  `json:"start"`
	Size   Bytes  `json:"size"`
	// Contains says in a few words what is there other than a filesystem
	// that can be read: "LVM physical volume". Empty otherwise.
	Contains string `json:"contains,omitempty" doc:"What is there, when it is no filesystem that can be read."`
	// Filesystem is nil when there is none that can be read.
	Filesystem *Filesystem `json:"filesystem,omitempty"`
	// Error says why the filesystem that is there cannot be read.
	Error string `json:"error,omitempty" doc:"Why the filesystem that is there could not be read."`
}

// DiskSample is how full one filesystem of a guest was at one time.
type DiskSample struct {
	// GuestID, Disk and Part say which filesystem it is; GuestID is not shown,
	// Disk and Part are as in DiskUsage and DiskPart.
	GuestID string    `json:"-"`
	Disk    string    `json:"disk"`
	Part    int       `json:"part" doc:"Number of the partition, 0 for a disk without partitions."`
	At      time.Time `json:"at"`
	// Used and Available are as Filesystem's methods tell them, Allocated what
	// the whole disk took on the host.
	Used       Bytes  `json:"used"`
	Available  Bytes  `json:"available"`
	Allocated  Bytes  `json:"allocated" doc:"What the whole disk took on the host."`
	Inodes     uint64 `json:"inodes" doc:"0 where inodes are not bounded."`
	FreeInodes uint64 `json:"free_inodes"`
}

// UsedPercent is how full the filesystem was, 0 to 100.
func (s *DiskSample) UsedPercent() float64 {
	if s.Used+s.Available == 0 {
		return 0
	}
	return 100 * float64(s.Used) / float64(s.Used+s.Available)
}

// InodesPercent is how many of the inodes were used, 0 to 100; 0 where they
// are not bounded.
func (s *DiskSample) InodesPercent() float64 {
	if s.Inodes == 0 {
		return 0
	}
	return 100 * float64(s.Inodes-min(s.FreeInodes, s.Inodes)) / float64(s.Inodes)
}

// Samples returns what is worth keeping of a report about a guest's disk: one
// sample for each filesystem, other than swap, that could be read.
func (u *DiskUsage) Samples(guestID string) []DiskSample {
	var samples []DiskSample
	for _, p := range u.Parts {
		f := p.Filesystem
		if f == nil || f.Type == FilesystemSwap || f.Type == FilesystemJournal {
			continue
		}
		samples = append(samples, DiskSample{
			GuestID: guestID, Disk: u.Disk, Part: p.Number, At: u.At,
			Used: f.Used(), Available: f.Available(), Allocated: u.Allocated, Inodes: f.MaxInodes, FreeInodes: f.InodesLeft(),
		})
	}
	return samples
}

// DiskForecast says when a filesystem of a guest will be full, if it goes on
// as it did.
type DiskForecast struct {
	Guest         string  `json:"guest"`
	Disk          string  `json:"disk"`
	Part          int     `json:"part" doc:"Number of the partition, 0 for a disk without partitions."`
	Used          Bytes   `json:"used"`
	Available     Bytes   `json:"available"`
	UsedPercent   float64 `json:"used_percent"`
	InodesPercent float64 `json:"inodes_percent" doc:"0 where inodes are not bounded."`
	// Growth is in bytes per day, and InodeGrowth in inodes per day, by the
	// line of least squares through the samples; both may be negative.
	Growth      int64 `json:"growth_per_day" doc:"In bytes per day; negative when it shrinks."`
	InodeGrowth int64 `json:"inode_growth_per_day" doc:"In inodes per day."`
	// Full is when it is full, and What is what runs out; both are empty when
	// it cannot be told, or will not be, and Note says why.
	Full time.Time `json:"full,omitzero" doc:"When it is full; left out when that cannot be told."`
	What string    `json:"what,omitempty" enum:"blocks,inodes" doc:"What runs out."`
	Note string    `json:"note,omitempty" doc:"Why there is no date."`
	// Since is the time of the first sample that was used, Samples their number.
	Since   time.Time `json:"since,omitzero"`
	Samples int       `json:"samples"`
}
