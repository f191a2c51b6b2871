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
