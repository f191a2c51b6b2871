package fsusage

import (
	"math"
	"slices"
)

// What the kernel leaves unused of each device: its first mebibyte, which
// holds the superblock (BTRFS_DEVICE_RANGE_RESERVED), and what is less than a
// stripe (BTRFS_STRIPE_LEN).
const (
	btrfsDeviceHead = 1 << 20
	btrfsStripeLen  = 64 << 10
)

// btrfsProfileOrder are the profiles that new chunks get if older chunks have
// several: the first of these (btrfs_reduce_alloc_profile).
var btrfsProfileOrder = []uint64{btrfsRAID1C4, btrfsRAID6, btrfsRAID1C3, btrfsRAID5, btrfsRAID10, btrfsRAID1, btrfsDup, btrfsRAID0, 0}

// room is what new files can still take, in bytes and before replication: what
// is free of the space set aside for data, and as much as can still be set
// aside with data's profile; nothing when metadata is full, for no file can be
// made without.
func (v *btrfsVolume) room() uint64 {
	data, meta := v.free(btrfsData), v.free(btrfsMetadata)
	if keep := v.globalReserve(); keep > 0 && meta.growth == 0 && meta.free < keep {
		return 0
	}
	return data.free + data.growth
}

// btrfsFree is what is free for one kind of content, before replication.
type btrfsFree struct {
	free   uint64 // of what is set aside for it
	growth uint64 // at most, what can still be set aside for it
}

func (v *btrfsVolume) free(kind uint64) (f btrfsFree) {
	profiles := map[uint64]bool{}
	for i := range v.chunks {
		if c := &v.chunks[i]; c.kind&kind != 0 {
			f.free += c.length - c.used
			profiles[c.kind&btrfsProfiles] = true
		}
	}
	if len(profiles) == 0 {
		profiles[0] = true
	}
	var unused []uint64
	for _, d := range v.devices {
		if n := (d.size - d.used) &^ (btrfsStripeLen - 1); n > btrfsDeviceHead {
			unused = append(unused, n-btrfsDeviceHead)
		}
	}
	i := slices.IndexFunc(btrfsProfileOrder, func(p uint64) bool { return profiles[p] })
	f.growth = btrfsGrowth(btrfsProfileOrder[i], unused)
	return f
}

// btrfsGrowth is how much devices with so many unused bytes can hold in chunks
// of a profile.
func btrfsGrowth(profile uint64, unused []uint64) (total uint64) {
	slices.Sort(unused)
	c := btrfsChunk{kind: profile}
	copies, parity := uint64(c.copies()), uint64(c.parity())
	switch profile {
	case btrfsRAID1, btrfsRAID1C3, btrfsRAID1C4:
		return btrfsMirrored(copies, unused)
	case btrfsRAID10, btrfsRAID5, btrfsRAID6:
		// Each chunk goes to all devices with room, until too few are left.
		before := uint64(0)
		for i, u := range unused {
			n := uint64(len(unused) - i)
			switch {
			case n < max(2, parity+1):
				return total
			case profile == btrfsRAID10 && n%2 == 1:
				// It goes to all but the fullest one, which evens them out.
				rest := unused[i:]
				for j := range rest {
					rest[j] -= before
				}
				return total + btrfsMirrored(copies, rest)
			}
			total += (u - before) * (n - parity) / copies
			before = u
		}
		return total
	}
	for _, u := range unused {
		total += u / copies
	}
	return total
}

// btrfsMirrored is how much devices can hold when each chunk goes to the
// emptiest ones: one of so many copies counts, unless some devices are larger
// than what the others can copy. The devices are in the order of their size.
func btrfsMirrored(copies uint64, unused []uint64) uint64 {
	if uint64(len(unused)) < copies {
		return 0
	}
	total := uint64(math.MaxUint64)
	for large := range copies {
		var rest uint64
		for _, u := range unused[:uint64(len(unused))-large] {
			rest += u
		}
		total = min(total, rest/(copies-large))
	}
	return total
}

// globalReserve is how much of the space for metadata must stay free for the
// kernel to go on: what its own trees take, within bounds
// (btrfs_update_global_block_rsv; the lower bound is that of Linux 6), and a
// few more (btrfs_statfs). It is 0 where metadata shares the space of data.
func (v *btrfsVolume) globalReserve() uint64 {
	const least, most, more = 352, 512 << 20, 4 << 20 // nodes, bytes, bytes
	for i := range v.chunks {
		if v.chunks[i].kind&btrfsKinds == btrfsData|btrfsMetadata {
			return 0
		}
	}
	return min(max(v.ownTrees, least*uint64(v.s.nodeSize)), most) + more
}
