package kernel

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// writeInitrd writes an archive in the kernel's newc format with the early-boot
// program, size bytes long, as /init. The same program gives the same bytes.
// /dev/console is there because the kernel opens it before /init could mount
// anything. The program is read in pieces: it is large beside what the daemon
// needs else.
func writeInitrd(out io.Writer, program io.ReaderAt, size int64) error {
	w := cpio.Newc.Writer(out)
	initFile := cpio.StaticFile("init", "", 0o755)
	initFile.FileSize = uint64(size)
	initFile.ReaderAt = io.NewSectionReader(program, 0, size)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("proc", 0o555),
		cpio.Directory("root", 0o755),
		cpio.Directory("sys", 0o555),
		initFile,
	}
	for i := range records {
		records[i].Ino = uint64(i) + 1
		records[i].NLink = 1
	}
	if err := cpio.WriteRecords(w, records); err != nil {
		return err
	}
	return cpio.WriteTrailer(w)
}

// checkStatic refuses a program that needs an interpreter or libraries: there
// are none in an initrd, and the guest's kernel would only panic.
func checkStatic(path string, program io.ReaderAt) error {
	f, err := elf.NewFile(program)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "%s is not a program for Linux; install sublet again", path)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return vps.Errorf(vps.CodeInternal, "%s is not a static program, so guests could not boot; build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// moduleTree is what is known of a folder of modules before a disk is made.
type moduleTree struct {
	dir string
	// digest follows from names, sizes, modes and times of all files.
	digest string
	files  int64
	// bytes is what the files take in blocks of modulesBlock.
	bytes int64
}

// modulesBlock is the block size of the modules disk.
const modulesBlock = 4096

func surveyModules(dir string) (moduleTree, error) {
	t := moduleTree{dir: dir}
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		t.files++
		t.bytes += (info.Size() + modulesBlock) / modulesBlock * modulesBlock
		if info.Mode().IsRegular() {
			list = append(list, fmt.Sprintf("%s %o %d %d", strings.TrimPrefix(path, dir), info.Mode(), info.Size(), info.ModTime().UnixNano()))
		}
		return nil
	})
	slices.Sort(list)
	t.digest = digestOf(strings.Join(list, "\n"))
	return t, err
}

// size returns the length of a disk that is sure to hold the tree. Slack is
// not paid for: the file is sparse.
func (t moduleTree) size() int64 {
	const inode = 256
	size := t.bytes + t.bytes/16 + 2*t.files*inode + 4<<20
	return (size + 1<<20 - 1) &^ (1<<20 - 1)
}

// makeModules makes an ext4 filesystem with the content of the folder in f.
// It is never written to, so it has no journal and nothing held back.
func makeModules(ctx context.Context, f *os.File, t moduleTree) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < t.bytes {
		return vps.Wrap(vps.CodeInternal, unix.ENOSPC, "the disk that holds %s has %s free, and the kernel's modules need %s; free some space",
			filepath.Dir(f.Name()), vps.Bytes(free), vps.Bytes(t.bytes))
	}
	if err := f.Truncate(t.size()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mke2fs",
		"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(modulesBlock), "-m", "0",
		"-O", "^has_journal,^resize_inode,^metadata_csum", "-N", strconv.FormatInt(t.files+64, 10),
		"-E", "root_owner=0:0,nodiscard", "-L", "sublet-modules", "-d", t.dir, f.Name())
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_SYNC=0"}
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && bytes.Contains(out, []byte("No space left on device")):
		return fmt.Errorf("mke2fs: %w", unix.ENOSPC)
	case err != nil:
		return vps.Wrap(vps.CodeInternal, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)),
			"the disk with the kernel's modules could not be made; see that the package e2fsprogs is installed")
	}
	return nil
}
