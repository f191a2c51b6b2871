package fsusage

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"
)

// partition is one partition: bytes start to start+size of the disk.
type partition struct {
	number      int
	name        string
	start, size int64
}

// Bounds of a table, above what any tool makes.
const (
	maxLogical    = 256
	maxGPTEntries = 1024
	maxGPTEntry   = 4096
)

// errNoTable says that there is no partition table.
var errNoTable = errors.New("no partition table")

// partitions reads the partition table: its kind, "gpt" or "mbr", and what it
// names, by number. errNoTable: there is none.
func partitions(d *device) (string, []partition, error) {
	if d.Size() < 1024 {
		return "", nil, errNoTable
	}
	sector, err := d.read(0, 512)
	if err != nil {
		return "", nil, err
	}
	if string(sector[510:]) != "\x55\xaa" {
		return "", nil, errNoTable
	}
	entries, protective := mbrEntries(sector)
	if protective {
		parts, err := gpt(d)
		return "gpt", parts, err
	}
	if len(entries) == 0 {
		return "", nil, errNoTable
	}
	parts, err := mbr(d, entries)
	return "mbr", parts, err
}

// mbrEntry is one of the four entries of a boot record, in sectors of 512
// bytes.
type mbrEntry struct {
	number      int
	kind        byte
	start, size int64
}

func (e *mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// mbrEntries reads a boot record. Without an entry that makes sense it is not
// a table but some boot loader's sector.
func mbrEntries(sector []byte) (entries []mbrEntry, protective bool) {
	for i := range 4 {
		b := sector[446+16*i:][:16]
		e := mbrEntry{i + 1, b[4], int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))}
		if b[0]&0x7f != 0 {
			return nil, false // neither active nor inactive
		}
		if e.kind == 0xee {
			protective = true
		}
		if e.kind != 0 && e.size != 0 {
			entries = append(entries, e)
		}
	}
	return entries, protective
}

// mbr follows the chain of extended boot records, each of which has one
// logical partition and the place of the next record.
func mbr(d *device, entries []mbrEntry) ([]partition, error) {
	var parts []partition
	number := 5
	for _, e := range entries {
		if !e.extended() {
			parts = append(parts, partition{number: e.number, start: e.start * 512, size: e.size * 512})
			continue
		}
		seen := map[int64]bool{}
		for at := e.start; at != 0; {
			if seen[at] || len(seen) == maxLogical {
				return parts, damaged("the chain of its logical partitions does not end")
			}
			seen[at] = true
			sector, err := d.read(at*512, 512)
			if err != nil {
				return parts, err
			}
			if string(sector[510:]) != "\x55\xaa" {
				return parts, damaged("the chain of its logical partitions leads to sector %d, where no record is", at)
			}
			chain, _ := mbrEntries(sector)
			here := at
			at = 0
			for _, c := range chain {
				if c.extended() {
					at = e.start + c.start
				} else {
					parts = append(parts, partition{number: number, start: (here + c.start) * 512, size: c.size * 512})
					number++
				}
			}
		}
	}
	return parts, checkPartitions(d, parts)
}

// gpt reads the table of UEFI's specification, chapter 5.3: the first copy,
// or the one at the end when the first is damaged.
func gpt(d *device) ([]partition, error) {
	var first error
	for _, sector := range []int64{512, 4096} {
		for _, at := range []int64{sector, d.Size()/sector*sector - sector} {
			parts, err := gptAt(d, at, sector)
			if err == nil {
				return parts, checkPartitions(d, parts)
			}
			if first == nil || errors.Is(first, errNoTable) {
				first = err
			}
		}
	}
	if errors.Is(first, errNoTable) {
		return nil, damaged("its boot record announces a GPT, and there is none")
	}
	return nil, first
}

func gptAt(d *device, at, sector int64) ([]partition, error) {
	h, err := d.read(at, 512)
	if err != nil {
		return nil, err
	}
	if string(h[:8]) != "EFI PART" {
		return nil, errNoTable
	}
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(h[off:]) }
	length, stored := u32(12), u32(16)
	if length < 92 || length > 512 {
		return nil, damaged("the GPT's header would have %d bytes", length)
	}
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:length]) != stored {
		return nil, damaged("the checksum of the GPT's header is wrong")
	}
	count, size := int(u32(80)), int(u32(84))
	table := binary.LittleEndian.Uint64(h[72:])
	if count > maxGPTEntries || size < 128 || size > maxGPTEntry || size%8 != 0 || table > uint64(d.Size()/sector) {
		return nil, damaged("the GPT would have %d entries of %d bytes at sector %d", count, size, table)
	}
	b, err := d.read(int64(table)*sector, count*size)
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(b) != u32(88) {
		return nil, damaged("the checksum of the GPT's entries is wrong")
	}
	var parts []partition
	for i := range count {
		e := b[i*size:][:size]
		if len(strings.Trim(string(e[:16]), "\x00")) == 0 {
			continue
		}
		start, end := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if end < start || end > uint64(d.Size()/sector) {
			return nil, damaged("its partition %d would go from sector %d to %d", i+1, start, end)
		}
		parts = append(parts, partition{number: i + 1, name: utf16Text(e[56:128]), start: int64(start) * sector, size: int64(end-start+1) * sector})
	}
	return parts, nil
}

// checkPartitions sorts, and refuses what reaches over the disk's end.
func checkPartitions(d *device, parts []partition) error {
	slices.SortFunc(parts, func(a, b partition) int { return a.number - b.number })
	for _, p := range parts {
		if p.start > d.Size() || p.size > d.Size()-p.start {
			return damaged("its partition %d ends at byte %d, and the disk at %d; the end was cut off", p.number, p.start+p.size, d.Size())
		}
	}
	return nil
}

// utf16Text reads a name in UTF-16, little-endian.
func utf16Text(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return text([]byte(string(utf16.Decode(units))))
}
