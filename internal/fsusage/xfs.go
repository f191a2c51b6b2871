package fsusage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"sublet/internal/vps"
)

// The superblock of XFS: struct xfs_dsb of the kernel's
// fs/xfs/libxfs/xfs_format.h, big-endian but for the checksum, in the first
// sector of each allocation group. Only the first group's is kept up to date.
const (
	xfsMagic      = "XFSB"
	xfsSuperBytes = 264 // of what is read here
	xfsMinSector  = 512 // XFS_MIN_SECTORSIZE
	xfsMaxSector  = 32768
	xfsMinAGBytes = 16 << 20
	xfsMaxAGBytes = 1 << 40
)

// Bits of sb_versionnum and sb_features2 that change what the numbers mean.
const (
	xfsLazyCount = 0x2 // features2
	xfsMoreBits  = 0x8000
	// xfsNeedsRepair (incompat) is set by xfs_admin and xfs_repair.
	xfsNeedsRepair = 0x10
	// xfsMetadir (incompat, from 6.13): the realtime device is in groups.
	xfsMetadir = 0x100
)

var xfsFormat = format{name: "xfs", magics: []magic{{0, xfsMagic}}, read: readXFS, rescue: rescueXFS}

// xfsSuper is a superblock whose numbers have been checked.
type xfsSuper struct {
	raw                   []byte
	version               int
	blockSize, sectorSize int64
	blocks                uint64 // sb_dblocks
	agBlocks, ags         uint64
	agBlocksLog           uint
	inodesPerBlockLog     uint
	logStart, logBlocks   uint64
	lazy                  bool
}

func (s *xfsSuper) u16(off int) uint16 { return binary.BigEndian.Uint16(s.raw[off:]) }
func (s *xfsSuper) u32(off int) uint32 { return binary.BigEndian.Uint32(s.raw[off:]) }
func (s *xfsSuper) u64(off int) uint64 { return binary.BigEndian.Uint64(s.raw[off:]) }

// incompat is sb_features_incompat, which only version 5 has.
func (s *xfsSuper) incompat() uint32 {
	if s.version < 5 {
		return 0
	}
	return s.u32(216)
}

// xfsSum tells whether the CRC32C that stands in b at off, little-endian, is
// that of b with zeros in its place (xfs_verify_cksum).
func xfsSum(b []byte, off int) bool {
	sum := crc32.Update(0, castagnoli, b[:off])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	sum = crc32.Update(sum, castagnoli, b[off+4:])
	return sum == binary.LittleEndian.Uint32(b[off:])
}

// parseXFS checks a superblock: raw holds the largest sector there is, or as
// much as the device has, which has size bytes. Every number of the result is in the range in
// which the kernel accepts it (xfs_validate_sb_common).
func parseXFS(raw []byte, size int64) (*xfsSuper, error) {
	s := &xfsSuper{raw: raw}
	if len(raw) < xfsSuperBytes || string(raw[:4]) != xfsMagic {
		return nil, damaged("it has no superblock")
	}
	s.version = int(s.u16(100) & 0xf)
	if s.version != 4 && s.version != 5 {
		return nil, damaged("its version would be %d", s.version)
	}
	s.sectorSize = int64(s.u16(102))
	if !xfsPower(s.sectorSize, uint(raw[121]), xfsMinSector, xfsMaxSector) || s.sectorSize > int64(len(raw)) {
		return nil, damaged("its sectors would have %d bytes", s.sectorSize)
	}
	if s.version == 5 && !xfsSum(raw[:s.sectorSize], 224) {
		return nil, damaged("the checksum of its superblock is wrong")
	}
	s.blockSize = int64(s.u32(4))
	s.blocks = s.u64(8)
	s.agBlocks, s.ags = uint64(s.u32(84)), uint64(s.u32(88))
	s.agBlocksLog, s.inodesPerBlockLog = uint(raw[124]), uint(raw[123])
	s.logStart, s.logBlocks = s.u64(48), uint64(s.u32(96))
	s.lazy = s.version == 5 || s.u16(100)&xfsMoreBits != 0 && s.u32(200)&xfsLazyCount != 0
	return s, s.check(size)
}

// xfsPower tells whether v is 2 to the power of log, and in this range.
func xfsPower(v int64, log uint, lowest, highest int64) bool {
	return v >= lowest && v <= highest && log < 63 && v == 1<<log
}

func (s *xfsSuper) check(size int64) error {
	inode, perBlock := int64(s.u16(104)), int64(s.u16(106))
	bytes := s.blockSize * int64(s.agBlocks) // below 2^48
	switch {
	case !xfsPower(s.blockSize, uint(s.raw[120]), 512, 65536):
		return damaged("its blocks would have %d bytes", s.blockSize)
	case s.sectorSize > s.blockSize:
		return damaged("its sectors of %d bytes would be larger than its blocks", s.sectorSize)
	case !xfsPower(inode, uint(s.raw[122]), 256, 2048) || inode*perBlock != s.blockSize || !xfsPower(perBlock, s.inodesPerBlockLog, 1, 256):
		return damaged("its blocks would hold %d inodes of %d bytes each", perBlock, inode)
	case s.ags == 0 || s.agBlocks < 64 || bytes > xfsMaxAGBytes:
		return damaged("it would have %d groups of %d blocks each", s.ags, s.agBlocks)
	case s.agBlocksLog > 31 || uint64(1)<<s.agBlocksLog < s.agBlocks || uint64(1)<<s.agBlocksLog >= 2*s.agBlocks:
		return damaged("its groups of %d blocks would be addressed by %d bits", s.agBlocks, s.agBlocksLog)
	case s.blocks > s.ags*s.agBlocks || s.blocks < (s.ags-1)*s.agBlocks+64: // XFS_MIN_AG_BLOCKS
		return damaged("%d groups of %d blocks cannot hold the %d blocks that it tells", s.ags, s.agBlocks, s.blocks)
	case s.blocks > uint64(math.MaxInt64/s.blockSize):
		return damaged("it would have %d blocks", s.blocks)
	case int64(s.blocks) > size/s.blockSize:
		return damaged("it spans %d bytes, and only %d are there; the end was cut off", int64(s.blocks)*s.blockSize, size)
	case s.raw[127] > 100:
		return damaged("inodes would take up to %d %% of it", s.raw[127])
	case s.logStart != 0 && !s.within(s.logStart, s.logBlocks):
		return damaged("its log would lie outside of it")
	}
	return nil
}

// within tells whether a run of blocks lies in one group. A block's number is
// that of its group, and behind it agBlocksLog bits for the place in there.
func (s *xfsSuper) within(start, blocks uint64) bool {
	group, at := start>>s.agBlocksLog, start&(1<<s.agBlocksLog-1)
	return group < s.ags && blocks > 0 && at+blocks <= s.groupBlocks(group)
}

// groupBlocks is the length of a group; the last one may be shorter.
func (s *xfsSuper) groupBlocks(group uint64) uint64 {
	if group == s.ags-1 {
		return s.blocks - group*s.agBlocks
	}
	return s.agBlocks
}

// readXFS reads the filesystem whose first superblock is in place, and falls
// back to the second one's geometry when that one is damaged.
func readXFS(d *device, others []*device) (vps.Filesystem, error) {
	raw, err := d.read(0, int(min(d.Size(), xfsMinSector)))
	if err != nil {
		return vps.Filesystem{}, err
	}
	if len(raw) == xfsMinSector {
		if sector := int64(binary.BigEndian.Uint16(raw[102:])); sector > xfsMinSector && sector <= min(d.Size(), xfsMaxSector) {
			if raw, err = d.read(0, int(sector)); err != nil {
				return vps.Filesystem{}, err
			}
		}
	}
	s, err := parseXFS(raw, d.Size())
	if err == nil && raw[126] != 0 { // sb_inprogress, which copies may keep
		return vps.Filesystem{}, damaged("its making was not finished")
	}
	if err == nil {
		return s.report(d, others, false)
	}
	if fs, rescued := rescueXFS(d, others); rescued == nil {
		fs.Warnings = append(fs.Warnings, "Its first superblock is damaged; a copy of it was read. Repair it with xfs_repair.")
		return fs, nil
	}
	return vps.Filesystem{}, err
}

// report makes the report of a filesystem. With copied set, s is a copy of
// the superblock, in which only the geometry is to be believed.
func (s *xfsSuper) report(d *device, others []*device, copied bool) (vps.Filesystem, error) {
	fs := vps.Filesystem{
		Type: vps.FilesystemXFS, Label: text(s.raw[108:120]), UUID: uuidText(s.raw[32:48]),
		BlockSize: vps.Bytes(s.blockSize), Blocks: s.blocks, FreeBlocks: s.u64(144),
		HasInodes: true, Inodes: s.u64(128), FreeInodes: s.u64(136), State: vps.FilesystemClean, Features: s.features(),
		XFS: &vps.XFSDetails{
			Version: s.version, SectorSize: vps.Bytes(s.sectorSize), InodeSize: vps.Bytes(s.u16(104)), AGs: int(s.ags),
			LogBlocks: s.logBlocks, ExternalLog: s.logStart == 0, RealtimeBlocks: s.u64(16), FreeRealtimeExtents: s.u64(152),
		},
	}
	fs.Size = vps.Bytes(s.blocks) * fs.BlockSize
	if s.logStart != 0 {
		fs.Overhead = vps.Bytes(s.logBlocks) * fs.BlockSize
	}
	if err := s.describeState(d, others, &fs); err != nil {
		return fs, err
	}
	sums, err := s.sumGroups(d)
	switch {
	case err == nil && (copied || fs.Approximate != "" && s.lazy):
		// The kernel writes the superblock's counts when it unmounts; those of
		// the groups follow the log's within a minute (xfssyncd_centisecs).
		fs.FreeBlocks, fs.Inodes, fs.FreeInodes = sums.free, sums.inodes, sums.freeInodes
	case err != nil && (copied || fs.Approximate != "" || !errors.Is(err, errDamaged)):
		return fs, err
	case err != nil:
		fs.Warnings = append(fs.Warnings, "The header of one of its groups is damaged; check it with xfs_repair -n.")
	}
	switch made, unused := fs.Inodes, fs.FreeInodes; {
	case fs.FreeBlocks > s.blocks:
		return fs, damaged("it tells %d free blocks of %d", fs.FreeBlocks, s.blocks)
	case unused > made:
		return fs, damaged("it tells %d free inodes of %d", unused, made)
	case made>>s.inodesPerBlockLog > s.blocks:
		return fs, damaged("it tells %d inodes, more than fit", made)
	}
	kept := min(sums.kept+s.reservePool(), fs.FreeBlocks)
	fs.Free, fs.Kept = vps.Bytes(fs.FreeBlocks)*fs.BlockSize, vps.Bytes(kept)*fs.BlockSize
	fs.MaxInodes = s.maxInodes(fs.Inodes, fs.FreeBlocks-kept)
	return fs, nil
}

// maxInodes is how many inodes there can be, as statfs(2) tells it: those that
// are, and those that would fit in the free blocks, bounded by the share of
// the filesystem that inodes may take (xfs_fs_statfs, xfs_ialloc_setup_geometry).
func (s *xfsSuper) maxInodes(inodes, free uint64) uint64 {
	most := inodes + free<<s.inodesPerBlockLog
	if percent := uint64(s.raw[127]); percent != 0 {
		chunk := max(64>>s.inodesPerBlockLog, 1) // blocks of one chunk of inodes
		// As the kernel, but without going beyond 64 bits.
		share := s.blocks/100*percent + s.blocks%100*percent/100
		most = min(most, share/uint64(chunk)*uint64(chunk)<<s.inodesPerBlockLog)
	}
	return max(most, inodes)
}

// describeState sets State, Approximate and Warnings.
func (s *xfsSuper) describeState(d *device, others []*device, fs *vps.Filesystem) error {
	clean, err := s.logClean(d, others)
	switch {
	case errors.Is(err, errNoLog):
		fs.Approximate = "Its log is on another device, so it is not known whether it was unmounted in order: what was written in the last minute of its use may be missing."
	case err != nil && errors.Is(err, errDamaged):
		clean = false
		fs.Warnings = append(fs.Warnings, "Its log cannot be read; check it with xfs_repair -n.")
	case err != nil:
		return err
	}
	if err == nil && !clean || errors.Is(err, errDamaged) {
		fs.State = vps.FilesystemNeedsRecovery
		fs.Approximate = "It is mounted, or was not unmounted: what was written in the last minute of its use may be missing."
	}
	if s.incompat()&xfsNeedsRepair != 0 {
		fs.State = vps.FilesystemErrors
		fs.Warnings = append(fs.Warnings, "It is marked as in need of repair; run xfs_repair.")
	}
	if fs.XFS.RealtimeBlocks != 0 {
		fs.Warnings = append(fs.Warnings, "It has a realtime device, which is not counted here.")
	}
	return nil
}

// errNoCopyXFS says that there is no copy of a superblock where one is looked
// for.
var errNoCopyXFS = fmt.Errorf("xfs: %w", errNoCopy)

// rescueXFS reads a filesystem from the second group's superblock. Where that
// stands follows from the number of groups, which mkfs.xfs chooses by the
// size: 4 for a single disk, else a power of two for most (calc_default_ag_geometry),
// when the first one does not tell.
func rescueXFS(d *device, others []*device) (vps.Filesystem, error) {
	var places []int64
	if raw, err := d.read(0, int(min(d.Size(), xfsMinSector))); err == nil && len(raw) == xfsMinSector {
		if size := int64(binary.BigEndian.Uint32(raw[4:])); size >= 512 && size <= 65536 {
			places = append(places, size*int64(binary.BigEndian.Uint32(raw[84:])))
		}
	}
	for block := int64(512); block <= 65536; block *= 2 {
		for _, groups := range []int64{4, 2, 8, 16, 32} {
			blocks := d.Size() / block
			places = append(places, (blocks/groups+min(blocks%groups, 1))*block)
		}
		places = append(places, xfsMaxAGBytes-block)
	}
	for _, at := range places {
		if at < xfsMinAGBytes/32 || at > d.Size()-xfsMaxSector {
			continue
		}
		raw, err := d.read(at, xfsMaxSector)
		if err != nil {
			return vps.Filesystem{}, err
		}
		s, err := parseXFS(raw, d.Size())
		if err != nil || int64(s.agBlocks)*s.blockSize != at {
			continue
		}
		return s.report(d, others, true)
	}
	return vps.Filesystem{}, errNoCopyXFS
}

// xfsFeatureNames are the features as the command version of xfs_db names
// them, in its order: from sb_versionnum, sb_features2, and of version 5
// sb_features_ro_compat and sb_features_incompat.
var xfsFeatureNames = []struct {
	field, bit int // offset in the superblock, and mask
	name       string
}{
	{100, 0x20, "NLINK"},
	{100, 0x2000, "DIRV2"},
	{100, 0x10, "ATTR"},
	{100, 0x40, "QUOTA"},
	{100, 0x80, "ALIGN"},
	{100, 0x100, "DALIGN"},
	{100, 0x200, "SHARED"},
	{100, 0x400, "LOGV2"},
	{100, 0x1000, "EXTFLG"},
	{100, 0x800, "SECTOR"},
	{100, 0x4000, "ASCII_CI"},
	{100, xfsMoreBits, "MOREBITS"},
	{200, 0x8, "ATTR2"},
	{200, xfsLazyCount, "LAZYSBCOUNT"},
	{200, 0x80, "PROJID32BIT"},
	{200, 0x100, "CRC"},
	{200, 0x200, "FTYPE"},
	{216, 0x1, "FTYPE"},
	{212, 0x1, "FINOBT"},
	{216, 0x2, "SPARSE_INODES"},
	{216, 0x4, "META_UUID"},
	{212, 0x2, "RMAPBT"},
	{212, 0x4, "REFLINK"},
	{212, 0x8, "INOBTCNT"},
	{216, 0x8, "BIGTIME"},
	{216, xfsNeedsRepair, "NEEDSREPAIR"},
	{216, 0x20, "NREXT64"},
	{216, 0x40, "EXCHANGE"},
	{216, 0x80, "PARENT"},
	{216, xfsMetadir, "METADIR"},
}

// features names the features; version 5 has no use for some older bits, which
// count as set there.
func (s *xfsSuper) features() []string {
	names := []string{fmt.Sprintf("V%d", s.version)}
	for _, f := range xfsFeatureNames {
		var have uint32
		switch f.field {
		case 100:
			have = uint32(s.u16(100))
		case 200:
			if s.u16(100)&xfsMoreBits != 0 {
				have = s.u32(200)
			}
		default:
			if s.version < 5 {
				continue
			}
			have = s.u32(f.field)
		}
		if have&uint32(f.bit) != 0 && !slices.Contains(names, f.name) {
			names = append(names, f.name)
		}
	}
	return names
}
