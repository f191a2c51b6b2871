package fsusage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// The trees of Btrfs: struct btrfs_header, btrfs_item and btrfs_key_ptr of
// include/uapi/linux/btrfs_tree.h.
const (
	btrfsLevels      = 8 // BTRFS_MAX_LEVEL
	btrfsHeaderBytes = 101
	btrfsKeyBytes    = 17
	btrfsItemBytes   = 25
	btrfsPtrBytes    = 33

	btrfsExtentTree   = 2 // BTRFS_…_TREE_OBJECTID
	btrfsChecksumTree = 7
	btrfsSpaceTree    = 10
	btrfsGroupTree    = 11
	btrfsStripeTree   = 12

	btrfsRootItem  = 132
	btrfsGroupItem = 192
	btrfsDeviceKey = 216
	btrfsChunkItem = 228
)

// btrfsKey is the key of an item; keys have an order.
type btrfsKey struct {
	object uint64
	kind   uint8
	offset uint64
}

func parseBtrfsKey(b []byte) btrfsKey {
	return btrfsKey{binary.LittleEndian.Uint64(b), b[8], binary.LittleEndian.Uint64(b[9:])}
}

func (k btrfsKey) compare(o btrfsKey) int {
	return cmp.Or(cmp.Compare(k.object, o.object), cmp.Compare(k.kind, o.kind), cmp.Compare(k.offset, o.offset))
}

// btrfsNode is a block of a tree whose checksum and header have been checked.
type btrfsNode struct {
	raw   []byte
	level uint8
	items int
}

// btrfsPointer points to a node: its address, and what its header has to say.
type btrfsPointer struct {
	address, generation uint64
	level               uint8
}

// errNoDevice says that a device of the filesystem was not handed in.
var errNoDevice = errors.New("it reaches over several devices, and one that is needed is not at hand")

// node reads a node from whichever of its copies is right.
func (v *btrfsVolume) node(p btrfsPointer) (*btrfsNode, error) {
	c := v.chunkAt(p.address)
	if c == nil {
		return nil, damaged("a node of its trees would lie at %d, where no chunk is", p.address)
	}
	places, length := c.places(p.address)
	if length < uint64(v.s.nodeSize) {
		return nil, damaged("a node of its trees at %d would be in pieces", p.address)
	}
	last := fmt.Errorf("%w: the node of its trees at %d is on device %d", errNoDevice, p.address, places[0].device)
	for _, place := range places {
		d := v.devices[place.device].at
		if d == nil {
			continue
		}
		raw, err := d.read(int64(place.offset), v.s.nodeSize)
		if err == nil {
			var n *btrfsNode
			if n, err = v.parseNode(raw, p); err == nil {
				return n, nil
			}
		}
		if last = err; !errors.Is(err, errDamaged) {
			break
		}
	}
	return nil, last
}

func (v *btrfsVolume) parseNode(raw []byte, p btrfsPointer) (*btrfsNode, error) {
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(raw[off:]) }
	n := &btrfsNode{raw: raw, level: raw[100]}
	items, size := binary.LittleEndian.Uint32(raw[96:]), btrfsItemBytes
	if n.level > 0 {
		size = btrfsPtrBytes
	}
	switch {
	case !v.s.sum.right(raw):
		return nil, damaged("the checksum of the node of its trees at %d is wrong", p.address)
	case u64(48) != p.address || n.level != p.level || u64(80) != p.generation:
		return nil, damaged("the node of its trees at %d is another one", p.address)
	case items > uint32((len(raw)-btrfsHeaderBytes)/size) || items == 0 && n.level > 0:
		return nil, damaged("the node of its trees at %d would hold %d items", p.address, items)
	}
	n.items = int(items)
	return n, nil
}

func (n *btrfsNode) key(i int) btrfsKey {
	size := btrfsItemBytes
	if n.level > 0 {
		size = btrfsPtrBytes
	}
	return parseBtrfsKey(n.raw[btrfsHeaderBytes+i*size:])
}

// item is the content of a leaf's item.
func (n *btrfsNode) item(i int) ([]byte, error) {
	b := n.raw[btrfsHeaderBytes+i*btrfsItemBytes+btrfsKeyBytes:]
	off, size := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
	if btrfsHeaderBytes+off+size > uint64(len(n.raw)) {
		return nil, damaged("an item of its trees goes beyond its node")
	}
	return n.raw[btrfsHeaderBytes+off:][:size], nil
}

func (n *btrfsNode) child(i int) btrfsPointer {
	b := n.raw[btrfsHeaderBytes+i*btrfsPtrBytes+btrfsKeyBytes:]
	return btrfsPointer{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), n.level - 1}
}

// below is the last child of a node whose keys may be as low as key; the
// first one when all are higher.
func (n *btrfsNode) below(key btrfsKey) int {
	low, high := 0, n.items
	for high-low > 1 {
		if middle := (low + high) / 2; n.key(middle).compare(key) <= 0 {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// btrfsTree is a tree that is searched; it keeps the last way down, so that
// searches in the order of keys read each node once.
type btrfsTree struct {
	v    *btrfsVolume
	root btrfsPointer
	path [btrfsLevels]struct {
		at   btrfsPointer
		node *btrfsNode
	}
}

func (t *btrfsTree) node(p btrfsPointer) (*btrfsNode, error) {
	kept := &t.path[p.level]
	if kept.node != nil && kept.at == p {
		return kept.node, nil
	}
	n, err := t.v.node(p)
	if err != nil {
		return nil, err
	}
	kept.at, kept.node = p, n
	return n, nil
}

// find returns the item with this key; nil when there is none.
func (t *btrfsTree) find(key btrfsKey) ([]byte, error) {
	n, err := t.node(t.root)
	for err == nil && n.level > 0 {
		n, err = t.node(n.child(n.below(key)))
	}
	if err != nil || n.items == 0 {
		return nil, err
	}
	if i := n.below(key); n.key(i) == key {
		return n.item(i)
	}
	return nil, nil
}

// each visits all items of the tree in the order of their keys. A tree that
// refers to itself has keys that do not ascend, and is refused.
func (t *btrfsTree) each(visit func(key btrfsKey, item []byte) error) error {
	var last *btrfsKey
	var walk func(p btrfsPointer) error
	walk = func(p btrfsPointer) error {
		n, err := t.v.node(p)
		if err != nil {
			return err
		}
		for i := range n.items {
			if n.level > 0 {
				if err := walk(n.child(i)); err != nil {
					return err
				}
				continue
			}
			key := n.key(i)
			if last != nil && last.compare(key) >= 0 {
				return damaged("the items of its trees are not in order")
			}
			last = &key
			item, err := n.item(i)
			if err != nil {
				return err
			}
			if err := visit(key, item); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(t.root)
}

// readChunks reads the chunk tree: all chunks and all devices.
func (v *btrfsVolume) readChunks() error {
	t := &btrfsTree{v: v, root: btrfsPointer{v.s.chunkRoot, v.s.chunkGeneration, v.s.chunkLevel}}
	var chunks []btrfsChunk
	err := t.each(func(key btrfsKey, item []byte) error {
		switch key.kind {
		case btrfsDeviceKey:
			if len(item) < btrfsDevItemBytes {
				return damaged("the description of its device %d is cut off", key.offset)
			}
			d := btrfsDeviceItem(item)
			if d.id != key.offset || d.size > v.s.total || d.used > d.size {
				return damaged("its device %d would have %d bytes, %d of them in use", d.id, d.size, d.used)
			}
			if d.at = v.devices[d.id].at; d.at == nil {
				d.at = v.seeds[d.uuid]
			}
			if d.at != nil && int64(d.size) > d.at.Size() {
				return damaged("it spans %d bytes of its device %d, and only %d are there; the end was cut off", d.size, d.id, d.at.Size())
			}
			v.devices[d.id] = d
		case btrfsChunkItem:
			c, _, err := parseChunk(key.offset, item)
			if err != nil {
				return err
			}
			chunks = append(chunks, c)
		}
		return nil
	})
	if err != nil {
		return err
	}
	v.chunks = chunks
	if err := v.sortChunks(); err != nil {
		return err
	}
	return v.checkDevices()
}

// checkDevices holds what lies on each device against its size, and all of
// them against the filesystem's: the kernel refuses one that tells less.
func (v *btrfsVolume) checkDevices() error {
	set := map[uint64]uint64{}
	for i := range v.chunks {
		c := &v.chunks[i]
		for _, s := range c.stripes {
			d, known := v.devices[s.device]
			part := c.stripeOn()
			if !known || s.offset+part > d.size {
				return damaged("its chunk at %d would lie at %d of the device %d", c.start, s.offset, s.device)
			}
			if set[s.device] += part; set[s.device] > d.size {
				return damaged("its device %d would hold %d bytes of %d", s.device, set[s.device], d.size)
			}
		}
	}
	var total uint64
	for _, d := range v.devices {
		if total += d.size; total > v.s.total {
			return damaged("it tells %d bytes, and its devices have more together", v.s.total)
		}
	}
	return nil
}

// rootItem finds the item of a tree by its number (struct btrfs_root_item);
// nil when there is none.
func (v *btrfsVolume) rootItem(object uint64) ([]byte, error) {
	if v.roots == nil {
		v.roots = &btrfsTree{v: v, root: btrfsPointer{v.s.root, v.s.generation, v.s.rootLevel}}
	}
	const through = 239 // the member level
	item, err := v.roots.find(btrfsKey{object, btrfsRootItem, 0})
	if err == nil && item != nil && len(item) < through {
		err = damaged("the description of its tree %d is cut off", object)
	}
	return item, err
}

// rootOf finds a tree by its number.
func (v *btrfsVolume) rootOf(object uint64) (btrfsPointer, error) {
	item, err := v.rootItem(object)
	if err != nil {
		return btrfsPointer{}, err
	}
	if item == nil {
		return btrfsPointer{}, damaged("its tree %d is missing", object)
	}
	p := btrfsPointer{binary.LittleEndian.Uint64(item[176:]), binary.LittleEndian.Uint64(item[160:]), item[238]}
	if p.level >= btrfsLevels {
		return p, damaged("its tree %d would be %d levels high", object, p.level)
	}
	return p, nil
}

// readOwnTrees adds up what the kernel's own trees take: those of extents,
// checksums, free space, block groups and stripes.
func (v *btrfsVolume) readOwnTrees() error {
	for _, object := range []uint64{btrfsExtentTree, btrfsChecksumTree, btrfsSpaceTree, btrfsGroupTree, btrfsStripeTree} {
		item, err := v.rootItem(object)
		if err != nil {
			return err
		}
		if item != nil {
			v.ownTrees += min(binary.LittleEndian.Uint64(item[192:]), v.s.used) // bytes_used
		}
	}
	return nil
}

// readUsed reads how much of each chunk is used, from the items of block
// groups: these are in a tree of their own, or spread over the large one of
// all extents.
func (v *btrfsVolume) readUsed() error {
	object := uint64(btrfsExtentTree)
	if v.s.roFlags&btrfsBlockGroupTree != 0 {
		object = btrfsGroupTree
	}
	root, err := v.rootOf(object)
	if err != nil {
		return err
	}
	tree := &btrfsTree{v: v, root: root}
	for i := range v.chunks {
		c := &v.chunks[i]
		item, err := tree.find(btrfsKey{c.start, btrfsGroupItem, c.length})
		if err != nil {
			return err
		}
		if len(item) < 24 {
			return damaged("how much is used of its chunk at %d is missing", c.start)
		}
		c.used = binary.LittleEndian.Uint64(item)
		if c.used > c.length || binary.LittleEndian.Uint64(item[16:]) != c.kind {
			return damaged("%d bytes would be used of its chunk at %d, which has %d", c.used, c.start, c.length)
		}
	}
	return nil
}

// spreadUsed spreads what the superblock tells as used evenly over the chunks.
func (v *btrfsVolume) spreadUsed() {
	var set, used uint64
	for i := range v.chunks {
		set += v.chunks[i].length // below 2^63, for they do not overlap
	}
	for i := range v.chunks {
		c := &v.chunks[i]
		high, low := bits.Mul64(c.length, min(v.s.used, set))
		c.used, _ = bits.Div64(high, low, set)
		used += c.used
	}
	// What rounding lost.
	for i := range v.chunks {
		c := &v.chunks[i]
		more := min(v.s.used-used, c.length-c.used)
		c.used, used = c.used+more, used+more
	}
}
