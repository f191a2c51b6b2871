package vps

import "time"

// FilesystemType names a format, as mount(8) does.
type FilesystemType string

// The formats that are read.
const (
	FilesystemExt2  FilesystemType = "ext2"
	FilesystemExt3  FilesystemType = "ext3"
	FilesystemExt4  FilesystemType = "ext4"
	FilesystemXFS   FilesystemType = "xfs"
	FilesystemBtrfs FilesystemType = "btrfs"
	FilesystemSwap  FilesystemType = "swap"
	// FilesystemJournal is the external journal of an ext3 or ext4.
	FilesystemJournal FilesystemType = "jbd"
)

// FilesystemState says in which state a filesystem was left.
type FilesystemState string

// The states.
const (
	// FilesystemClean was unmounted in order, or never mounted.
	FilesystemClean FilesystemState = "clean"
	// FilesystemInUse is mounted, or was not unmounted: its bytes alone do
	// not tell which.
	FilesystemInUse FilesystemState = "in-use"
	// FilesystemNeedsRecovery has a journal or log that the next mount plays
	// back. It may be mounted as well.
	FilesystemNeedsRecovery FilesystemState = "needs-recovery"
	// FilesystemErrors had an error noted by the kernel or by a check.
	FilesystemErrors FilesystemState = "errors"
)

// Filesystem is what a filesystem (or swap space) says of itself in its own
// bytes. Counts of blocks are as the format's own tool tells them (dumpe2fs,
// xfs_db, btrfs inspect-internal); sizes are the same in bytes.
type Filesystem struct {
	Type  FilesystemType `json:"type" doc:"ext2, ext3, ext4, xfs, btrfs, swap, or jbd for the external journal of an ext3 or ext4."`
	Label string         `json:"label" doc:"Empty when it has none."`
	UUID  string         `json:"uuid" doc:"Empty when it has none."`
	// BlockSize is the unit of the counts of blocks; for swap, the page size.
	BlockSize Bytes `json:"block_size"`
	// Size is everything the filesystem spans, its own structures included.
	// For Btrfs it is what its devices hold together, before any replication.
	Size Bytes `json:"size" doc:"What it spans in bytes, its own structures included."`
	// Free is what no file and no structure takes, Reserved and Kept included.
	Free Bytes `json:"free" doc:"Free bytes, the reserved and kept ones included."`
	// Reserved is what only root may take of Free, as the disk tells it.
	Reserved Bytes `json:"reserved" doc:"What only root may take of the free bytes."`
	// Kept is what no user can take of Free besides, by rules that are not on
	// the disk: for ext4 and XFS what the kernel keeps for its own structures,
	// for Btrfs what metadata and replicas would take, or no profile can use.
	Kept Bytes `json:"kept" doc:"What the kernel keeps of the free bytes besides, by rules of its own."`
	// Overhead is what the filesystem's own structures take of Size for good;
	// df leaves it out of its size. 0 when the format does not tell. For Btrfs
	// it is what replicas and parity take.
	Overhead Bytes `json:"overhead" doc:"What its own structures take for good; 0 when it does not tell."`
	// Blocks, FreeBlocks and ReservedBlocks are Size, Free and Reserved in
	// blocks.
	Blocks         uint64 `json:"blocks"`
	FreeBlocks     uint64 `json:"free_blocks"`
	ReservedBlocks uint64 `json:"reserved_blocks"`
	// HasInodes is false where inodes are made as needed without a bound
	// (Btrfs) and where there are none (swap); the counts are 0 then. Inodes
	// counts those that are on the disk, used or free. Where more are made as
	// needed within a bound (XFS), MaxInodes is that bound, as df -i tells it;
	// elsewhere it equals Inodes.
	HasInodes  bool   `json:"has_inodes" doc:"False where inodes are not bounded (Btrfs) and for swap."`
	Inodes     uint64 `json:"inodes"`
	FreeInodes uint64 `json:"free_inodes"`
	MaxInodes  uint64 `json:"max_inodes" doc:"How many inodes there can be; more than there are where they are made as needed."`
	// Mounts counts mounts since the last check, where the format counts them
	// (ext); MaxMounts is when a check is due, 0 for never.
	Mounts    int `json:"mounts" doc:"Mounts since the last check; only ext counts them."`
	MaxMounts int `json:"max_mounts" doc:"After how many mounts a check is due; 0 for never."`
	// Times are in UTC; zero when unknown or never.
	Made        time.Time       `json:"made,omitzero"`
	LastMounted time.Time       `json:"last_mounted,omitzero"`
	LastWritten time.Time       `json:"last_written,omitzero"`
	LastChecked time.Time       `json:"last_checked,omitzero"`
	State       FilesystemState `json:"state" enum:"clean,in-use,needs-recovery,errors"`
	// Approximate says why the counts may differ from what the guest sees:
	// one sentence for people, empty when they are exact.
	Approximate string `json:"approximate,omitempty" doc:"Why the counts may lag behind; empty when they are exact."`
	// Features are named as the format's own tool names them.
	Features []string `json:"features"`
	// Warnings tell what is odd about it, one sentence each; nil for nothing.
	Warnings []string `json:"warnings,omitempty"`
	// One of these goes with Type; all are nil for swap.
	Ext   *ExtDetails   `json:"ext,omitempty"`
	XFS   *XFSDetails   `json:"xfs,omitempty"`
	Btrfs *BtrfsDetails `json:"btrfs,omitempty"`
}

// ExtDetails is what only ext2, ext3 and ext4 have.
type ExtDetails struct {
	Revision    uint32 `json:"revision"`
	ClusterSize Bytes  `json:"cluster_size" doc:"The unit of allocation; the block size without bigalloc."`
	InodeSize   Bytes  `json:"inode_size"`
	Groups      uint64 `json:"groups"`
	// OverheadClusters is as the superblock tells it; 0 when it does not.
	OverheadClusters uint64 `json:"overhead_clusters"`
	LastMountedOn    string `json:"last_mounted_on,omitempty"`
	// JournalUUID and JournalDevice belong to an external journal.
	JournalUUID   string `json:"journal_uuid,omitempty"`
	JournalInode  uint32 `json:"journal_inode,omitempty"`
	JournalDevice uint32 `json:"journal_device,omitempty"`
	// FromBackup is the block of the superblock that was read when the first
	// one is damaged; 0 for the first.
	FromBackup uint64 `json:"from_backup,omitempty"`
}

// XFSDetails is what only XFS has.
type XFSDetails struct {
	Version    int   `json:"version" doc:"4, or 5 with checksums."`
	SectorSize Bytes `json:"sector_size"`
	InodeSize  Bytes `json:"inode_size"`
	AGs        int   `json:"ags" doc:"Allocation groups."`
	// LogBlocks is the length of the log, which is on another device with
	// ExternalLog.
	LogBlocks   uint64 `json:"log_blocks"`
	ExternalLog bool   `json:"external_log"`
	// The realtime device's blocks and free extents are not part of the counts.
	RealtimeBlocks      uint64 `json:"realtime_blocks"`
	FreeRealtimeExtents uint64 `json:"free_realtime_extents"`
}

// BtrfsDetails is what only Btrfs has.
type BtrfsDetails struct {
	NodeSize   Bytes  `json:"node_size"`
	Generation uint64 `json:"generation"`
	BytesUsed  Bytes  `json:"bytes_used" doc:"As the superblock tells it, before any replication."`
	// Unallocated is set aside for nothing yet. Estimated is what new files can
	// still take, as btrfs filesystem usage estimates it: Free of Filesystem
	// counts replicas as well.
	Unallocated Bytes         `json:"unallocated"`
	Estimated   Bytes         `json:"estimated_free" doc:"What new files can still take, replication considered."`
	Spaces      []BtrfsSpace  `json:"spaces"`
	Devices     []BtrfsDevice `json:"devices"`
}

// BtrfsSpace is what is set aside for one kind of content.
type BtrfsSpace struct {
	Kind    string `json:"kind" enum:"data,metadata,system,mixed"`
	Profile string `json:"profile" doc:"single, DUP, RAID1, …"`
	Size    Bytes  `json:"size" doc:"Set aside, before replication."`
	Used    Bytes  `json:"used"`
}

// BtrfsDevice is one device of a Btrfs.
type BtrfsDevice struct {
	ID      uint64 `json:"id"`
	UUID    string `json:"uuid"`
	Size    Bytes  `json:"size"`
	Used    Bytes  `json:"used" doc:"Set aside for any kind of content."`
	Present bool   `json:"present" doc:"Whether it was at hand."`
}

// Used is what files take, in bytes: Size without Free and Overhead.
func (f *Filesystem) Used() Bytes { return max(f.Size-f.Overhead-f.Free, 0) }

// Available is what files of ordinary users can still take, in bytes.
func (f *Filesystem) Available() Bytes { return max(f.Free-f.Reserved-f.Kept, 0) }

// UsedPercent is how full the filesystem is for its ordinary users, 0 to 100,
// as df tells it: what is used of what is used or available. It is above 100
// never, and 0 when the filesystem has no room at all.
func (f *Filesystem) UsedPercent() float64 {
	used, available := float64(f.Used()), float64(f.Available())
	if used+available == 0 {
		return 0
	}
	return 100 * used / (used + available)
}

// InodesPercent is how many of the inodes are used, 0 to 100; 0 where they
// are not bounded.
func (f *Filesystem) InodesPercent() float64 {
	if !f.HasInodes || f.MaxInodes == 0 {
		return 0
	}
	return 100 * float64(f.MaxInodes-f.InodesLeft()) / float64(f.MaxInodes)
}

// InodesLeft is how many more files and folders can be made as far as inodes
// go; 0 where they are not bounded.
func (f *Filesystem) InodesLeft() uint64 {
	used := f.Inodes - min(f.FreeInodes, f.Inodes)
	return f.MaxInodes - min(used, f.MaxInodes)
}
