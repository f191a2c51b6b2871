package fsusage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"sublet/internal/vps"
)

// The superblock of ext2, ext3 and ext4: struct ext4_super_block of the
// kernel's fs/ext4/ext4.h, little-endian, at byte 1024 of the filesystem and,
// as a copy, at the start of some of its groups.
const (
	extOffset = 1024
	extLength = 1024
	extMagic  = "\x53\xef" // EXT4_SUPER_MAGIC
)

// Feature bits that change where numbers stand or what they mean.
const (
	extHasJournal    = 0x4   // compat
	extSparseSuper2  = 0x200 // compat
	extNeedsRecovery = 0x4   // incompat
	extJournalDev    = 0x8   // incompat
	extMetaBG        = 0x10  // incompat
	extExtents       = 0x40  // incompat
	ext64Bit         = 0x80  // incompat
	extChecksumSeed  = 0x2000
	extSparseSuper   = 0x1   // ro_compat
	extGroupChecksum = 0x10  // ro_compat, uninit_bg
	extBigalloc      = 0x200 // ro_compat
	extMetadataCsum  = 0x400 // ro_compat
	// extOrphans (ro_compat) says that deleted files are still to be freed.
	extOrphans = 0x10000

	// What ext3 knows: EXT3_FEATURE_…_SUPP of the kernel's fs/ext3.
	ext3Incompat = 0x2 | extNeedsRecovery | extMetaBG
	ext3ROCompat = 0x1 | 0x2 | 0x4

	extStateValid  = 1 // s_state, EXT4_VALID_FS
	extStateErrors = 2 // s_state, EXT4_ERROR_FS
)

var extFormat = format{name: "ext", magics: []magic{{extOffset + 0x38, extMagic}}, read: readExt, rescue: rescueExt}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the checksum as Linux keeps it: without the inversion at the end
// that Go's has, and going on from seed.
func crc32c(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// extSuper is a superblock whose numbers have been checked.
type extSuper struct {
	raw                       []byte
	revision                  uint32
	compat, incompat, ro      uint32
	blockSize, clusterSize    int64
	first                     uint64 // s_first_data_block
	blocks, free, reserved    uint64 // in blocks
	inodes, freeInodes        uint64
	blocksPerGroup            uint64
	clustersPerGroup          uint64
	inodesPerGroup, inodeSize uint64
	descSize                  int
	groups                    uint64
}

func (s *extSuper) u16(off int) uint16 { return binary.LittleEndian.Uint16(s.raw[off:]) }
func (s *extSuper) u32(off int) uint32 { return binary.LittleEndian.Uint32(s.raw[off:]) }

// wide joins a count's halves; the upper one is there with the feature 64bit.
func (s *extSuper) wide(low, high int) uint64 {
	n := uint64(s.u32(low))
	if s.incompat&ext64Bit != 0 {
		n |= uint64(s.u32(high)) << 32
	}
	return n
}

// time joins a time's halves: seconds since 1970 in 40 bits.
func (s *extSuper) time(low, high int) time.Time {
	t := int64(s.u32(low)) | int64(s.raw[high])<<32
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(t, 0).UTC()
}

// errExtChecksum says that the superblock's checksum is not that of its bytes.
var errExtChecksum = fmt.Errorf("%w: the checksum of its superblock is wrong", errDamaged)

// parseExt checks a superblock of a device with size bytes. Every number of
// the result is in the range in which the kernel accepts it (ext4_fill_super).
func parseExt(raw []byte, size int64) (*extSuper, error) {
	s := &extSuper{raw: raw}
	if string(raw[0x38:0x3a]) != extMagic {
		return nil, damaged("it has no superblock")
	}
	if s.revision = s.u32(0x4c); s.revision > 0 {
		s.compat, s.incompat, s.ro = s.u32(0x5c), s.u32(0x60), s.u32(0x64)
	}
	if s.ro&extMetadataCsum != 0 && crc32c(math.MaxUint32, raw[:0x3fc]) != s.u32(0x3fc) {
		return nil, errExtChecksum
	}
	logBlock := s.u32(0x18)
	if logBlock > 6 {
		return nil, damaged("its block size would be 2 to the power of %d", uint64(logBlock)+10)
	}
	s.blockSize = 1024 << logBlock
	s.clusterSize = s.blockSize
	s.blocks, s.reserved, s.free = s.wide(0x04, 0x150), s.wide(0x08, 0x154), s.wide(0x0c, 0x158)
	s.inodes, s.freeInodes = uint64(s.u32(0x00)), uint64(s.u32(0x10))
	s.first = uint64(s.u32(0x14))
	if s.blocks == 0 || s.blocks > uint64(math.MaxInt64/s.blockSize) {
		return nil, damaged("it would have %d blocks", s.blocks)
	}
	if int64(s.blocks) > size/s.blockSize {
		return nil, damaged("it spans %d bytes, and only %d are there; the end was cut off", int64(s.blocks)*s.blockSize, size)
	}
	if s.incompat&extJournalDev != 0 {
		return s, nil
	}
	return s, s.checkGroups()
}

// checkGroups checks what a journal device does not have.
func (s *extSuper) checkGroups() error {
	s.blocksPerGroup, s.clustersPerGroup, s.inodesPerGroup = uint64(s.u32(0x20)), uint64(s.u32(0x24)), uint64(s.u32(0x28))
	bits := uint64(s.blockSize) * 8 // of one bitmap block
	if s.ro&extBigalloc != 0 {
		logCluster := s.u32(0x1c)
		if logCluster < s.u32(0x18) || logCluster > 19 { // EXT4_MAX_CLUSTER_LOG_SIZE 30
			return damaged("its cluster size would be 2 to the power of %d", uint64(logCluster)+10)
		}
		s.clusterSize = 1024 << logCluster
		ratio := uint64(s.clusterSize / s.blockSize)
		if s.blocksPerGroup != s.clustersPerGroup*ratio {
			return damaged("%d blocks and %d clusters in each group contradict each other", s.blocksPerGroup, s.clustersPerGroup)
		}
	} else {
		s.clustersPerGroup = s.blocksPerGroup
	}
	s.inodeSize = 128
	if s.revision > 0 {
		s.inodeSize = uint64(s.u16(0x58))
	}
	s.descSize = 32
	if s.incompat&ext64Bit != 0 {
		s.descSize = int(s.u16(0xfe))
		if s.descSize < 64 || s.descSize > 1024 || s.descSize&(s.descSize-1) != 0 {
			return damaged("its group descriptors would have %d bytes each", s.descSize)
		}
	}
	switch {
	case s.first > 1 || s.first >= s.blocks || s.first == 1 && s.blockSize != 1024:
		return damaged("its first block would be %d", s.first)
	case s.inodeSize < 128 || s.inodeSize > uint64(s.blockSize) || s.inodeSize&(s.inodeSize-1) != 0:
		return damaged("its inodes would have %d bytes each", s.inodeSize)
	case s.clustersPerGroup == 0 || s.clustersPerGroup > bits:
		return damaged("its groups would have %d clusters each", s.clustersPerGroup)
	case s.inodesPerGroup == 0 || s.inodesPerGroup > bits:
		return damaged("its groups would have %d inodes each", s.inodesPerGroup)
	}
	s.groups = (s.blocks - s.first + s.blocksPerGroup - 1) / s.blocksPerGroup
	switch {
	case s.groups*s.inodesPerGroup != s.inodes:
		return damaged("%d groups of %d inodes cannot hold the %d inodes that it tells", s.groups, s.inodesPerGroup, s.inodes)
	case s.free > s.blocks:
		return damaged("it tells %d free blocks of %d", s.free, s.blocks)
	case s.reserved > s.blocks:
		return damaged("it tells %d reserved blocks of %d", s.reserved, s.blocks)
	case s.freeInodes > s.inodes:
		return damaged("it tells %d free inodes of %d", s.freeInodes, s.inodes)
	}
	return nil
}

// readExt reads the filesystem whose first superblock is in place, and falls
// back to a copy when that one is damaged.
func readExt(d *device, others []*device) (vps.Filesystem, error) {
	raw, err := d.read(extOffset, extLength)
	if err != nil {
		return vps.Filesystem{}, err
	}
	s, err := parseExt(raw, d.Size())
	if err == nil {
		return s.report(d, 0)
	}
	if fs, rescued := rescueExt(d, others); rescued == nil {
		fs.Warnings = append(fs.Warnings, "Its first superblock is damaged; a copy of it was read. Repair it with fsck.")
		return fs, nil
	}
	return vps.Filesystem{}, err
}

// report makes the report of a filesystem whose superblock is s, read from the
// block backup; 0 means the first one.
func (s *extSuper) report(d *device, backup uint64) (vps.Filesystem, error) {
	fs := vps.Filesystem{
		Type: s.kind(), Label: text(s.raw[0x78:0x88]), UUID: uuidText(s.raw[0x68:0x78]),
		BlockSize: vps.Bytes(s.blockSize), Blocks: s.blocks, FreeBlocks: s.free, ReservedBlocks: s.reserved,
		HasInodes: true, Inodes: s.inodes, FreeInodes: s.freeInodes, MaxInodes: s.inodes,
		Mounts: int(s.u16(0x34)), MaxMounts: max(int(int16(s.u16(0x36))), 0),
		Made: s.time(0x108, 0x276), LastMounted: s.time(0x2c, 0x275), LastWritten: s.time(0x30, 0x274), LastChecked: s.time(0x40, 0x277),
		Features: s.features(),
		Ext: &vps.ExtDetails{
			Revision: s.revision, ClusterSize: vps.Bytes(s.clusterSize), InodeSize: vps.Bytes(s.inodeSize), Groups: s.groups,
			OverheadClusters: uint64(s.u32(0x248)), LastMountedOn: text(s.raw[0x88:0xc8]),
			JournalInode: s.u32(0xe0), JournalDevice: s.u32(0xe4), FromBackup: backup,
		},
	}
	if id := s.raw[0xd0:0xe0]; string(id) != string(make([]byte, 16)) {
		fs.Ext.JournalUUID = uuidText(id)
	}
	fs.Size = vps.Bytes(s.blocks) * fs.BlockSize
	if fs.Type == vps.FilesystemJournal {
		fs.HasInodes, fs.Inodes, fs.FreeInodes, fs.MaxInodes, fs.FreeBlocks, fs.ReservedBlocks = false, 0, 0, 0, 0, 0
		fs.State = vps.FilesystemClean
		return fs, nil
	}
	s.describeState(&fs)
	if fs.Approximate != "" || backup != 0 {
		// The kernel writes the superblock's counts at unmount, and those of
		// copies never; the groups' follow within seconds.
		if err := s.sumGroups(d, &fs); err != nil {
			return fs, err
		}
	}
	fs.Overhead = s.overhead()
	fs.Free, fs.Reserved = vps.Bytes(fs.FreeBlocks)*fs.BlockSize, vps.Bytes(fs.ReservedBlocks)*fs.BlockSize
	fs.Kept = s.kept()
	return fs, nil
}

// kept is what the kernel keeps free besides the reserved blocks, so that
// extents can be split: a fiftieth of the clusters, up to 4096
// (ext4_set_resv_clusters). Nothing of it is on the disk.
func (s *extSuper) kept() vps.Bytes {
	if s.incompat&extExtents == 0 {
		return 0
	}
	return vps.Bytes(min(s.blocks/uint64(s.clusterSize/s.blockSize)/50, 4096)) * vps.Bytes(s.clusterSize)
}

// kind tells ext2, ext3 and ext4 apart as blkid(8) does.
func (s *extSuper) kind() vps.FilesystemType {
	switch {
	case s.incompat&extJournalDev != 0:
		return vps.FilesystemJournal
	case s.incompat&^ext3Incompat != 0 || s.ro&^ext3ROCompat != 0:
		return vps.FilesystemExt4
	case s.compat&extHasJournal != 0:
		return vps.FilesystemExt3
	}
	return vps.FilesystemExt2
}

func (s *extSuper) describeState(fs *vps.Filesystem) {
	state := s.u16(0x3a)
	fs.State = vps.FilesystemClean
	if s.ro&extOrphans != 0 {
		fs.State = vps.FilesystemInUse
	}
	if state&extStateValid == 0 {
		fs.State = vps.FilesystemInUse
	}
	if s.incompat&extNeedsRecovery != 0 {
		fs.State = vps.FilesystemNeedsRecovery
	}
	if fs.State != vps.FilesystemClean {
		fs.Approximate = "It is mounted, or was not unmounted: what was written in the last minute of its use may be missing."
	}
	if state&extStateErrors != 0 {
		fs.State = vps.FilesystemErrors
		fs.Warnings = append(fs.Warnings, "The kernel noted errors in it; check it with fsck.")
	}
}

// errNoCopy says that there is no copy of a superblock.
var errNoCopy = errors.New("no copy of the superblock was found")

// rescueExt reads a filesystem from one of the copies of its superblock. The
// first copy stands in the second group, whose start depends on the block
// size and on how many blocks a group has: as many as a bitmap block has
// bits, if mke2fs was not told otherwise.
func rescueExt(d *device, _ []*device) (vps.Filesystem, error) {
	for logBlock := range uint(7) {
		size := int64(1024) << logBlock
		perGroup := min(8*size, 1<<16-8) // EXT2_MAX_BLOCKS_PER_GROUP
		for first := range int64(2) {
			for _, clusters := range []int64{1, 16} { // bigalloc, by default 16 blocks each
				block := first + perGroup*clusters
				if first == 1 && size != 1024 || block*size+extLength > d.Size() {
					continue
				}
				raw, err := d.read(block*size, extLength)
				if err != nil {
					return vps.Filesystem{}, err
				}
				s, err := parseExt(raw, d.Size())
				if err != nil || s.blockSize != size || s.blocksPerGroup+s.first != uint64(block) || s.u16(0x5a) != 1 {
					continue
				}
				return s.report(d, uint64(block))
			}
		}
	}
	return vps.Filesystem{}, errNoCopy
}
