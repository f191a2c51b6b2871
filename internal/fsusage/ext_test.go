package fsusage

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

var every = flag.Bool("every", false, "test every combination of ext features with every block size")

// run runs a program that a test needs; without it the test fails.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// openSource opens a file for reading as a source.
func openSource(tb testing.TB, path string) Source {
	tb.Helper()
	f, err := openRaw(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return f
}

func readPath(tb testing.TB, path string) (vps.Filesystem, error) {
	tb.Helper()
	return readFilesystem(tb.Context(), openSource(tb, path))
}

// readFilesystem reads the filesystem that starts at byte 0 of src, with others
// at hand that may belong to it.
func readFilesystem(ctx context.Context, src Source, others ...Source) (vps.Filesystem, error) {
	left := newBudget()
	var more []*device
	for _, o := range others {
		more = append(more, &device{ctx: ctx, source: o, left: left})
	}
	d := &device{ctx: ctx, source: src, left: left}
	fs, err := probe(d, more)
	if errors.Is(err, errNothing) {
		return rescue(d, more)
	}
	return fs, err
}

// dumpe2fs returns what dumpe2fs -h tells of a filesystem, by field.
func dumpe2fs(tb testing.TB, path string) map[string]string {
	tb.Helper()
	fields := map[string]string{}
	for line := range strings.SplitSeq(run(tb, "dumpe2fs", "-h", path), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

// compareExt compares fs field for field with what dumpe2fs -h tells, other
// than the counts where fs has better ones.
func compareExt(tb testing.TB, fs vps.Filesystem, want map[string]string) {
	tb.Helper()
	none := func(s, or string) string {
		if s == "" {
			return or
		}
		return s
	}
	when := func(at time.Time, never string) string {
		if at.IsZero() {
			return never
		}
		return at.Format("Mon Jan _2 15:04:05 2006")
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	state := map[vps.FilesystemState]string{
		vps.FilesystemClean: "clean", vps.FilesystemNeedsRecovery: "clean", vps.FilesystemInUse: "not clean", vps.FilesystemErrors: "clean with errors",
	}
	have := map[string]string{
		"Filesystem volume name": none(fs.Label, "<none>"),
		"Last mounted on":        none(fs.Ext.LastMountedOn, "<not available>"),
		"Filesystem UUID":        none(fs.UUID, "<none>"),
		"Filesystem features":    none(strings.Join(fs.Features, " "), "(none)"),
		"Filesystem state":       state[fs.State],
		"Inode count":            number(fs.Inodes),
		"Block count":            number(fs.Blocks),
		"Reserved block count":   number(fs.ReservedBlocks),
		"Free blocks":            number(fs.FreeBlocks),
		"Free inodes":            number(fs.FreeInodes),
		"Block size":             number(uint64(fs.BlockSize)),
		"Last mount time":        when(fs.LastMounted, "n/a"),
		"Last write time":        when(fs.LastWritten, "n/a"),
		"Mount count":            strconv.Itoa(fs.Mounts),
		"Last checked":           when(fs.LastChecked, "n/a"),
		"Filesystem created":     when(fs.Made, "n/a"),
		"Inode size":             number(uint64(fs.Ext.InodeSize)),
	}
	if fs.Ext.Revision == 0 {
		delete(have, "Inode size")
	}
	if fs.Ext.OverheadClusters != 0 {
		have["Overhead clusters"] = number(fs.Ext.OverheadClusters)
	}
	if _, ok := want["Cluster size"]; ok {
		have["Cluster size"] = number(uint64(fs.Ext.ClusterSize))
	}
	shown := map[string]string{}
	for name := range have {
		if value, ok := want[name]; ok {
			shown[name] = value
		} else if have[name] != "n/a" {
			shown[name] = "missing"
		} else {
			shown[name] = "n/a"
		}
	}
	if diff := cmp.Diff(shown, have); diff != "" {
		tb.Errorf("dumpe2fs (-) and sublet (+) differ:\n%s", diff)
	}
	if most, _ := strconv.Atoi(want["Maximum mount count"]); max(most, 0) != fs.MaxMounts {
		tb.Errorf("check after %d mounts, dumpe2fs says %s", fs.MaxMounts, want["Maximum mount count"])
	}
}

// summed reads an ext filesystem with the sums of its groups.
func summed(tb testing.TB, path string) vps.Filesystem {
	tb.Helper()
	d := &device{ctx: tb.Context(), source: openSource(tb, path), left: newBudget()}
	raw, err := d.read(extOffset, extLength)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := parseExt(raw, d.Size())
	if err != nil {
		tb.Fatal(err)
	}
	var fs vps.Filesystem
	if err := s.sumGroups(d, &fs); err != nil {
		tb.Fatal(err)
	}
	return fs
}

// TestExtFeatures compares with dumpe2fs over the combinations of what moves
// numbers, or what they mean, each with one block size after the other; with
// -every each with all of them.
func TestExtFeatures(t *testing.T) {
	t.Parallel()
	choices := [][]string{
		{"64bit", "^64bit"},
		{"metadata_csum", "metadata_csum,metadata_csum_seed", "uninit_bg,^metadata_csum", "^uninit_bg,^metadata_csum"},
		{"flex_bg", "^flex_bg", "meta_bg,^resize_inode"},
		{"sparse_super", "^sparse_super,^resize_inode", "sparse_super2,^resize_inode"},
		{"has_journal", "^has_journal"},
		{"^bigalloc", "bigalloc"},
	}
	sets := []string{""}
	for _, choice := range choices {
		var longer []string
		for _, set := range sets {
			for _, c := range choice {
				longer = append(longer, strings.TrimPrefix(set+","+c, ","))
			}
		}
		sets = longer
	}
	dir := t.TempDir()
	made := 0
	for i, set := range sets {
		for log := range 7 {
			if !*every && log != (i+i/7)%7 {
				continue
			}
			block := 1024 << log
			path := filepath.Join(dir, "image")
			args := []string{"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(block), "-O", set, "-L", "label " + strconv.Itoa(i), "-m", strconv.Itoa(i % 20), path}
			// Several groups, and a last one that is not whole.
			size := 2600*block/4*5 + 12345*1024
			if block <= 4096 {
				size = 9*block*block*3 + 777*1024
			}
			if strings.HasSuffix(set, ",bigalloc") {
				size *= 2
			}
			args = append(args, strconv.Itoa(size/1024)+"k")
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), "mke2fs", args...).CombinedOutput(); err != nil {
				// Some combinations, mke2fs refuses.
				t.Logf("%q: %s", args, out)
				continue
			}
			made++
			t.Run(fmt.Sprintf("%s,%d", set, block), func(t *testing.T) {
				fs, err := readPath(t, path)
				if err != nil {
					t.Fatal(err)
				}
				compareExt(t, fs, dumpe2fs(t, path))
				if sum := summed(t, path); sum.FreeBlocks != fs.FreeBlocks || sum.FreeInodes != fs.FreeInodes {
					t.Errorf("the groups have %d free blocks and %d free inodes, the superblock %d and %d", sum.FreeBlocks, sum.FreeInodes, fs.FreeBlocks, fs.FreeInodes)
				}
			})
		}
	}
	if made < len(sets)*3/4 {
		t.Errorf("mke2fs made %d images of %d", made, len(sets))
	}
}

// aFew makes a folder with a few files.
func aFew(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 5 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), make([]byte, i*3000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestExtKinds(t *testing.T) {
	t.Parallel()
	files := aFew(t)
	for name, tt := range map[string]struct {
		args []string
		want vps.FilesystemType
	}{
		"revision 0":    {[]string{"-r", "0", "-t", "ext2", "-O", "none"}, vps.FilesystemExt2},
		"ext2":          {[]string{"-t", "ext2"}, vps.FilesystemExt2},
		"ext3":          {[]string{"-t", "ext3"}, vps.FilesystemExt3},
		"ext4":          {[]string{"-t", "ext4", "-I", "512"}, vps.FilesystemExt4},
		"small inodes":  {[]string{"-t", "ext4", "-I", "128"}, vps.FilesystemExt4},
		"few inodes":    {[]string{"-t", "ext4", "-N", "16"}, vps.FilesystemExt4},
		"many inodes":   {[]string{"-t", "ext4", "-i", "1024"}, vps.FilesystemExt4},
		"short groups":  {[]string{"-t", "ext4", "-g", "512"}, vps.FilesystemExt4},
		"large flex":    {[]string{"-t", "ext4", "-G", "64", "-g", "1024"}, vps.FilesystemExt4},
		"all the rest":  {[]string{"-t", "ext4", "-O", "mmp,quota,project,ea_inode,inline_data,large_dir,verity,encrypt,casefold,stable_inodes,orphan_file,fast_commit"}, vps.FilesystemExt4},
		"big clusters":  {[]string{"-t", "ext4", "-O", "bigalloc", "-C", "1m"}, vps.FilesystemExt4},
		"no reserve":    {[]string{"-t", "ext4", "-m", "0"}, vps.FilesystemExt4},
		"much reserve":  {[]string{"-t", "ext4", "-m", "50"}, vps.FilesystemExt4},
		"many supers 0": {[]string{"-t", "ext4", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=0"}, vps.FilesystemExt4},
		"many supers 2": {[]string{"-t", "ext4", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=2"}, vps.FilesystemExt4},
		"packed":        {[]string{"-t", "ext4", "-E", "packed_meta_blocks=1"}, vps.FilesystemExt4},
		"64 GiB":        {[]string{"-t", "ext4", "-E", "lazy_itable_init=1", "-b", "4096"}, vps.FilesystemExt4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			size := "40M"
			if name == "64 GiB" {
				size = "64G"
			}
			run(t, "mke2fs", append(append([]string{"-q", "-F", "-d", files}, tt.args...), path, size)...)
			fs, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			compareExt(t, fs, dumpe2fs(t, path))
			if fs.Type != tt.want {
				t.Errorf("type is %s, want %s", fs.Type, tt.want)
			}
			if fs.State != vps.FilesystemClean || fs.Approximate != "" || fs.Warnings != nil {
				t.Errorf("state is %s: %s %q", fs.State, fs.Approximate, fs.Warnings)
			}
			sum := summed(t, path)
			if sum.FreeBlocks != fs.FreeBlocks || sum.FreeInodes != fs.FreeInodes {
				t.Errorf("sums are %d and %d, want %d and %d", sum.FreeBlocks, sum.FreeInodes, fs.FreeBlocks, fs.FreeInodes)
			}
		})
	}
}

// TestExtOverhead compares the overhead that older filesystems do not tell
// with what mke2fs counted.
func TestExtOverhead(t *testing.T) {
	t.Parallel()
	for _, features := range []string{"^meta_bg", "^flex_bg", "^has_journal", "^sparse_super,^resize_inode", "^resize_inode", "64bit", "bigalloc", "meta_bg,^resize_inode", "sparse_super2,^resize_inode"} {
		path := filepath.Join(t.TempDir(), "image")
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", features, path, "300M")
		told, err := readPath(t, path)
		if err != nil {
			t.Fatal(err)
		}
		run(t, "debugfs", "-w", "-R", "ssv overhead_clusters 0", path)
		counted, err := readPath(t, path)
		if err != nil {
			t.Fatal(err)
		}
		if off := math.Abs(float64(told.Overhead-counted.Overhead)) / float64(told.Overhead); counted.Ext.OverheadClusters != 0 || off > 0.02 {
			t.Errorf("%s: counted %s of overhead, mke2fs %s", features, counted.Overhead, told.Overhead)
		}
	}
}

// TestExtDirty reads filesystems that were not unmounted: the superblock's
// counts lag behind and the groups' are right.
func TestExtDirty(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args  []string
		order string
		want  vps.FilesystemState
	}{
		"journal":      {[]string{"-t", "ext4"}, "feature needs_recovery", vps.FilesystemNeedsRecovery},
		"bigalloc":     {[]string{"-t", "ext4", "-O", "bigalloc"}, "feature needs_recovery", vps.FilesystemNeedsRecovery},
		"meta_bg":      {[]string{"-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"}, "feature needs_recovery", vps.FilesystemNeedsRecovery},
		"no journal":   {[]string{"-t", "ext2"}, "ssv state 0", vps.FilesystemInUse},
		"with errors":  {[]string{"-t", "ext2"}, "ssv state 2", vps.FilesystemErrors},
		"uninit_bg":    {[]string{"-t", "ext4", "-O", "uninit_bg,^metadata_csum"}, "feature needs_recovery", vps.FilesystemNeedsRecovery},
		"no checksums": {[]string{"-t", "ext3"}, "feature needs_recovery", vps.FilesystemNeedsRecovery},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			run(t, "mke2fs", append(append([]string{"-q", "-F", "-d", "."}, tt.args...), path, "700M")...)
			clean, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			for _, order := range []string{"ssv free_blocks_count 1234", "ssv free_inodes_count 12", tt.order} {
				run(t, "debugfs", "-w", "-R", order, path)
			}
			if told := dumpe2fs(t, path)["Free blocks"]; told != "1234" {
				t.Fatalf("the superblock has %s free blocks", told)
			}
			fs, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			if fs.State != tt.want || fs.Approximate == "" {
				t.Errorf("state is %s (%q), want %s", fs.State, fs.Approximate, tt.want)
			}
			if fs.FreeBlocks != clean.FreeBlocks || fs.FreeInodes != clean.FreeInodes {
				t.Errorf("free are %d and %d, want %d and %d", fs.FreeBlocks, fs.FreeInodes, clean.FreeBlocks, clean.FreeInodes)
			}
		})
	}
}

func TestExtJournalDevice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "4096", "-L", "log", path, "32M")
	fs, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	want := dumpe2fs(t, path)
	if fs.Type != vps.FilesystemJournal || fs.UUID != want["Filesystem UUID"] || fs.Label != "log" || fs.Size != 32<<20 || strings.Join(fs.Features, " ") != want["Filesystem features"] {
		t.Errorf("got %+v, want %v", fs, want)
	}
}

// TestExtExternalJournal has its journal on another device.
func TestExtExternalJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	journal, path := filepath.Join(dir, "journal"), filepath.Join(dir, "image")
	run(t, "mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "4096", journal, "32M")
	device := loop(t, journal)
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "device="+device, path, "64M")
	fs, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	compareExt(t, fs, dumpe2fs(t, path))
	if j, err := readPath(t, device); err != nil || fs.Ext.JournalUUID != j.UUID || fs.Ext.JournalInode != 0 {
		t.Errorf("%+v on %+v: %v", fs.Ext, j, err)
	}
}

// patch changes bytes of a file.
func patch(tb testing.TB, path string, off int64, b []byte) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

// TestExtCopies destroys the first superblock.
func TestExtCopies(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		off  int64
		b    []byte
	}{
		"zeros, 1 KiB":   {[]string{"-b", "1024"}, 0, make([]byte, 4096)},
		"zeros, 4 KiB":   {[]string{"-b", "4096"}, 0, make([]byte, 4096)},
		"zeros, 8 KiB":   {[]string{"-b", "8192"}, 0, make([]byte, 4096)},
		"zeros, 64 KiB":  {[]string{"-b", "65536", "-g", "65528"}, 0, make([]byte, 4096)},
		"no magic":       {[]string{"-b", "4096"}, extOffset + 0x38, []byte{0, 0}},
		"wrong checksum": {[]string{"-b", "4096"}, extOffset + 0x78, []byte("x")},
		"absurd":         {[]string{"-b", "4096", "-O", "^metadata_csum"}, extOffset + 0x18, []byte{0xff, 0xff}},
		"bigalloc":       {[]string{"-b", "1024", "-O", "bigalloc"}, 0, make([]byte, 4096)},
		"sparse_super2":  {[]string{"-b", "1024", "-O", "sparse_super2,^resize_inode"}, 0, make([]byte, 4096)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			run(t, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4", "-L", "found"}, tt.args...), path, "5G")...)
			want, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			if tt.off == 0 && tt.args[1] == "1024" {
				tt.b = tt.b[:2048] // the descriptors are behind it
			}
			patch(t, path, tt.off, tt.b)
			fs, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			if fs.UUID != want.UUID || fs.Free != want.Free || fs.FreeInodes != want.FreeInodes || fs.Ext.FromBackup == 0 || len(fs.Warnings) == 0 {
				t.Errorf("read %+v, want %+v", fs, want)
			}
		})
	}
}

// TestExtDamaged reads what cannot be right.
func TestExtDamaged(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		off  int64
		b    []byte
		want string
	}{
		"checksum":         {0x78, []byte("x"), "checksum of its superblock"},
		"group checksum":   {1024 + 12, []byte{1}, "checksum of its group descriptor 0"},
		"more than it has": {0x04, []byte{0xff, 0xff, 0xff}, "checksum of its superblock"},
	} {
		path := filepath.Join(t.TempDir(), "image")
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "1024", path, "8M") // one group, no copy
		run(t, "debugfs", "-w", "-R", "feature needs_recovery", path)
		patch(t, path, extOffset+tt.off, tt.b)
		if fs, err := readPath(t, path); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v and %+v", name, err, fs)
		}
	}
	for name, tt := range map[string]struct{ order, want string }{
		"free":     {"ssv free_blocks_count 8193", "free blocks"},
		"reserved": {"ssv r_blocks_count 8193", "reserved blocks"},
		"inodes":   {"ssv free_inodes_count 99999", "free inodes"},
		"count":    {"ssv inodes_count 99999", "inodes that it tells"},
		"cut off":  {"ssv blocks_count 20000", "cut off"},
		"cluster":  {"ssv blocks_per_group 0", "groups"},
		"first":    {"ssv first_data_block 2", "first block"},
		"inode":    {"ssv inode_size 100", "inodes would have"},
	} {
		path := filepath.Join(t.TempDir(), "image")
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "1024", path, "8M")
		run(t, "debugfs", "-w", "-R", tt.order, path)
		if fs, err := readPath(t, path); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v and %+v", name, err, fs)
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mke2fs", "-q", "-t", "ext4", path, "8M")
	if err := os.Truncate(path, 4<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := readPath(t, path); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("a cut off image: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readFilesystem(ctx, openSource(t, path)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestExtBudget claims to be so large that its descriptors alone are 16 GiB.
func TestExtBudget(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "64bit,^metadata_csum,^has_journal,^resize_inode", path, "8M")
	run(t, "debugfs", "-w", "-R", "ssv state 0", path)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const groups, perGroup = 1 << 28, 8192
	super := raw[extOffset:]
	binary.LittleEndian.PutUint32(super[0x00:], groups*8)
	binary.LittleEndian.PutUint32(super[0x28:], 8)
	binary.LittleEndian.PutUint32(super[0x04:], 0)
	binary.LittleEndian.PutUint32(super[0x150:], groups*perGroup>>32)
	d := &device{ctx: t.Context(), source: stretched{bytesSource(raw[:2048]), 1 << 52}, left: newBudget()}
	if fs, err := probe(d, nil); !errors.Is(err, errBudget) {
		t.Errorf("got %v and %+v", err, fs)
	}
}
