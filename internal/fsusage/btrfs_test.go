package fsusage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// superFields asks btrfs inspect-internal for the fields of a superblock, each
// with its first word.
func superFields(t *testing.T, path string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(run(t, "btrfs", "inspect-internal", "dump-super", path)) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t"); ok && name != "" {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

var (
	groupKey  = regexp.MustCompile(`key \((\d+) BLOCK_GROUP_ITEM (\d+)\)`)
	groupUsed = regexp.MustCompile(`block group used (\d+) chunk_objectid \d+ flags (\S+)`)
	flagName  = regexp.MustCompile(`[A-Z0-9_]{3,}`)
)

// groupsOf adds up the block groups that btrfs inspect-internal finds, by
// their flags.
func groupsOf(t *testing.T, tree string, devices []string) map[string][2]int64 {
	t.Helper()
	groups := map[string][2]int64{}
	var length int64
	for line := range strings.Lines(run(t, "btrfs", append([]string{"inspect-internal", "dump-tree", "-t", tree}, devices...)...)) {
		if m := groupKey.FindStringSubmatch(line); m != nil {
			length, _ = strconv.ParseInt(m[2], 10, 64)
		}
		if m := groupUsed.FindStringSubmatch(line); m != nil {
			used, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			g := groups[m[2]]
			groups[m[2]] = [2]int64{g[0] + length, g[1] + used}
		}
	}
	return groups
}

// compareBtrfs holds a report against what btrfs inspect-internal says of the
// first of the devices.
func compareBtrfs(t *testing.T, got vps.Filesystem, devices ...string) {
	t.Helper()
	want := superFields(t, devices[0])
	for _, f := range []struct {
		name string
		got  any
	}{
		{"label", got.Label},
		{"fsid", got.UUID},
		{"total_bytes", int64(got.Size)},
		{"bytes_used", int64(got.Btrfs.BytesUsed)},
		{"sectorsize", int64(got.BlockSize)},
		{"nodesize", int64(got.Btrfs.NodeSize)},
		{"generation", got.Btrfs.Generation},
		{"num_devices", len(got.Btrfs.Devices)},
	} {
		if fmt.Sprint(f.got) != want[f.name] {
			t.Errorf("%s is %v, btrfs says %s", f.name, f.got, want[f.name])
		}
	}
	first := got.Btrfs.Devices[0]
	if fmt.Sprint(first.ID, int64(first.Size), int64(first.Used)) != want["dev_item.devid"]+" "+want["dev_item.total_bytes"]+" "+want["dev_item.bytes_used"] {
		t.Errorf("the device is %+v, btrfs says %s, %s, %s", first, want["dev_item.devid"], want["dev_item.total_bytes"], want["dev_item.bytes_used"])
	}
	tree := "extent"
	if strings.Contains(strings.Join(got.Features, " "), "BLOCK_GROUP_TREE") {
		tree = "block-group"
	}
	groups := groupsOf(t, tree, devices)
	for _, s := range got.Btrfs.Spaces {
		name := map[string]string{"data": "DATA", "metadata": "METADATA", "system": "SYSTEM", "mixed": "DATA|METADATA"}[s.Kind] + "|" + s.Profile
		g, known := groups[name]
		if !known || int64(s.Size) != g[0] || int64(s.Used) != g[1] {
			t.Errorf("%s has %d bytes, %d used; btrfs says %d and %d", name, s.Size, s.Used, g[0], g[1])
		}
		delete(groups, name)
	}
	if len(groups) > 0 {
		t.Errorf("these block groups are missing: %v", groups)
	}
	if got.Free < 0 || got.Free > got.Size || uint64(got.Free)/uint64(got.BlockSize) != got.FreeBlocks {
		t.Errorf("%d bytes or %d blocks are free of %d bytes", got.Free, got.FreeBlocks, got.Size)
	}
	// Names stand below the flags, in brackets.
	dump := run(t, "btrfs", "inspect-internal", "dump-super", devices[0])
	for _, flags := range []string{"compat_ro_flags", "incompat_flags"} {
		_, rest, _ := strings.Cut(dump, "\n"+flags)
		_, rest, _ = strings.Cut(rest, "\n")
		if !strings.HasPrefix(strings.TrimSpace(rest), "(") {
			continue
		}
		names, _, _ := strings.Cut(rest, ")")
		for _, name := range flagName.FindAllString(names, -1) {
			if !strings.Contains(" "+strings.Join(got.Features, " ")+" ", " "+name+" ") {
				t.Errorf("the feature %s is not among %v", name, got.Features)
			}
		}
	}
}

// content makes a folder with files for a filesystem.
func content(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	b := make([]byte, 300_000)
	for i := range 40 {
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), b[:1000+i*7000], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestBtrfs compares with btrfs inspect-internal over what mkfs.btrfs can
// vary.
func TestBtrfs(t *testing.T) {
	t.Parallel()
	files := content(t)
	for _, options := range []string{
		"", "-L named", "-m single", "-m dup -d dup", "-M", "-M -m dup -d dup", "-n 4096", "-n 65536", "-s 16384 -n 16384",
		"--checksum xxhash", "--checksum sha256", "--checksum blake2", "-O ^no-holes,^extref,^skinny-metadata", "-R ^free-space-tree",
		"-U 11111111-2222-3333-4444-555555555555", "-R quota",
	} {
		for _, filled := range []bool{false, true} {
			t.Run(fmt.Sprint(options, filled), func(t *testing.T) {
				t.Parallel()
				path := blank(t, "image", 300<<20)
				args := append([]string{"-q", "-f"}, strings.Fields(options)...)
				if filled {
					args = append(args, "--rootdir", files)
				}
				run(t, "mkfs.btrfs", append(args, path)...)
				got, err := readPath(t, path)
				if err != nil {
					t.Fatal(err)
				}
				compareBtrfs(t, got, path)
				if got.State != vps.FilesystemClean || len(got.Warnings) > 0 || got.Approximate != "" {
					t.Errorf("state is %s, warnings %q, approximate %q", got.State, got.Warnings, got.Approximate)
				}
			})
		}
	}
}

// readAll reads a filesystem with its further devices.
func readAll(t *testing.T, paths ...string) (vps.Filesystem, error) {
	t.Helper()
	var sources []Source
	for _, p := range paths {
		sources = append(sources, openSource(t, p))
	}
	return readFilesystem(t.Context(), sources[0], sources[1:]...)
}

func TestBtrfsOnSeveralDevices(t *testing.T) {
	t.Parallel()
	for profiles, devices := range map[string]int{
		"-d single -m single": 2, "-d single -m raid1": 2, "-d raid0 -m raid0": 3, "-d raid1 -m raid1": 2, "-d raid10 -m raid10": 4,
		"-d raid1c3 -m raid1c3": 3, "-d raid1c4 -m raid1c4": 4, "-d raid5 -m raid5": 3, "-d raid6 -m raid6": 4, "-d raid0 -m raid1c3": 3,
	} {
		t.Run(profiles, func(t *testing.T) {
			t.Parallel()
			var paths []string
			for i := range devices {
				paths = append(paths, blank(t, fmt.Sprint("d", i), int64(200+50*i)<<20))
			}
			run(t, "mkfs.btrfs", append(append([]string{"-q", "-f"}, strings.Fields(profiles)...), paths...)...)
			got, err := readAll(t, paths...)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Warnings) > 0 {
				t.Errorf("warnings: %q", got.Warnings)
			}
			compareBtrfs(t, got, paths...)
			mirrored := strings.Contains(profiles, "-m raid1")
			alone, err := readAll(t, paths[0])
			switch {
			case mirrored && err != nil:
				t.Errorf("with one device of a mirror: %v", err)
			case mirrored && (alone.Free != got.Free || len(alone.Warnings) != 1 || !strings.Contains(alone.Warnings[0], "not at hand")):
				t.Errorf("with one device of a mirror: %d bytes free, %q; with all %d", alone.Free, alone.Warnings, got.Free)
			case err != nil && !errors.Is(err, errNoDevice):
				t.Errorf("with one device: %v", err)
			}
		})
	}
}

// TestBtrfsInUse fills a filesystem on several devices, and reads it while it
// is mounted, with a log, and after.
func TestBtrfsInUse(t *testing.T) {
	t.Parallel()
	path, copied := blank(t, "image", 400<<20), filepath.Join(t.TempDir(), "copy")
	run(t, "mkfs.btrfs", "-q", "-f", path)
	out := mounted(t, path, "noatime", `
i=0; while [ $i -lt 300 ]; do head -c 100000 /dev/urandom > "$1/$i"; i=$((i+1)); done
rm "$1"/1*; sync; echo more > "$1/x"; sync "$1/x"; cp --sparse=always "$0" `+copied+`
sync; btrfs filesystem usage -b "$1"`)
	got, err := readPath(t, copied)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != vps.FilesystemNeedsRecovery || got.Approximate == "" {
		t.Errorf("in use: state is %s, approximate %q", got.State, got.Approximate)
	}
	if got, err = readPath(t, path); err != nil {
		t.Fatal(err)
	}
	if got.State != vps.FilesystemClean || got.Approximate != "" || len(got.Warnings) > 0 {
		t.Errorf("unmounted: state is %s, approximate %q, warnings %q", got.State, got.Approximate, got.Warnings)
	}
	compareBtrfs(t, got, path)
	for name, have := range map[string]vps.Bytes{"Device unallocated": got.Btrfs.Unallocated, "Free (estimated)": got.Btrfs.Estimated} {
		m := regexp.MustCompile(regexp.QuoteMeta(name) + `:\s+(\d+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("%s is missing: %s", name, out)
		}
		if want, _ := strconv.ParseInt(m[1], 10, 64); int64(have) > want+1<<20 || int64(have) < want-1<<20 {
			t.Errorf("%s is %d, btrfs says %d", name, have, want)
		}
	}
}

// openBtrfs opens a filesystem on one device, with its first chunks.
func openBtrfs(t *testing.T, path string) *btrfsVolume {
	t.Helper()
	d := &device{ctx: t.Context(), source: openSource(t, path), left: newBudget()}
	s, err := superAt(d, btrfsPlaces[0])
	if err != nil {
		t.Fatal(err)
	}
	v, err := assembleBtrfs(s, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestBtrfsBlockGroupTree turns the extent tree of a filesystem into its block
// group tree, which mkfs.btrfs makes from version 6.7 on: the last root before
// the files' own, that of the free space tree, is given its number and place.
func TestBtrfsBlockGroupTree(t *testing.T) {
	t.Parallel()
	path := blank(t, "image", 300<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "--rootdir", content(t), path)
	before, err := readPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	v := openBtrfs(t, path)
	if err := v.readChunks(); err != nil {
		t.Fatal(err)
	}
	leaf, err := v.node(btrfsPointer{v.s.root, v.s.generation, v.s.rootLevel})
	if err != nil || leaf.level != 0 {
		t.Fatalf("the root tree: %+v, %v", leaf, err)
	}
	var extents, spaces []byte
	for i := range leaf.items {
		switch leaf.key(i) {
		case btrfsKey{btrfsExtentTree, btrfsRootItem, 0}:
			extents, err = leaf.item(i)
		case btrfsKey{10, btrfsRootItem, 0}: // BTRFS_FREE_SPACE_TREE_OBJECTID
			leaf.raw[btrfsHeaderBytes+i*btrfsItemBytes] = btrfsGroupTree
			spaces, err = leaf.item(i)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copy(spaces, extents)
	copy(leaf.raw, v.s.sum.of(leaf.raw[32:]))
	places, _ := v.chunkAt(v.s.root).places(v.s.root)
	for _, place := range places {
		overwrite(t, path, int64(place.offset), leaf.raw)
	}
	super := v.s.raw
	super[180] |= btrfsBlockGroupTree
	copy(super, v.s.sum.of(super[32:]))
	overwrite(t, path, btrfsPlaces[0], super)
	got, err := readPath(t, path)
	if err != nil || got.Free != before.Free || !slices.Contains(got.Features, "BLOCK_GROUP_TREE") {
		t.Errorf("%+v, %v; before %+v", got, err, before)
	}
	// Without that tree nothing tells what is used.
	for _, place := range places {
		overwrite(t, path, int64(place.offset), make([]byte, 4))
	}
	if got, err := readPath(t, path); !errors.Is(err, errDamaged) {
		t.Errorf("without the tree: %+v, %v", got, err)
	}
}

func TestBtrfsDamage(t *testing.T) {
	t.Parallel()
	clean := blank(t, "image", 300<<20)
	run(t, "mkfs.btrfs", "-q", "-f", "-L", "kept", "--rootdir", content(t), clean)
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
		"one bit of the superblock": func(path string) { overwrite(t, path, 64<<10+300, []byte{'K'}) },
		"the start":                 func(path string) { overwrite(t, path, 0, make([]byte, 128<<10)) },
	} {
		path := copyOf()
		damage(path)
		got, err := readPath(t, path)
		if err != nil || got.Free != before.Free || got.Label != "kept" || len(got.Warnings) == 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// Metadata is there twice (DUP), so one copy of each node may be lost.
	path := copyOf()
	v := openBtrfs(t, path)
	places, _ := v.chunkAt(v.s.chunkRoot).places(v.s.chunkRoot)
	if len(places) != 2 {
		t.Fatalf("the chunk tree lies at %v", places)
	}
	overwrite(t, path, int64(places[0].offset)+500, []byte("garbage"))
	if got, err := readPath(t, path); err != nil || got.Free != before.Free {
		t.Errorf("one copy of a node is damaged: %+v, %v", got, err)
	}
	overwrite(t, path, int64(places[1].offset)+500, []byte("garbage"))
	if got, err := readPath(t, path); !errors.Is(err, errDamaged) {
		t.Errorf("both copies of a node are damaged: %+v, %v", got, err)
	}
	path = copyOf()
	if err := unix.Truncate(path, 200<<20); err != nil {
		t.Fatal(err)
	}
	if got, err := readPath(t, path); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("cut off: %+v, %v", got, err)
	}
}
