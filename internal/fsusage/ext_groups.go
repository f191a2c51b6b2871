package fsusage

import (
	"encoding/binary"
	"math"

	"sublet/internal/vps"
)

// sumGroups replaces the free counts of fs by the sums of those in the group
// descriptors (struct ext4_group_desc of the kernel's fs/ext4/ext4.h), after
// checking each descriptor's checksum where the format has one.
func (s *extSuper) sumGroups(d *device, fs *vps.Filesystem) error {
	perBlock := uint64(s.blockSize) / uint64(s.descSize)
	ratio := uint64(s.clusterSize / s.blockSize)
	tables := (s.groups + perBlock - 1) / perBlock
	var free, freeInodes uint64
	for at := uint64(0); at < tables; {
		block, run := s.tableBlock(at), uint64(1)
		// Tables that follow each other are read together, 1 MiB at most.
		for at+run < tables && run < 1<<20/uint64(s.blockSize) && s.tableBlock(at+run) == block+run {
			run++
		}
		if block+run > s.blocks {
			return damaged("its group descriptors would lie outside of it")
		}
		table, err := d.read(int64(block)*s.blockSize, int(run)*int(s.blockSize))
		if err != nil {
			return err
		}
		for i := range min(run*perBlock, s.groups-at*perBlock) {
			group := at*perBlock + i
			desc := table[i*uint64(s.descSize):][:s.descSize]
			clusters, inodes, err := s.group(desc, group)
			if err != nil {
				return err
			}
			free += clusters * ratio
			freeInodes += inodes
		}
		at += run
	}
	// The last group may end amid a cluster.
	fs.FreeBlocks, fs.FreeInodes = min(free, s.blocks), freeInodes
	return nil
}

// group returns the free clusters and inodes of one group.
func (s *extSuper) group(desc []byte, group uint64) (clusters, inodes uint64, err error) {
	u16 := func(off int) uint64 { return uint64(binary.LittleEndian.Uint16(desc[off:])) }
	if !s.groupChecksum(desc, uint32(group)) {
		return 0, 0, damaged("the checksum of its group descriptor %d is wrong", group)
	}
	clusters, inodes = u16(0xc), u16(0xe)
	if s.descSize >= 64 {
		clusters |= u16(0x2c) << 16
		inodes |= u16(0x2e) << 16
	}
	if clusters > s.clustersPerGroup || inodes > s.inodesPerGroup {
		return 0, 0, damaged("its group %d tells %d free clusters of %d, and %d free inodes of %d", group, clusters, s.clustersPerGroup, inodes, s.inodesPerGroup)
	}
	return clusters, inodes, nil
}

// groupChecksum tells whether a descriptor's checksum is right, as
// ext4_group_desc_csum_verify does; true where the format has none.
func (s *extSuper) groupChecksum(desc []byte, group uint32) bool {
	const at, rest = 0x1e, 0x20
	stored := binary.LittleEndian.Uint16(desc[at:])
	number := binary.LittleEndian.AppendUint32(nil, group)
	switch {
	case s.ro&extMetadataCsum != 0:
		seed := s.u32(0x270)
		if s.incompat&extChecksumSeed == 0 {
			seed = crc32c(math.MaxUint32, s.raw[0x68:0x78])
		}
		sum := crc32c(crc32c(seed, number), desc[:at])
		sum = crc32c(crc32c(sum, []byte{0, 0}), desc[rest:])
		return uint16(sum&math.MaxUint16) == stored
	case s.ro&extGroupChecksum != 0:
		sum := crc16(crc16(crc16(math.MaxUint16, s.raw[0x68:0x78]), number), desc[:at])
		return crc16(sum, desc[rest:]) == stored
	}
	return true
}

// crc16 is the kernel's lib/crc16.c: CRC-16/ANSI, reflected, going on from sum.
func crc16(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum ^= uint16(c)
		for range 8 {
			if sum&1 != 0 {
				sum = sum>>1 ^ 0xa001
			} else {
				sum >>= 1
			}
		}
	}
	return sum
}

// tableBlock is where the n-th block of group descriptors lies
// (descriptor_loc of the kernel's fs/ext4/super.c).
func (s *extSuper) tableBlock(n uint64) uint64 {
	if s.incompat&extMetaBG == 0 || n < uint64(s.u32(0x104)) {
		return uint64(extOffset/s.blockSize) + n + 1
	}
	group := n * (uint64(s.blockSize) / uint64(s.descSize))
	block := s.first + group*s.blocksPerGroup
	if s.hasSuper(group) {
		block++
	}
	// With blocks of 1 KiB the superblock is block 1; with clusters the first
	// group starts at block 0 all the same.
	if s.blockSize == 1024 && n == 0 && s.first == 0 {
		block++
	}
	return block
}

// hasSuper tells whether a group starts with a superblock (ext4_bg_has_super).
func (s *extSuper) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&extSparseSuper2 != 0:
		return group == uint64(s.u32(0x24c)) || group == uint64(s.u32(0x250))
	case group == 1 || s.ro&extSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

// overhead is what the filesystem's own structures take, in bytes: what the
// superblock tells, which newer kernels and mke2fs write there, or else a sum
// as statfs makes it (ext4_calculate_overhead).
func (s *extSuper) overhead() vps.Bytes {
	if clusters := uint64(s.u32(0x248)); clusters != 0 && clusters < s.blocks/uint64(s.clusterSize/s.blockSize) {
		return vps.Bytes(clusters) * vps.Bytes(s.clusterSize)
	}
	size := uint64(s.blockSize)
	perBlock := size / uint64(s.descSize)
	tables := (s.groups + perBlock - 1) / perBlock
	whole := tables + uint64(s.u16(0xce)) // with those reserved for growth
	if s.incompat&extMetaBG != 0 {
		whole = min(uint64(s.u32(0x104)), tables)
	}
	blocks := s.first + s.groups*(2+(s.inodesPerGroup*s.inodeSize+size-1)/size)
	if s.incompat&extMetaBG != 0 {
		blocks += min(3*(tables-whole), 3*s.groups)
	}
	supers := uint64(0)
	for group := range s.groups {
		if s.hasSuper(group) {
			supers++
		}
	}
	blocks += supers * (1 + whole)
	if s.u32(0xe0) != 0 && s.raw[0xfd] == 1 { // s_jnl_blocks is a copy of the journal's inode
		journal := uint64(s.u32(0x10c+15*4))<<32 | uint64(s.u32(0x10c+16*4))
		if journal/size <= s.blocks {
			blocks += journal / size
		}
	}
	return vps.Bytes(min(blocks, s.blocks-min(s.free, s.blocks)) * size)
}
