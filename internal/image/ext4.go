package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// How the filesystem is made.
const (
	blockSize  = 4096
	inodeRatio = 16384 // bytes per inode; the system itself has one per 13 KiB
	journal    = 32 * vps.MiB
	// growth is the largest size that the guest can grow the filesystem to
	// while it is mounted. The room kept for it takes 2.5 MiB.
	growth = 1 * vps.TiB

	// features are spelt out, so that every host makes the same filesystem
	// and the oldest release's tools and kernel read it.
	features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
		"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)

// filesystemSize returns how large a filesystem for such a tree is made: as
// small as is safe, as it is the smallest disk that a guest can have.
func filesystemSize(kind string, content vps.Bytes, inodes int64) vps.Bytes {
	const step = 64 * vps.MiB
	size := content + content/8 + journal + 64*vps.MiB
	switch kind {
	case "xfs":
		// Its log is larger, each inode has half a block, and mkfs.xfs makes
		// nothing smaller than 300 MiB.
		size = max(size+64*vps.MiB+vps.Bytes(inodes)*vps.KiB, 384*vps.MiB)
	case "btrfs":
		// It keeps two of what describes files, with small files in it, and sets
		// space aside in large pieces.
		size += content/4 + 2*vps.Bytes(inodes)*vps.KiB + 256*vps.MiB
	default:
		size = max(size, vps.Bytes(inodes)*inodeRatio*9/8)
	}
	return (size + step - 1) / step * step
}

// mke2fsArgs returns the command that packs the folder tree into the new file
// disk. The inode tables are not left to the guest to clear: in a new file
// they are zeros already.
func mke2fsArgs(mke2fs, tree, disk string, size vps.Bytes) []string {
	return []string{
		mke2fs, "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-I", "256",
		"-b", strconv.Itoa(blockSize), "-i", strconv.Itoa(inodeRatio), "-J", "size=" + strconv.FormatInt(int64(journal/vps.MiB), 10),
		"-O", features,
		"-E", fmt.Sprintf("resize=%d,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0", int64(growth/blockSize)),
		"-d", tree, disk, strconv.FormatInt(int64(size/vps.KiB), 10) + "k",
	}
}

// checksum returns the SHA-256 of the first size bytes of r: of the
// filesystem. What follows up to the file's end is a hole.
func checksum(ctx context.Context, r io.Reader, size vps.Bytes, progress func(fraction float64)) (string, error) {
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for at := int64(0); at < int64(size); {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), int64(size)-at)])
		_, _ = sum.Write(buf[:n]) // never fails
		at += int64(n)
		if err != nil {
			return "", err
		}
		progress(float64(at) / float64(size))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// holeFrom tells whether f holds no data from there to its end.
func holeFrom(f *os.File, from vps.Bytes) (bool, error) {
	_, err := unix.Seek(int(f.Fd()), int64(from), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	return false, err
}

// occupied is what a file takes on the host.
func occupied(f *os.File) (vps.Bytes, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return vps.Bytes(st.Blocks * 512), nil // st_blocks counts 512 bytes, see stat(2)
}
