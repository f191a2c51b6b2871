package fsusage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestExtChanged compares with dumpe2fs after the tools have changed a
// filesystem: resized, tuned, converted, checked.
func TestExtChanged(t *testing.T) {
	t.Parallel()
	for _, lines := range []string{
		"mke2fs -q -t ext4 IMAGE 60M; truncate -s 700M IMAGE; resize2fs IMAGE",
		"mke2fs -q -t ext4 -b 1024 IMAGE 60M; truncate -s 3000M IMAGE; resize2fs IMAGE",
		"mke2fs -q -t ext4 -b 1024 -O ^resize_inode,^flex_bg IMAGE 60M; truncate -s 300M IMAGE; resize2fs IMAGE",
		"mke2fs -q -t ext4 -O meta_bg,^resize_inode -b 1024 IMAGE 300M; truncate -s 900M IMAGE; resize2fs IMAGE",
		"mke2fs -q -t ext4 -d . IMAGE 900M; resize2fs -M IMAGE",
		"mke2fs -q -t ext4 -d . IMAGE 900M; resize2fs IMAGE 300M; truncate -s 300M IMAGE",
		"mke2fs -q -t ext4 -O ^64bit IMAGE 300M; resize2fs -b IMAGE",
		"mke2fs -q -t ext4 -O 64bit IMAGE 300M; resize2fs -s IMAGE",
		"mke2fs -q -t ext4 -O sparse_super2,^resize_inode IMAGE 300M; truncate -s 900M IMAGE; resize2fs IMAGE",
		"mke2fs -q -t ext2 IMAGE 60M; tune2fs -j IMAGE; tune2fs -O extents,uninit_bg,dir_index IMAGE; e2fsck -fyD IMAGE",
		"mke2fs -q -t ext4 IMAGE 60M; tune2fs -O ^has_journal IMAGE; tune2fs -O ^metadata_csum IMAGE; e2fsck -fy IMAGE",
		"mke2fs -q -t ext4 -O ^metadata_csum IMAGE 60M; tune2fs -O metadata_csum IMAGE",
		"mke2fs -q -t ext4 IMAGE 60M; tune2fs -O metadata_csum_seed IMAGE; tune2fs -U random IMAGE; tune2fs -f -U clear IMAGE",
		"mke2fs -q -t ext4 -I 128 -O ^flex_bg,^metadata_csum IMAGE 60M; tune2fs -I 256 IMAGE",
		"mke2fs -q -t ext4 -m 50 IMAGE 60M; tune2fs -c 20 -C 200 -i 3m -e panic -L größe -M /über IMAGE",
		"mke2fs -q -t ext4 IMAGE 60M; tune2fs -c -1 -r 1 -L twelve_bytes_ IMAGE; debugfs -w -R ssv\\ mnt_count\\ -3 IMAGE",
		"mke2fs -q -t ext4 IMAGE 60M; tune2fs -O quota,project IMAGE; tune2fs -O casefold IMAGE",
		"mke2fs -q -t ext4 IMAGE 60M; debugfs -w -R ssv\\ mtime\\ 20990101 IMAGE; debugfs -w -R ssv\\ wtime\\ 22000101 IMAGE; debugfs -w -R ssv\\ lastcheck\\ 24000101 IMAGE; debugfs -w -R ssv\\ mkfs_time\\ 19700102 IMAGE",
		"mke2fs -q -t ext4 -o hurd IMAGE 60M",
		"mke2fs -q -t ext4 -E resize=4G,stride=16,stripe_width=64,hash_seed=11111111-2222-3333-4444-555555555555 IMAGE 90M",
		"mke2fs -q -t ext4 -O encrypt,verity,inline_data,ea_inode,large_dir -N 100000 -d . IMAGE 200M",
		"mke2fs -q -t ext4 -b 1024 -g 256 -G 1 IMAGE 30M",
		"mke2fs -q -t ext4 -b 2048 -i 2048 -N 16 IMAGE 8193K",
		"mke2fs -q -t ext2 -b 1024 -N 16 IMAGE 80K",
		"mke2fs -q -t ext4 -O bigalloc -C 1m -E lazy_itable_init=1,nodiscard IMAGE 15T",
	} {
		t.Run(lines, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			for line := range strings.SplitSeq(lines, "; ") {
				args := strings.Split(strings.ReplaceAll(line, "\\ ", "\x00"), " ")
				for i := range args {
					args[i] = strings.NewReplacer("IMAGE", path, "\x00", " ").Replace(args[i])
				}
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Env = append(os.Environ(), "TZ=UTC")
				// e2fsck says by its code what it has mended.
				if out, err := cmd.CombinedOutput(); err != nil && args[0] != "e2fsck" {
					t.Fatalf("%q: %v\n%s", args, err, out)
				}
			}
			fs, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			compareExt(t, fs, dumpe2fs(t, path))
			if sum := summed(t, path); fs.State == vps.FilesystemClean && (sum.FreeBlocks != fs.FreeBlocks || sum.FreeInodes != fs.FreeInodes) {
				t.Errorf("the groups have %d free blocks and %d free inodes, the superblock %d and %d", sum.FreeBlocks, sum.FreeInodes, fs.FreeBlocks, fs.FreeInodes)
			}
		})
	}
}
