package fsusage

import (
	"encoding/binary"
)

// Headers of a group: AGF in its second sector, AGI in its third (struct
// xfs_agf and xfs_agi of the kernel's fs/xfs/libxfs/xfs_format.h).
const (
	xfsAGFMagic = "XAGF"
	xfsAGIMagic = "XAGI"
)

// Bits of sb_features_ro_compat: trees that a group has besides those of its
// free space and inodes.
const (
	xfsFreeInodeTree = 0x1 // FINOBT
	xfsRMapTree      = 0x2 // RMAPBT
	xfsRefcountTree  = 0x4 // REFLINK
	xfsTreeCounts    = 0x8 // INOBTCNT
)

// xfsSums are the sums over all groups.
type xfsSums struct {
	free               uint64 // in blocks
	inodes, freeInodes uint64 // of those that are made
	kept               uint64 // of free, what the groups keep for their trees
}

// sumGroups adds up what the groups' headers tell, as the kernel does when it
// mounts a filesystem whose log is not clean (xfs_initialize_perag_data).
func (s *xfsSuper) sumGroups(d *device) (sums xfsSums, err error) {
	for group := range s.ags {
		b, err := d.read(int64(group*s.agBlocks)*s.blockSize+s.sectorSize, int(2*s.sectorSize))
		if err != nil {
			return xfsSums{}, err
		}
		agf, agi := b[:s.sectorSize], b[s.sectorSize:]
		if err := s.checkHeader(agf, group, xfsAGFMagic, 216); err != nil {
			return xfsSums{}, err
		}
		if err := s.checkHeader(agi, group, xfsAGIMagic, 312); err != nil {
			return xfsSums{}, err
		}
		u32 := func(b []byte, off int) uint64 { return uint64(binary.BigEndian.Uint32(b[off:])) }
		// agf_freeblks, agf_flcount, and the blocks of the free space's own
		// trees, which count as free.
		blocks := u32(agf, 52) + u32(agf, 48)
		if s.lazy {
			blocks += u32(agf, 60)
		}
		has, unused := u32(agi, 16), u32(agi, 28)
		if blocks > s.groupBlocks(group) || unused > has || has>>s.inodesPerBlockLog > s.groupBlocks(group) {
			return xfsSums{}, damaged("its group %d of %d blocks tells %d free ones, and %d free inodes of %d", group, s.groupBlocks(group), blocks, unused, has)
		}
		sums.free, sums.inodes, sums.freeInodes = sums.free+blocks, sums.inodes+has, sums.freeInodes+unused
		sums.kept += s.keptIn(group, agf, agi)
	}
	return sums, nil
}

// checkHeader checks one header of a group, whose checksum stands at sum.
func (s *xfsSuper) checkHeader(b []byte, group uint64, magic string, sum int) error {
	switch blocks := uint64(binary.BigEndian.Uint32(b[12:])); {
	case string(b[:4]) != magic || uint64(binary.BigEndian.Uint32(b[8:])) != group:
		return damaged("the header %s of its group %d is missing", magic, group)
	case s.version == 5 && !xfsSum(b, sum):
		return damaged("the checksum of the header %s of its group %d is wrong", magic, group)
	case blocks != s.groupBlocks(group):
		return damaged("its group %d has %d blocks by its header %s, and %d by the superblock", group, blocks, magic, s.groupBlocks(group))
	}
	return nil
}

// reservePool is what the kernel puts aside of the free blocks when it mounts
// (xfs_default_resblks), so that it never lacks a block amid a transaction,
// and what no group gives away (xfs_alloc_set_aside).
func (s *xfsSuper) reservePool() uint64 { return min(s.blocks/20, 8192) + 8*s.ags }

// keptIn is what a group keeps of its free blocks: room in which its
// trees can grow to what they need at worst (xfs_ag_resv_init), and the blocks
// of the trees that describe the free space (m_allocbt_blks). Nothing of this
// is on the disk; it follows from the features and the group's size.
func (s *xfsSuper) keptIn(group uint64, agf, agi []byte) uint64 {
	if s.version < 5 {
		return uint64(binary.BigEndian.Uint32(agf[60:]))
	}
	u32 := func(b []byte, off int) uint64 { return uint64(binary.BigEndian.Uint32(b[off:])) }
	has := s.u32(212)
	// The log is never free, so nothing of it has to be described.
	blocks := s.groupBlocks(group)
	if s.logStart != 0 && s.logStart>>s.agBlocksLog == group {
		blocks -= s.logBlocks
	}
	const header = 56 // XFS_BTREE_SBLOCK_CRC_LEN
	room := uint64(s.blockSize) - header
	kept, trees := uint64(0), u32(agf, 60)
	if has&xfsRefcountTree != 0 {
		kept += less(xfsTreeBlocks(blocks, room/12, room/8), u32(agf, 84))
	}
	if has&xfsFreeInodeTree != 0 {
		used := u32(agi, 332) // its levels: it has as many blocks, or more
		if has&xfsTreeCounts != 0 {
			used = u32(agi, 340)
		}
		kept += less(xfsTreeBlocks(blocks<<s.inodesPerBlockLog/64, room/16, room/8), used)
	}
	if has&xfsRMapTree != 0 {
		// This tree lies in free space, so all that is kept for it is free.
		kept += max(blocks/100, xfsTreeBlocks(blocks, room/24, room/44))
		trees = less(trees+1, u32(agf, 80))
	}
	return kept + trees
}

// less is a without b, and 0 when b is more.
func less(a, b uint64) uint64 { return a - min(a, b) }

// xfsTreeBlocks is how many blocks a tree with this many records takes when
// all of its blocks are half full (xfs_btree_calc_size): leaves have room for
// so many records, other blocks for so many children.
func xfsTreeBlocks(records, leaf, node uint64) (blocks uint64) {
	for half := leaf / 2; records > 1; half = node / 2 {
		records = (records + half - 1) / half
		blocks += records
	}
	return blocks
}
