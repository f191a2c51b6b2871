package fsusage

import (
	"encoding/binary"
	"errors"
)

// The log of XFS: a ring of blocks of 512 bytes, each of which starts with the
// number of the round, the cycle, in which it was written; struct
// xlog_rec_header of the kernel's fs/xfs/libxfs/xfs_log_format.h, big-endian.
const (
	xfsLogBlock     = 512
	xfsLogMagic     = 0xfeedbabe // XLOG_HEADER_MAGIC_NUM
	xfsLogVersion2  = 2
	xfsLogCycleSize = 32 << 10 // XLOG_HEADER_CYCLE_SIZE
	xfsLogMaxRecord = 256 << 10
	xfsLogUnmount   = 0x20 // XLOG_UNMOUNT_TRANS in oh_flags
)

// errNoLog says that the log is on a device that was not handed in.
var errNoLog = errors.New("the log is on another device")

// xfsLog is a log on a device.
type xfsLog struct {
	d      *device
	start  int64 // in bytes
	blocks int64 // of 512 bytes
}

// log is the log on d: inside of the filesystem, or all of another device.
func (s *xfsSuper) log(d *device) xfsLog {
	group, at := s.logStart>>s.agBlocksLog, s.logStart&(1<<s.agBlocksLog-1)
	return xfsLog{d: d, start: int64(group*s.agBlocks+at) * s.blockSize, blocks: int64(s.logBlocks) * s.blockSize / xfsLogBlock}
}

// logClean tells whether the last thing in the log is that the filesystem was
// unmounted, as the kernel looks for it (xlog_find_tail).
func (s *xfsSuper) logClean(d *device, others []*device) (bool, error) {
	l := s.log(d)
	if s.logStart != 0 {
		return l.clean()
	}
	for _, o := range others {
		// A log has no mark but its records, which name the filesystem.
		if s.logBlocks == 0 || o.Size() < int64(s.logBlocks)*s.blockSize {
			continue
		}
		head, err := o.read(0, xfsLogBlock)
		if err != nil {
			return false, err
		}
		if binary.BigEndian.Uint32(head) == xfsLogMagic && uuidText(head[304:320]) == uuidText(s.raw[32:48]) {
			l.d = o
			return l.clean()
		}
	}
	return false, errNoLog
}

func (l xfsLog) read(block, count int64) ([]byte, error) {
	return l.d.read(l.start+block*xfsLogBlock, int(count*xfsLogBlock))
}

// cycle is the round in which a block was written; 0 for never.
func (l xfsLog) cycle(block int64) (uint32, error) {
	b, err := l.read(block, 1)
	if err != nil {
		return 0, err
	}
	return xfsCycle(b), nil
}

func xfsCycle(b []byte) uint32 {
	first := binary.BigEndian.Uint32(b)
	if first == xfsLogMagic {
		return binary.BigEndian.Uint32(b[4:])
	}
	return first
}

// head is where the next record would be written: the first block of an older
// round than the first block's, or one that was never written.
func (l xfsLog) head() (int64, error) {
	first, err := l.cycle(0)
	if err != nil || first == 0 {
		return 0, err
	}
	low, high := int64(0), l.blocks // the answer is in (low, high]
	for high-low > 1 {
		middle := low + (high-low)/2
		c, err := l.cycle(middle)
		if err != nil {
			return 0, err
		}
		if c == first {
			low = middle
		} else {
			high = middle
		}
	}
	return high, nil
}

// clean tells whether the last record before the head is that of an unmount.
func (l xfsLog) clean() (bool, error) {
	head, err := l.head()
	if err != nil {
		return false, err
	}
	if head == 0 {
		return true, nil // never written: mkfs of old
	}
	at, err := l.lastRecord(head)
	if err != nil {
		return false, err
	}
	h, err := l.read(at, 1)
	if err != nil {
		return false, err
	}
	length, headers := int64(binary.BigEndian.Uint32(h[12:])), int64(1)
	if binary.BigEndian.Uint32(h[8:])&xfsLogVersion2 != 0 {
		if size := int64(binary.BigEndian.Uint32(h[320:])); size > xfsLogCycleSize && size <= xfsLogMaxRecord {
			headers = (size + xfsLogCycleSize - 1) / xfsLogCycleSize
		}
	}
	after := at + headers + (length+xfsLogBlock-1)/xfsLogBlock
	operations := binary.BigEndian.Uint32(h[40:])
	if after%l.blocks != head%l.blocks || operations != 1 {
		return false, nil
	}
	operation, err := l.read((at+headers)%l.blocks, 1)
	if err != nil {
		return false, err
	}
	return operation[9]&xfsLogUnmount != 0, nil
}

// lastRecord finds the header of the last record before the head. A record
// with its headers takes at most some 264 KiB, and may begin at the ring's
// end.
func (l xfsLog) lastRecord(head int64) (int64, error) {
	const most, piece = xfsLogMaxRecord/xfsLogBlock + xfsLogMaxRecord/xfsLogCycleSize, 64
	for looked := int64(0); looked < min(most, l.blocks); {
		end := (head-looked-1+l.blocks)%l.blocks + 1
		count := min(piece, end)
		b, err := l.read(end-count, count)
		if err != nil {
			return 0, err
		}
		for i := count - 1; i >= 0; i-- {
			if binary.BigEndian.Uint32(b[i*xfsLogBlock:]) == xfsLogMagic {
				return end - count + i, nil
			}
		}
		looked += count
	}
	return 0, damaged("its log has no record before block %d", head)
}
