package fsusage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"sublet/internal/vps"
)

// The superblock of Btrfs: struct btrfs_super_block of the kernel's
// include/uapi/linux/btrfs_tree.h, little-endian, at three places of each
// device as far as it reaches.
const (
	btrfsMagic      = "_BHRfS_M"
	btrfsSuperBytes = 4096
	btrfsMaxNode    = 65536
	btrfsMaxStripes = 1024
	// btrfsSysArray is where the chunks stand that hold the chunk tree itself.
	btrfsSysArray, btrfsSysArrayBytes = 811, 2048
	btrfsDevItem, btrfsDevItemBytes   = 201, 98
)

var btrfsPlaces = []int64{64 << 10, 64 << 20, 256 << 30} // btrfs_sb_offset

// Feature bits that change where things stand, and flags.
const (
	btrfsBlockGroupTree = 0x8    // compat_ro
	btrfsMixed          = 0x4    // incompat, MIXED_GROUPS
	btrfsMetadataUUID   = 0x400  // incompat
	btrfsExtentTreeV2   = 0x2000 // incompat
	btrfsFlagError      = 1 << 2
)

var btrfsFormat = format{name: "btrfs", magics: []magic{{btrfsPlaces[0] + 64, btrfsMagic}}, read: readBtrfs, rescue: rescueBtrfs}

// btrfsSuper is a superblock whose numbers have been checked.
type btrfsSuper struct {
	raw                []byte
	sum                btrfsSum
	sectorSize         int64
	nodeSize           int
	devices            uint64
	total, used        uint64
	roFlags, inFlags   uint64
	chunkRoot, root    uint64
	chunkLevel         uint8
	rootLevel          uint8
	generation         uint64
	chunkGeneration    uint64
	fsid, metadataFSID []byte
	device             btrfsDevice // the one that it stands on
}

func (s *btrfsSuper) u32(off int) uint32 { return binary.LittleEndian.Uint32(s.raw[off:]) }
func (s *btrfsSuper) u64(off int) uint64 { return binary.LittleEndian.Uint64(s.raw[off:]) }

// btrfsSum is a checksum of a filesystem: its length in bytes and how it is
// made, by csum_type (BTRFS_CSUM_TYPE_…).
type btrfsSum struct {
	length int
	of     func(b []byte) []byte
}

var btrfsSums = []btrfsSum{
	{4, func(b []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)) }},
	{8, func(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b)) }},
	{sha256.Size, func(b []byte) []byte { sum := sha256.Sum256(b); return sum[:] }},
	{blake2b.Size256, func(b []byte) []byte { sum := blake2b.Sum256(b); return sum[:] }},
}

// right tells whether a block carries its checksum, in its first 32 bytes.
func (c btrfsSum) right(block []byte) bool { return bytes.Equal(c.of(block[32:]), block[:c.length]) }

// parseBtrfs checks a superblock that was read from this place of its device.
// Every number of the result is in the range in which the kernel accepts it
// (btrfs_validate_super).
func parseBtrfs(raw []byte, place int64) (*btrfsSuper, error) {
	s := &btrfsSuper{raw: raw}
	if string(raw[64:72]) != btrfsMagic {
		return nil, damaged("it has no superblock")
	}
	kind := binary.LittleEndian.Uint16(raw[196:])
	if int(kind) >= len(btrfsSums) {
		return nil, damaged("its checksums are of a kind that is not known here: %d", kind)
	}
	s.sum = btrfsSums[kind]
	if !s.sum.right(raw) {
		return nil, damaged("the checksum of its superblock is wrong")
	}
	s.total, s.used, s.devices = s.u64(112), s.u64(120), s.u64(136)
	s.sectorSize = int64(s.u32(144))
	node := s.u32(148)
	s.roFlags, s.inFlags = s.u64(180), s.u64(188)
	s.root, s.chunkRoot = s.u64(80), s.u64(88)
	s.rootLevel, s.chunkLevel = raw[198], raw[199]
	s.generation, s.chunkGeneration = s.u64(72), s.u64(164)
	s.fsid, s.metadataFSID = raw[32:48], raw[32:48]
	if s.inFlags&btrfsMetadataUUID != 0 {
		s.metadataFSID = raw[571:587]
	}
	s.device = btrfsDeviceItem(raw[btrfsDevItem:][:btrfsDevItemBytes])
	switch {
	case int64(s.u64(48)) != place:
		return nil, damaged("its superblock belongs to another place")
	case s.sectorSize < 512 || s.sectorSize > 65536 || s.sectorSize&(s.sectorSize-1) != 0:
		return nil, damaged("its sectors would have %d bytes", s.sectorSize)
	case int64(node) < s.sectorSize || node > btrfsMaxNode || node&(node-1) != 0:
		return nil, damaged("its nodes would have %d bytes", node)
	case s.rootLevel >= btrfsLevels || s.chunkLevel >= btrfsLevels:
		return nil, damaged("its trees would be %d and %d levels high", s.rootLevel, s.chunkLevel)
	case s.devices == 0 || s.devices > 1<<20:
		return nil, damaged("it would have %d devices", s.devices)
	case s.total == 0 || s.total > math.MaxInt64 || s.used > s.total:
		return nil, damaged("it tells %d used bytes of %d", s.used, s.total)
	case s.device.size == 0 || s.device.size > s.total || s.device.used > s.device.size:
		return nil, damaged("its device %d would have %d bytes, %d of them in use", s.device.id, s.device.size, s.device.used)
	case s.u32(160) > btrfsSysArrayBytes:
		return nil, damaged("its first chunks would take %d bytes", s.u32(160))
	}
	s.nodeSize = int(node)
	return s, nil
}

// btrfsDevice is one device as its item describes it.
type btrfsDevice struct {
	id, size, used uint64
	uuid           string
	at             *device // nil for one that is not at hand
}

func btrfsDeviceItem(b []byte) btrfsDevice {
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	return btrfsDevice{id: u64(0), size: u64(8), used: u64(16), uuid: uuidText(b[66:82])}
}

// superAt reads the superblock at one of its places.
func superAt(d *device, place int64) (*btrfsSuper, error) {
	raw, err := d.read(place, btrfsSuperBytes)
	if err != nil {
		return nil, err
	}
	return parseBtrfs(raw, place)
}

// readBtrfs reads the filesystem whose first superblock is in place, and falls
// back to a copy when that one is damaged.
func readBtrfs(d *device, others []*device) (vps.Filesystem, error) {
	s, err := superAt(d, btrfsPlaces[0])
	if err == nil {
		return s.report(d, others)
	}
	if fs, rescued := rescueBtrfs(d, others); rescued == nil {
		fs.Warnings = append(fs.Warnings, "Its first superblock is damaged; a copy of it was read. Repair it with `btrfs rescue super-recover`.")
		return fs, nil
	}
	return vps.Filesystem{}, err
}

// rescueBtrfs reads a filesystem from the newest copy of its superblock.
func rescueBtrfs(d *device, others []*device) (vps.Filesystem, error) {
	var best *btrfsSuper
	for _, place := range btrfsPlaces[1:] {
		if place > d.Size()-btrfsSuperBytes {
			break
		}
		if s, err := superAt(d, place); err == nil && (best == nil || s.generation > best.generation) {
			best = s
		}
	}
	if best == nil {
		return vps.Filesystem{}, errNoCopy
	}
	return best.report(d, others)
}

// report makes the report of a filesystem of which d is one device.
func (s *btrfsSuper) report(d *device, others []*device) (vps.Filesystem, error) {
	if int64(s.device.size) > d.Size() {
		return vps.Filesystem{}, damaged("it spans %d bytes of this device, and only %d are there; the end was cut off", s.device.size, d.Size())
	}
	v, err := assembleBtrfs(s, d, others)
	if err != nil {
		return vps.Filesystem{}, err
	}
	older := v.s.generation > s.generation
	s = v.s
	fs := vps.Filesystem{
		Type: vps.FilesystemBtrfs, Label: text(s.raw[299:555]), UUID: uuidText(s.fsid),
		BlockSize: vps.Bytes(s.sectorSize), Size: vps.Bytes(s.total), Blocks: s.total / uint64(s.sectorSize),
		State: vps.FilesystemClean, Features: s.features(),
		Btrfs: &vps.BtrfsDetails{
			NodeSize: vps.Bytes(s.nodeSize), Generation: s.generation, BytesUsed: vps.Bytes(s.used),
			Spaces: []vps.BtrfsSpace{}, Devices: []vps.BtrfsDevice{},
		},
	}
	if s.u64(96) != 0 {
		fs.State = vps.FilesystemNeedsRecovery
		fs.Approximate = "It was not unmounted, or is mounted: its log is not counted, nor what was written in the last half minute of its use."
	}
	if s.u64(56)&btrfsFlagError != 0 {
		fs.State = vps.FilesystemErrors
		fs.Warnings = append(fs.Warnings, "The kernel noted errors in it; check it with `btrfs check`.")
	}
	if older {
		fs.Warnings = append(fs.Warnings, "Another of its devices was written later, when this one was away; the counts are of the newer state.")
	}
	if s.inFlags&btrfsExtentTreeV2 != 0 {
		// An experiment of the kernel's, whose trees are others.
		fs.Free = fs.Size - fs.Btrfs.BytesUsed
		fs.FreeBlocks = uint64(fs.Free) / uint64(s.sectorSize)
		fs.Approximate = "It has the feature extent-tree-v2, of which only the superblock is read here: replication is not counted."
		return fs, nil
	}
	if err := v.readChunks(); err != nil {
		return fs, err
	}
	if err := v.readOwnTrees(); err != nil {
		return fs, err
	}
	switch err := v.readUsed(); {
	case errors.Is(err, errBudget):
		// Each block group's item may be in a node of its own.
		v.spreadUsed()
		fs.Approximate = "It is too large to be read whole: what is used is exact, and how it is spread over kinds of content is estimated."
	case err != nil:
		return fs, err
	}
	return fs, v.account(&fs)
}

// account puts what was found of the chunks and devices into the report.
func (v *btrfsVolume) account(fs *vps.Filesystem) error {
	var set, used, raw uint64
	spaces := map[btrfsKind]*vps.BtrfsSpace{}
	var order []btrfsKind
	for i := range v.chunks {
		c := &v.chunks[i]
		kind := btrfsKind{c.kind & btrfsKinds, c.kind & btrfsProfiles}
		if spaces[kind] == nil {
			spaces[kind] = &vps.BtrfsSpace{Kind: kind.name(), Profile: kind.profileName()}
			order = append(order, kind)
		}
		spaces[kind].Size += vps.Bytes(c.length)
		spaces[kind].Used += vps.Bytes(c.used)
		set, used, raw = set+c.onDevices(c.length), used+c.used, raw+c.onDevices(c.used)
	}
	slices.SortFunc(order, btrfsKind.compare)
	for _, kind := range order {
		fs.Btrfs.Spaces = append(fs.Btrfs.Spaces, *spaces[kind])
	}
	missing := 0
	for _, id := range v.ids() {
		d := v.devices[id]
		fs.Btrfs.Devices = append(fs.Btrfs.Devices, vps.BtrfsDevice{ID: id, UUID: d.uuid, Size: vps.Bytes(d.size), Used: vps.Bytes(d.used), Present: d.at != nil})
		if d.at == nil {
			missing++
		}
	}
	if set > v.s.total || raw > set {
		return damaged("it tells %d bytes set aside and %d used, of %d", set, raw, v.s.total)
	}
	if n := uint64(len(v.devices)); n != v.s.devices {
		fs.Warnings = append(fs.Warnings, "Its superblock tells "+strconv.FormatUint(v.s.devices, 10)+" devices, and "+strconv.FormatUint(n, 10)+" are described.")
	}
	if missing > 0 {
		fs.Warnings = append(fs.Warnings, "Of its "+strconv.Itoa(len(v.devices))+" devices, "+strconv.Itoa(missing)+" were not at hand; the counts are of all of them.")
	}
	if used != v.s.used {
		fs.Warnings = append(fs.Warnings, "Its superblock tells "+vps.Bytes(v.s.used).String()+" in use, and its chunks "+vps.Bytes(used).String()+".")
	}
	fs.Btrfs.Unallocated = vps.Bytes(v.s.total - set)
	fs.Btrfs.Estimated = v.estimate(v.s.total - set)
	fs.Free = vps.Bytes(v.s.total - raw)
	// Replicas and parity are not what files take, and what is free can be
	// taken by files only as far as their profile lets them.
	fs.Overhead = vps.Bytes(raw - used)
	fs.Kept = max(fs.Free-vps.Bytes(v.room()), 0)
	fs.FreeBlocks = uint64(fs.Free) / uint64(v.s.sectorSize)
	return nil
}

// estimate is what new files can still take, in bytes: what is free of the
// space set aside for data, and of what is not set aside as much as data
// would get, if all of it went there (as `btrfs filesystem usage` does).
func (v *btrfsVolume) estimate(unallocated uint64) vps.Bytes {
	var size, free, onDevices uint64
	for i := range v.chunks {
		if c := &v.chunks[i]; c.kind&btrfsData != 0 {
			size, free, onDevices = size+c.length, free+c.length-c.used, onDevices+c.onDevices(c.length)
		}
	}
	if size == 0 {
		return vps.Bytes(unallocated)
	}
	return vps.Bytes(free) + vps.Bytes(float64(unallocated)*float64(size)/float64(onDevices))
}

func (v *btrfsVolume) ids() []uint64 {
	ids := make([]uint64, 0, len(v.devices))
	for id := range v.devices {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// btrfsFeatureNames are the bits of compat_ro_flags and incompat_flags as
// `btrfs inspect-internal dump-super` names them.
var btrfsFeatureNames = [2][]string{
	{"FREE_SPACE_TREE", "FREE_SPACE_TREE_VALID", "VERITY", "BLOCK_GROUP_TREE"},
	{
		"MIXED_BACKREF", "DEFAULT_SUBVOL", "MIXED_GROUPS", "COMPRESS_LZO", "COMPRESS_ZSTD", "BIG_METADATA", "EXTENDED_IREF",
		"RAID56", "SKINNY_METADATA", "NO_HOLES", "METADATA_UUID", "RAID1C34", "ZONED", "EXTENT_TREE_V2", "RAID_STRIPE_TREE", "", "SIMPLE_QUOTA",
	},
}

func (s *btrfsSuper) features() []string {
	names := []string{}
	for set, mask := range []uint64{s.roFlags, s.inFlags} {
		for bit := range 64 {
			if mask&(1<<bit) == 0 {
				continue
			}
			name := ""
			if bit < len(btrfsFeatureNames[set]) {
				name = btrfsFeatureNames[set][bit]
			}
			if name == "" {
				name = [2]string{"COMPAT_RO_", "INCOMPAT_"}[set] + strconv.Itoa(bit)
			}
			names = append(names, name)
		}
	}
	return names
}
