package fsusage

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// fillUp takes all that files can take of the filesystem at $1, and prints how
// much that was. Space is taken, not written, which is faster.
const fillUp = `
n=0; size=268435456; taken=0
while [ $size -ge 65536 ]; do
	if fallocate -l $size "$1/$n" 2> /dev/null; then n=$((n+1)); taken=$((taken+size)); else rm -f "$1/$n"; size=$((size/2)); fi
done; sync; echo taken $taken`

// mountedAll is mounted for a filesystem on several images.
func mountedAll(t *testing.T, images []string, script string) string {
	t.Helper()
	return run(t, "unshare", append([]string{"--mount", "sh", "-euc", `dir="$0"; devices=""; first=""
trap 'for d in $devices; do losetup -d $d; done' EXIT
for i; do d=$(losetup -f --show "$i"); devices="$devices $d"; first=${first:-$d}; done
btrfs device scan $devices > /dev/null; mount -t btrfs -o noatime $first "$dir"
set -- "$dir"; ` + script + `
umount "$dir"`, t.TempDir()}, images...)...)
}

// TestBtrfsRoom takes all that a filesystem has room for, and compares with
// what the report said before; full, it has to say so.
func TestBtrfsRoom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		options string
		sizes   []int64 // MiB
	}{
		{"", []int64{115}},
		{"-d single", []int64{700}},
		{"-d dup", []int64{1500}},
		{"-M", []int64{300}},
		{"-d single -m raid1", []int64{1500, 700}},
		{"-d raid1 -m raid1", []int64{1500, 500}},
		{"-d raid1 -m raid1", []int64{1500, 900, 800}},
		{"-d raid0 -m raid1", []int64{1500, 900, 800}},
		{"-d raid5 -m raid1", []int64{1500, 900, 800}},
		{"-d raid6 -m raid1c3", []int64{1500, 900, 800, 700}},
		{"-d raid10 -m raid1", []int64{1500, 900, 800, 700}},
		{"-d raid1c3 -m raid1c3", []int64{15000, 9000, 8000, 7000}}, // chunks that are small beside the devices
	} {
		t.Run(fmt.Sprint(c.options, c.sizes), func(t *testing.T) {
			t.Parallel()
			var images []string
			for i, size := range c.sizes {
				images = append(images, blank(t, strconv.Itoa(i), size<<20))
			}
			run(t, "mkfs.btrfs", append(append([]string{"-q", "-f"}, strings.Fields(c.options)...), images...)...)
			before, err := readAll(t, images...)
			if err != nil {
				t.Fatal(err)
			}
			_, text, _ := strings.Cut(mountedAll(t, images, fillUp), "taken ")
			taken, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			// Where data and metadata share room, some goes to metadata.
			if said := before.Available(); vps.Bytes(taken) > said+said/25 || vps.Bytes(taken) < said-said/25 {
				t.Errorf("%d bytes were said to be available, and %d could be taken", said, taken)
			}
			full, err := readAll(t, images...)
			if err != nil {
				t.Fatal(err)
			}
			if before.UsedPercent() > 1 || full.UsedPercent() < 98.5 {
				t.Errorf("%.1f %% used when empty, %.1f %% when full", before.UsedPercent(), full.UsedPercent())
			}
			for _, fs := range []vps.Filesystem{before, full} {
				if fs.Used() != fs.Btrfs.BytesUsed {
					t.Errorf("%d bytes are used, and btrfs says %d", fs.Used(), fs.Btrfs.BytesUsed)
				}
			}
		})
	}
}

// TestBtrfsMetadataFull fills a filesystem with files that are small enough to
// lie in the metadata: no more can be made, whatever is free for data.
func TestBtrfsMetadataFull(t *testing.T) {
	t.Parallel()
	path := blank(t, "image", 115<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "-n", "4096", path)
	mounted(t, path, "noatime,max_inline=2048", `
! head -c 100000000 /dev/zero | split -a 5 -b 1900 - "$1/" 2> /dev/null; sync`)
	got, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if got.UsedPercent() < 99 || got.Btrfs.Estimated < 8<<20 {
		t.Errorf("%.1f %% used, %d bytes free for data", got.UsedPercent(), got.Btrfs.Estimated)
	}
}

// TestBtrfsLive looks at a disk that its guest may write.
func TestBtrfsLive(t *testing.T) {
	t.Parallel()
	path := blank(t, "image", 200<<20)
	run(t, "mkfs.btrfs", "-q", "-f", path)
	for _, live := range []bool{false, true} {
		u, err := Look(t.Context(), path, Options{Format: vps.DiskRaw, Live: live})
		if err != nil || len(u.Parts) != 1 || u.Parts[0].Filesystem == nil {
			t.Fatalf("%+v, %v", u, err)
		}
		if fs := u.Parts[0].Filesystem; (fs.Approximate != "") != live {
			t.Errorf("live %v: approximate is %q", live, fs.Approximate)
		}
	}
}

// TestBtrfsDeviceWasAway reads a mirror of which one device was away while the
// other was written: the newer state counts, whichever is named first.
func TestBtrfsDeviceWasAway(t *testing.T) {
	t.Parallel()
	one, two, old := blank(t, "one", 300<<20), blank(t, "two", 300<<20), blank(t, "old", 0)
	run(t, "mkfs.btrfs", "-q", "-f", "-d", "raid1", "-m", "raid1", one, two)
	run(t, "cp", "--sparse=always", one, old)
	mountedAll(t, []string{one, two}, `head -c 9000000 /dev/zero > "$1/x"`)
	want, err := readAll(t, one, two)
	if err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{{old, two}, {two, old}} {
		got, err := readAll(t, paths...)
		if err != nil {
			t.Fatal(err)
		}
		if got.Btrfs.Generation != want.Btrfs.Generation || got.Free != want.Free || got.Available() != want.Available() {
			t.Errorf("%s first: %+v, want %+v", paths[0], got, want)
		}
		if warned := len(got.Warnings) > 0; warned != (paths[0] == old) {
			t.Errorf("%s first: warnings %q", paths[0], got.Warnings)
		}
	}
}

// TestBtrfsSeed reads a filesystem that grew out of another, read-only one,
// whose device it still needs.
func TestBtrfsSeed(t *testing.T) {
	t.Parallel()
	seed, grown := blank(t, "seed", 300<<20), blank(t, "grown", 500<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "--rootdir", content(t), seed)
	before, err := readPath(t, seed)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "btrfstune", "-S", "1", seed)
	mounted(t, seed, "noatime", `d=$(losetup -f --show `+grown+`); trap 'losetup -d $d' EXIT
btrfs device add -f $d "$1" 2>&1; mount -o remount,rw "$1"; echo more > "$1/more"; sync`)
	got, err := readAll(t, grown, seed)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Warnings) > 0 || got.UUID == before.UUID || len(got.Btrfs.Devices) != 2 || got.Size != 800<<20 {
		t.Errorf("%+v", got)
	}
	if alone, err := readPath(t, grown); err == nil && len(alone.Warnings) == 0 || err != nil && !errors.Is(err, errNoDevice) {
		t.Errorf("without its seed: %+v, %v", alone, err)
	}
	if again, err := readPath(t, seed); err != nil || again.Free != before.Free {
		t.Errorf("the seed alone: %+v, %v", again, err)
	}
}

// TestLookDeviceFormat looks at a guest's disk beside another one, at whose
// start the guest wrote the header of an image: it is a raw disk all the same.
func TestLookDeviceFormat(t *testing.T) {
	t.Parallel()
	path, other := blank(t, "image", 200<<20), blank(t, "other", 200<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "-d", "raid1", "-m", "raid1", path, other)
	patch(t, other, 0, []byte(qcow2Magic+"\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x08"))
	u, err := Look(t.Context(), path, Options{Format: vps.DiskRaw, Devices: []string{other}})
	if err != nil || len(u.Parts) != 1 || u.Parts[0].Filesystem == nil || len(u.Parts[0].Filesystem.Warnings) > 0 {
		t.Fatalf("%+v, %v", u, err)
	}
}

// TestBtrfsBudget reads a filesystem with ever larger budgets: too small a one
// is an error, then comes an estimate, and then all.
func TestBtrfsBudget(t *testing.T) {
	t.Parallel()
	path := blank(t, "image", 300<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "-n", "4096", "--rootdir", content(t), path)
	want, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	estimates := 0
	for bytes := int64(4096); ; bytes += 4096 {
		left := newBudget()
		left.bytes = bytes
		got, err := readBtrfs(&device{ctx: t.Context(), source: openSource(t, path), left: left}, nil)
		if err != nil {
			if !errors.Is(err, errBudget) || estimates > 0 {
				t.Fatalf("with %d bytes: %v", bytes, err)
			}
			continue
		}
		if got.Used() != want.Used() || got.Size != want.Size || got.Available() > got.Size-got.Used() {
			t.Errorf("with %d bytes: %+v", bytes, got)
		}
		if got.Approximate == "" {
			break
		}
		estimates++
	}
	if estimates == 0 {
		t.Error("nothing was estimated")
	}
}
