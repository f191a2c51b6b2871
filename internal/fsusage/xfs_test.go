package fsusage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// blank makes a file of this size without content, in a folder of its own.
func blank(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	sparse(t, path, size)
	return path
}

// mkfsXFS makes a filesystem. The variables let mkfs.xfs make small ones, as
// its versions before 5.19 did for everybody.
func mkfsXFS(tb testing.TB, path string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "mkfs.xfs", append(append([]string{"-q", "-f"}, args...), path)...)
	cmd.Env = append(os.Environ(), "TEST_DIR=1", "TEST_DEV=1", "QA_CHECK_FS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("mkfs.xfs %q: %v\n%s", args, err, out)
	}
}

var (
	fieldLine = regexp.MustCompile(`(?m)^(\w+) = (.*)$`)
	labelLine = regexp.MustCompile(`\\0.*`)
)

// xfsFields asks xfs_db for the fields of a header.
func xfsFields(t *testing.T, path string, commands ...string) map[string]string {
	t.Helper()
	args := []string{"-r", "-f"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	fields := map[string]string{}
	for _, m := range fieldLine.FindAllStringSubmatch(run(t, "xfs_db", append(args, path)...), -1) {
		fields[m[1]] = m[2]
	}
	return fields
}

// compareXFS holds a report against what xfs_db says.
func compareXFS(t *testing.T, path string, got vps.Filesystem) {
	t.Helper()
	want := xfsFields(t, path, "sb 0", "p")
	x := got.XFS
	label := labelLine.ReplaceAllString(strings.Trim(want["fname"], `"`), "")
	for _, f := range []struct {
		name string
		got  any
		want string
	}{
		{"fname", got.Label, label},
		{"uuid", got.UUID, want["uuid"]},
		{"blocksize", int64(got.BlockSize), want["blocksize"]},
		{"dblocks", got.Blocks, want["dblocks"]},
		{"fdblocks", got.FreeBlocks, want["fdblocks"]},
		{"icount", got.Inodes, want["icount"]},
		{"ifree", got.FreeInodes, want["ifree"]},
		{"sectsize", int64(x.SectorSize), want["sectsize"]},
		{"inodesize", int64(x.InodeSize), want["inodesize"]},
		{"agcount", x.AGs, want["agcount"]},
		{"logblocks", x.LogBlocks, want["logblocks"]},
		{"rblocks", x.RealtimeBlocks, want["rblocks"]},
		{"frextents", x.FreeRealtimeExtents, want["frextents"]},
	} {
		if fmt.Sprint(f.got) != f.want {
			t.Errorf("%s is %v, xfs_db says %s", f.name, f.got, f.want)
		}
	}
	_, features, _ := strings.Cut(run(t, "xfs_db", "-r", "-f", "-c", "version", path), "] = ")
	if have := strings.Join(got.Features, ","); have != strings.TrimSpace(features) {
		t.Errorf("features are %s, xfs_db says %s", have, features)
	}
	if int64(got.Free) != int64(got.FreeBlocks)*int64(got.BlockSize) || int64(got.Size) != int64(got.Blocks)*int64(got.BlockSize) {
		t.Errorf("%+v: sizes and counts contradict each other", got)
	}
}

// TestXFS compares with xfs_db over what mkfs.xfs can vary, both the
// superblock's counts and the groups' sums.
func TestXFS(t *testing.T) {
	t.Parallel()
	var all []string
	for _, crc := range []string{"0", "1"} {
		for block := 512; block <= 65536; block *= 2 {
			for _, sector := range []int{512, 4096, 32768} {
				if sector > block || crc == "1" && block < 1024 {
					continue
				}
				all = append(all, fmt.Sprintf("-m crc=%s -b size=%d -s size=%d -L b%d", crc, block, sector, block))
			}
		}
	}
	all = append(all,
		"-m crc=1,bigtime=0,finobt=0,reflink=0,inobtcount=0", "-m crc=1,bigtime=1,rmapbt=1,reflink=1",
		"-m crc=1,rmapbt=1,reflink=0,inobtcount=0", "-m crc=0,finobt=0 -l lazy-count=0", "-m crc=0 -l version=1",
		"-d agcount=1", "-d agcount=2", "-d agcount=7", "-d agsize=17m", "-i size=2048", "-i maxpct=0", "-i maxpct=100,sparse=0", "-i nrext64=1", "-m crc=0 -i size=256,attr=1,projid32bit=0",
		"-n version=ci", "-m crc=0 -n ftype=0", "-d su=64k,sw=4", "-l size=8m", "-l su=128k -L twelve_bytes", "-m uuid=11111111-2222-3333-4444-555555555555",
	)
	for _, options := range all {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			path := blank(t, "image", 160<<20)
			mkfsXFS(t, path, strings.Fields(options)...)
			got, err := readPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			compareXFS(t, path, got)
			if got.State != vps.FilesystemClean || got.Approximate != "" || len(got.Warnings) > 0 {
				t.Errorf("state is %s, approximate %q, warnings %q", got.State, got.Approximate, got.Warnings)
			}
			compareXFSGroups(t, path, got)
		})
	}
}

// openXFS opens a device and its superblock until the test ends.
func openXFS(t *testing.T, path string) (*xfsSuper, *device) {
	t.Helper()
	d := &device{ctx: t.Context(), source: openSource(t, path), left: newBudget()}
	raw, err := d.read(0, xfsMaxSector)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseXFS(raw, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return s, d
}

// compareXFSGroups holds the sums of the groups against the superblock's
// counts, which agree in a clean filesystem.
func compareXFSGroups(t *testing.T, path string, got vps.Filesystem) {
	t.Helper()
	s, d := openXFS(t, path)
	sums, err := s.sumGroups(d)
	if err != nil {
		t.Fatal(err)
	}
	if sums.free != got.FreeBlocks || sums.inodes != got.Inodes || sums.freeInodes != got.FreeInodes {
		t.Errorf("the groups have %d free blocks, %d inodes and %d free ones; the superblock tells %d, %d and %d",
			sums.free, sums.inodes, sums.freeInodes, got.FreeBlocks, got.Inodes, got.FreeInodes)
	}
}

func TestXFSOnSeveralDevices(t *testing.T) {
	t.Parallel()
	path, log, realtime := blank(t, "data", 160<<20), blank(t, "log", 32<<20), blank(t, "realtime", 64<<20)
	mkfsXFS(t, path, "-l", "logdev="+log, "-r", "rtdev="+realtime)
	got, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	compareXFS(t, path, got)
	if !got.XFS.ExternalLog || got.Overhead != 0 || !strings.Contains(got.Approximate, "another device") || len(got.Warnings) != 1 {
		t.Errorf("%+v", got)
	}
	if got, err = readAll(t, path, log); err != nil || got.Approximate != "" {
		t.Errorf("with its log at hand: %q, %v", got.Approximate, err)
	}
}

// mounted runs a shell's lines in a mount namespace of its own, with the image
// mounted at $1. The image is this test's own, and nobody else's.
func mounted(t *testing.T, image, options, script string) string {
	t.Helper()
	return run(t, "unshare", "--mount", "sh", "-euc", `mount -o "loop,$2" "$0" "$1"; `+script+`
umount "$1"`, image, t.TempDir(), options)
}

// statfs prints what the kernel tells of a mounted filesystem.
const statfs = `stat -f -c 'blocks %b available %a files %c unused %d' "$1"`

// compareStatfs holds a report against the last line that statfs printed.
func compareStatfs(t *testing.T, out string, got vps.Filesystem) {
	t.Helper()
	have := fmt.Sprintf("blocks %d available %d files %d unused %d",
		(got.Size-got.Overhead)/got.BlockSize, (got.Free-got.Kept)/got.BlockSize, got.MaxInodes, got.InodesLeft())
	if lines := strings.Split(strings.TrimSpace(out), "\n"); have != lines[len(lines)-1] {
		t.Errorf("the report tells %s, and the kernel %s", have, lines[len(lines)-1])
	}
}

// TestXFSReserve compares with the kernel what files can still take: it keeps
// some of the free blocks, and the disk does not tell how many. Filesystems of
// several features, sizes and shapes are looked at when empty, and when full.
func TestXFSReserve(t *testing.T) {
	t.Parallel()
	for i, options := range []string{
		"", "-m rmapbt=1", "-m finobt=0,reflink=0,inobtcount=0", "-m reflink=0,inobtcount=0", "-m inobtcount=0,finobt=1,rmapbt=1",
		"-b size=1024 -m rmapbt=1", "-b size=2048", "-d agcount=9 -i maxpct=5", "-i size=2048,maxpct=0 -l size=20m",
	} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			path := blank(t, "image", int64(310+170*(i%3))<<20)
			mkfsXFS(t, path, strings.Fields(options)...)
			for _, fill := range []string{"", `
mkdir "$1/d"; i=0; while [ $i -lt 400 ]; do echo > "$1/d/$i"; i=$((i+1)); done
dd if=/dev/zero "of=$1/most" bs=1M 2> "$1/d/0" || true; sync; echo >> "$1/most" || true; sync`} {
				out := mounted(t, path, "noatime", fill+"\n"+statfs)
				got, err := readPath(t, path)
				if err != nil {
					t.Fatal(err)
				}
				compareStatfs(t, out, got)
				compareXFSGroups(t, path, got)
				if p := got.UsedPercent(); fill != "" && p < 99.5 || fill == "" && p > 5 {
					t.Errorf("%.1f %% are used after %q", p, fill)
				}
			}
		})
	}
}

// TestXFSInUse fills a filesystem, looks at it while it is frozen, when all is
// on the disk and the log says that it is in use, and when it is unmounted.
func TestXFSInUse(t *testing.T) {
	t.Parallel()
	path, copied := blank(t, "image", 160<<20), filepath.Join(t.TempDir(), "copy")
	mkfsXFS(t, path, "-m", "rmapbt=1,reflink=1", "-d", "agcount=5")
	out := mounted(t, path, "noatime", `
mkdir "$1/d"; i=0; while [ $i -lt 500 ]; do echo $i > "$1/d/$i"; i=$((i+1)); done
head -c 20000000 /dev/urandom > "$1/large"; rm "$1"/d/1*
sync; xfs_freeze -f "$1"; cp --sparse=always "$0" `+copied+`; xfs_freeze -u "$1"; `+statfs)
	got, err := readPath(t, copied)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != vps.FilesystemNeedsRecovery || got.Approximate == "" {
		t.Errorf("in use: state is %s, approximate %q", got.State, got.Approximate)
	}
	compareStatfs(t, out, got)
	stale := xfsFields(t, copied, "sb 0", "p")
	if stale["fdblocks"] == strconv.FormatUint(got.FreeBlocks, 10) {
		t.Log("the superblock was up to date as well")
	}
	if got, err = readPath(t, path); err != nil {
		t.Fatal(err)
	}
	if got.State != vps.FilesystemClean || got.Approximate != "" {
		t.Errorf("unmounted: state is %s, approximate %q", got.State, got.Approximate)
	}
	compareXFS(t, path, got)
	compareXFSGroups(t, path, got)
}

// TestXFSLogWraps writes the log around more than once, and looks after each
// unmount and in each use.
func TestXFSLogWraps(t *testing.T) {
	t.Parallel()
	path := blank(t, "image", 64<<20)
	mkfsXFS(t, path, "-l", "size=6m", "-d", "agcount=2")
	for round := range 8 {
		copied := filepath.Join(t.TempDir(), "copy")
		mounted(t, path, "noatime", `
i=0; while [ $i -lt 1500 ]; do : > "$1/$i"; i=$((i+1)); done; sync; rm "$1"/*; sync; echo x > "$1/x"; sync
cp --sparse=always "$0" `+copied)
		got, err := readPath(t, path)
		if err != nil || got.State != vps.FilesystemClean {
			t.Fatalf("round %d, unmounted: %s, %v", round, got.State, err)
		}
		compareXFS(t, path, got)
		if got, err = readPath(t, copied); err != nil || got.State != vps.FilesystemNeedsRecovery {
			t.Fatalf("round %d, in use: %s, %v", round, got.State, err)
		}
	}
	s, d := openXFS(t, path)
	if round, err := s.log(d).cycle(0); err != nil || round < 2 {
		t.Errorf("the log is in its round %d, so nothing was tried; %v", round, err)
	}
}

// overwrite writes bytes over a file.
func overwrite(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestXFSDamage(t *testing.T) {
	t.Parallel()
	clean := blank(t, "image", 160<<20)
	mkfsXFS(t, clean, "-L", "kept")
	before, err := readPath(t, clean)
	if err != nil {
		t.Fatal(err)
	}
	copyOf := func() string {
		path := filepath.Join(t.TempDir(), "copy")
		run(t, "cp", "--sparse=always", clean, path)
		return path
	}
	for name, damage := range map[string]func(path string){
		"one bit":   func(path string) { overwrite(t, path, 150, []byte{0xff}) },
		"the start": func(path string) { overwrite(t, path, 0, make([]byte, 512)) },
	} {
		path := copyOf()
		damage(path)
		got, err := readPath(t, path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.FreeBlocks != before.FreeBlocks || got.Inodes != before.Inodes || got.Label != "kept" || len(got.Warnings) == 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	path := copyOf()
	if err := unix.Truncate(path, 100<<20); err != nil {
		t.Fatal(err)
	}
	if got, err := readPath(t, path); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("cut off: %+v, %v", got, err)
	}
	path = copyOf()
	overwrite(t, path, int64(before.BlockSize)*70000+4, []byte("garbage"))
	overwrite(t, path, 512+52, []byte{0, 0xff}) // a count of group 0, which is not looked at
	if got, err := readPath(t, path); err != nil || got.FreeBlocks != before.FreeBlocks {
		t.Errorf("damage elsewhere: %+v, %v", got, err)
	}
	// In use: nothing tells the counts but the groups, so their damage counts.
	overwrite(t, path, 0, make([]byte, 4))
	if got, err := readPath(t, path); err == nil {
		t.Errorf("no count can be believed: %+v", got)
	}
}
