package fsusage

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// What a chunk is for, and how it is replicated (BTRFS_BLOCK_GROUP_…).
const (
	btrfsData     = 1 << 0
	btrfsSystem   = 1 << 1
	btrfsMetadata = 1 << 2
	btrfsRAID0    = 1 << 3
	btrfsRAID1    = 1 << 4
	btrfsDup      = 1 << 5
	btrfsRAID10   = 1 << 6
	btrfsRAID5    = 1 << 7
	btrfsRAID6    = 1 << 8
	btrfsRAID1C3  = 1 << 9
	btrfsRAID1C4  = 1 << 10

	btrfsKinds    = btrfsData | btrfsSystem | btrfsMetadata
	btrfsProfiles = 0x7f8
)

// btrfsChunk is a run of logical addresses, and where it lies on the devices.
type btrfsChunk struct {
	start, length uint64
	stripeLength  uint64
	kind          uint64
	subStripes    uint64
	stripes       []btrfsStripe
	used          uint64 // by the block group's item
}

// btrfsStripe is a chunk's part on one device.
type btrfsStripe struct{ device, offset uint64 }

// Items of the chunk tree and of sys_chunk_array: struct btrfs_chunk.
const (
	btrfsChunkBytes  = 48
	btrfsStripeBytes = 32
)

// parseChunk reads a chunk's item, and returns what follows it in b.
func parseChunk(start uint64, b []byte) (c btrfsChunk, rest []byte, err error) {
	if len(b) < btrfsChunkBytes {
		return c, nil, damaged("the description of its chunk at %d is cut off", start)
	}
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	c = btrfsChunk{start: start, length: u64(0), stripeLength: u64(16), kind: u64(24), subStripes: uint64(binary.LittleEndian.Uint16(b[46:]))}
	n := int(binary.LittleEndian.Uint16(b[44:]))
	if n == 0 || n > btrfsMaxStripes || len(b) < btrfsChunkBytes+n*btrfsStripeBytes {
		return c, nil, damaged("its chunk at %d would have %d stripes", start, n)
	}
	for i := range n {
		at := btrfsChunkBytes + i*btrfsStripeBytes
		c.stripes = append(c.stripes, btrfsStripe{u64(at), u64(at + 8)})
	}
	return c, b[btrfsChunkBytes+n*btrfsStripeBytes:], c.check()
}

func (c *btrfsChunk) check() error {
	profile, n := c.kind&btrfsProfiles, len(c.stripes)
	switch {
	case c.length == 0 || c.length > math.MaxInt64 || c.start > math.MaxInt64-c.length:
		return damaged("its chunk at %d would have %d bytes", c.start, c.length)
	case c.kind&btrfsKinds == 0 || c.kind&^(btrfsKinds|btrfsProfiles) != 0 || profile&(profile-1) != 0:
		return damaged("its chunk at %d is of a kind that is not known: %#x", c.start, c.kind)
	case c.stripeLength < 4096 || c.stripeLength > 1<<30 || c.stripeLength&(c.stripeLength-1) != 0:
		return damaged("its chunk at %d would be cut into pieces of %d bytes", c.start, c.stripeLength)
	case profile == 0 && n != 1, c.parity() >= n, c.copies() > n, profile == btrfsRAID10 && (c.subStripes != 2 || n%2 != 0):
		return damaged("its chunk at %d cannot have %d stripes", c.start, n)
	}
	for _, s := range c.stripes {
		if s.offset > math.MaxInt64-c.length {
			return damaged("its chunk at %d would lie at %d", c.start, s.offset)
		}
	}
	return nil
}

// parity is how many of the stripes hold parity, and copies how many hold the
// same.
func (c *btrfsChunk) parity() int {
	switch c.kind & btrfsProfiles {
	case btrfsRAID5:
		return 1
	case btrfsRAID6:
		return 2
	}
	return 0
}

func (c *btrfsChunk) copies() int {
	switch c.kind & btrfsProfiles {
	case btrfsRAID1, btrfsDup, btrfsRAID10:
		return 2
	case btrfsRAID1C3:
		return 3
	case btrfsRAID1C4:
		return 4
	}
	return 1
}

// onDevices is what n bytes of the chunk take on all devices together.
func (c *btrfsChunk) onDevices(n uint64) uint64 {
	if p := c.parity(); p > 0 {
		data := uint64(len(c.stripes) - p)
		return n + (n+data-1)/data*uint64(p)
	}
	return n * uint64(c.copies())
}

// stripeOn is what the chunk takes of each device that it lies on.
func (c *btrfsChunk) stripeOn() uint64 {
	data := uint64((len(c.stripes) - c.parity()) / c.copies())
	return (c.length + data - 1) / data
}

// places are where a logical address lies, and how many bytes from there on
// lie there too; each place is as good as another (__btrfs_map_block).
func (c *btrfsChunk) places(address uint64) (places []btrfsStripe, length uint64) {
	off := address - c.start
	number, in := off/c.stripeLength, off%c.stripeLength
	n := uint64(len(c.stripes))
	left := min(c.stripeLength-in, c.length-off)
	at := func(index, row uint64) btrfsStripe {
		s := c.stripes[index]
		return btrfsStripe{s.device, s.offset + row*c.stripeLength + in}
	}
	switch c.kind & btrfsProfiles {
	case btrfsRAID0:
		return []btrfsStripe{at(number%n, number/n)}, left
	case btrfsRAID10:
		pairs := n / c.subStripes
		for i := range c.subStripes {
			places = append(places, at(number%pairs*c.subStripes+i, number/pairs))
		}
		return places, left
	case btrfsRAID5, btrfsRAID6:
		data := n - uint64(c.parity())
		row := number / data
		return []btrfsStripe{at((number%data+row)%n, row)}, left
	}
	for _, s := range c.stripes {
		places = append(places, btrfsStripe{s.device, s.offset + off})
	}
	return places, c.length - off
}

// btrfsKind is a kind of chunk with its profile.
type btrfsKind struct{ kind, profile uint64 }

func (k btrfsKind) compare(o btrfsKind) int {
	return cmp.Or(cmp.Compare(k.kind, o.kind), cmp.Compare(k.profile, o.profile))
}

func (k btrfsKind) name() string {
	switch k.kind {
	case btrfsData:
		return "data"
	case btrfsSystem:
		return "system"
	case btrfsMetadata:
		return "metadata"
	}
	return "mixed"
}

// profileName names the profile as `btrfs filesystem usage` does.
func (k btrfsKind) profileName() string {
	switch k.profile {
	case btrfsRAID0:
		return "RAID0"
	case btrfsRAID1:
		return "RAID1"
	case btrfsDup:
		return "DUP"
	case btrfsRAID10:
		return "RAID10"
	case btrfsRAID5:
		return "RAID5"
	case btrfsRAID6:
		return "RAID6"
	case btrfsRAID1C3:
		return "RAID1C3"
	case btrfsRAID1C4:
		return "RAID1C4"
	}
	return "single"
}

// btrfsVolume is a filesystem with the devices that are at hand.
type btrfsVolume struct {
	s       *btrfsSuper
	devices map[uint64]btrfsDevice
	// seeds are devices at hand of other filesystems, which this one may have
	// grown out of, by their UUID.
	seeds    map[string]*device
	chunks   []btrfsChunk // by start
	roots    *btrfsTree
	ownTrees uint64 // bytes of the trees that only the kernel writes
}

// assembleBtrfs finds the devices of a filesystem, of which one has the superblock
// s and lies on d, among those that were handed in. The newest superblock
// counts: a device may have been away while the others were written.
func assembleBtrfs(s *btrfsSuper, d *device, others []*device) (*btrfsVolume, error) {
	own := s.device
	own.at = d
	v := &btrfsVolume{s: s, devices: map[uint64]btrfsDevice{own.id: own}, seeds: map[string]*device{}}
	for _, o := range others {
		other, err := superAt(o, btrfsPlaces[0])
		if errors.Is(err, errBudget) || o.ctx.Err() != nil {
			return nil, err
		}
		if err != nil || int64(other.device.size) > o.Size() {
			continue
		}
		found := other.device
		found.at = o
		if !bytes.Equal(other.fsid, s.fsid) {
			v.seeds[found.uuid] = o
			continue
		}
		if before, twice := v.devices[found.id]; twice && (before.at == d || other.generation <= v.s.generation) {
			continue
		}
		v.devices[found.id] = found
		if other.generation > v.s.generation {
			v.s = other
		}
	}
	return v, v.firstChunks()
}

// firstChunks reads the chunks that hold the chunk tree.
func (v *btrfsVolume) firstChunks() error {
	rest := v.s.raw[btrfsSysArray:][:v.s.u32(160)]
	for len(rest) > 0 {
		if len(rest) < btrfsKeyBytes {
			return damaged("its first chunks are cut off")
		}
		key := parseBtrfsKey(rest)
		if key.kind != btrfsChunkItem {
			return damaged("its first chunks hold an item of type %d", key.kind)
		}
		c, after, err := parseChunk(key.offset, rest[btrfsKeyBytes:])
		if err != nil {
			return err
		}
		v.chunks, rest = append(v.chunks, c), after
	}
	return v.sortChunks()
}

// sortChunks brings the chunks in order and refuses those that overlap.
func (v *btrfsVolume) sortChunks() error {
	slices.SortFunc(v.chunks, func(a, b btrfsChunk) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(v.chunks); i++ {
		if before := &v.chunks[i-1]; before.start+before.length > v.chunks[i].start {
			return damaged("its chunks at %d and %d overlap", before.start, v.chunks[i].start)
		}
	}
	return nil
}

// chunkAt is the chunk that holds a logical address, or nil.
func (v *btrfsVolume) chunkAt(address uint64) *btrfsChunk {
	i, found := slices.BinarySearchFunc(v.chunks, address, func(c btrfsChunk, a uint64) int { return cmp.Compare(c.start, a) })
	if !found {
		i--
	}
	if i < 0 || address-v.chunks[i].start >= v.chunks[i].length {
		return nil
	}
	return &v.chunks[i]
}
