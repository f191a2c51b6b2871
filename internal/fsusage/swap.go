package fsusage

import (
	"encoding/binary"
	"math"

	"sublet/internal/vps"
)

// The header of swap space: union swap_header of the kernel's
// include/linux/swap.h, in the byte order of the machine that made it. The
// mark stands in the last 10 bytes of the first page, whose size is that of
// the machine: 4 to 64 KiB.
const (
	swapMark    = "SWAPSPACE2"
	swapMinPage = 4 << 10
	swapMaxPage = 64 << 10
)

var swapFormat = format{name: "swap", magics: swapMagics, read: readSwap}

var swapMagics = func() (m []magic) {
	for page := int64(swapMinPage); page <= swapMaxPage; page *= 2 {
		m = append(m, magic{page - int64(len(swapMark)), swapMark})
	}
	return m
}()

// readSwap reads the header. What is used of swap space is known to the
// running kernel only, so all of it counts as free.
func readSwap(d *device, _ []*device) (vps.Filesystem, error) {
	page := int64(0)
	for _, m := range swapMagics {
		if ok, err := (&format{magics: []magic{m}}).marks(d); err != nil {
			return vps.Filesystem{}, err
		} else if ok {
			page = m.offset + int64(len(swapMark))
			break
		}
	}
	head, err := d.read(1024, 64)
	if err != nil {
		return vps.Filesystem{}, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint32(head) != 1 {
		order = binary.BigEndian
	}
	version, last, bad := order.Uint32(head), order.Uint32(head[4:]), order.Uint32(head[8:])
	pages := uint64(last) + 1
	switch {
	case version != 1:
		return vps.Filesystem{}, damaged("its version would be %d", version)
	case last == 0 || last == math.MaxUint32:
		return vps.Filesystem{}, damaged("its last page would be %d", last)
	case int64(pages) > d.Size()/page:
		return vps.Filesystem{}, damaged("it spans %d bytes, and only %d are there; the end was cut off", int64(pages)*page, d.Size())
	case uint64(bad) > pages-1 || int64(bad) > (page-1536-10)/4: // MAX_SWAP_BADPAGES
		return vps.Filesystem{}, damaged("it tells %d bad pages of %d", bad, pages)
	}
	fs := vps.Filesystem{
		Type: vps.FilesystemSwap, Label: text(head[28:44]), UUID: uuidText(head[12:28]), BlockSize: vps.Bytes(page),
		Blocks: pages, FreeBlocks: pages - 1 - uint64(bad), State: vps.FilesystemClean, Features: []string{},
		Approximate: "How much of it is used, only the guest knows.",
	}
	fs.Size, fs.Free = vps.Bytes(fs.Blocks)*fs.BlockSize, vps.Bytes(fs.FreeBlocks)*fs.BlockSize
	fs.Overhead = fs.Size - fs.Free
	return fs, nil
}
