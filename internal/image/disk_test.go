package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/fsusage"
	"sublet/internal/vps"
)

// readDisks reads disks as the daemon does.
type readDisks struct{}

func (readDisks) Look(ctx context.Context, path string) (vps.DiskUsage, error) {
	return fsusage.Look(ctx, path, fsusage.Options{})
}

func (readDisks) Open(ctx context.Context, path string) (Disk, error) {
	return fsusage.OpenDisk(ctx, path)
}

// fakeAppliance has looked into every filesystem, and found this.
type fakeAppliance struct{ Appliance }

func (fakeAppliance) Skeleton(_ context.Context, _, dir string, _ []string) error {
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "etc/os-release"), []byte("ID=seen\n"), 0o600)
}

func makeFS(t *testing.T, path, kind, label string, mib int) string {
	t.Helper()
	tool(t, "truncate", "-s", strconv.Itoa(mib)+"M", path)
	switch kind {
	case "xfs", "btrfs":
		tool(t, "mkfs."+kind, "-q", "-f", "-L", label, path)
	default:
		tool(t, "mke2fs", "-q", "-F", "-t", kind, "-L", label, path)
	}
	return path
}

// partitionedDisk puts filesystems into partitions behind each other.
func partitionedDisk(t *testing.T, path, table string, parts ...string) string {
	t.Helper()
	script := "label: " + table + "\n"
	at, starts := int64(2048), []int64{}
	for _, p := range parts {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		script += "start=" + strconv.FormatInt(at, 10) + ", size=" + strconv.FormatInt(info.Size()/512, 10) + "\n"
		starts = append(starts, at)
		at += info.Size()/512 + 2048
	}
	tool(t, "truncate", "-s", strconv.FormatInt((at+2048)*512, 10), path)
	layout := path + ".sfdisk"
	if err := os.WriteFile(layout, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "sh", "-c", `sfdisk -q "$0" < "$1"`, path, layout)
	for i, p := range parts {
		tool(t, "dd", "if="+p, "of="+path, "bs=512", "seek="+strconv.FormatInt(starts[i], 10), "conv=notrunc,sparse", "status=none")
	}
	return path
}

func TestImportDisks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ext4, xfs, btrfs := makeFS(t, in("a.img"), "ext4", "cloud", 64), makeFS(t, in("b.img"), "xfs", "cloud", 320), makeFS(t, in("c.img"), "btrfs", "cloud", 120)
	boot, twin, named := makeFS(t, in("d.img"), "ext2", "boot", 16), makeFS(t, in("e.img"), "ext4", "data", 64), makeFS(t, in("f.img"), "ext4", "rootfs", 32)
	gpt := partitionedDisk(t, in("gpt.raw"), "gpt", boot, ext4)
	partitionedDisk(t, in("mbr.raw"), "dos", xfs, boot)
	unsure := partitionedDisk(t, in("unsure.raw"), "gpt", ext4, twin)
	partitionedDisk(t, in("labelled.raw"), "gpt", twin, named)
	tool(t, "qemu-img", "convert", "-c", "-O", "qcow2", gpt, in("gpt.qcow2"))
	tool(t, "qemu-img", "convert", "-O", "qcow2", "-o", "compression_type=zstd", "-c", btrfs, in("btrfs.qcow2"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", ext4, "-F", "raw", in("backed.qcow2"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data.raw")+",data_file_raw=on", in("datafile.qcow2"), "64M")
	tool(t, "sh", "-c", `zstd -q "$0" -o "$0.zst" && gzip -k "$0"`, gpt)
	tool(t, "tar", "-C", dir, "--transform=s,.*,disk.raw,", "-czSf", in("cloud.tar.gz"), "gpt.raw")
	s := New(in("images"), Options{Disks: readDisks{}, Appliance: fakeAppliance{}})
	for name, c := range map[string]struct {
		part       int
		filesystem string
		size       vps.Bytes
		same       string // holds the same bytes
		err        string
	}{
		"a.img":          {0, "ext4", 64 * vps.MiB, ext4, ""},
		"b.img":          {0, "xfs", 320 * vps.MiB, xfs, ""},
		"c.img":          {0, "btrfs", 120 * vps.MiB, btrfs, ""},
		"gpt.raw":        {0, "ext4", 64 * vps.MiB, ext4, ""},
		"gpt.raw.zst":    {0, "ext4", 64 * vps.MiB, ext4, ""},
		"gpt.raw.gz":     {2, "ext4", 64 * vps.MiB, ext4, ""},
		"cloud.tar.gz":   {0, "ext4", 64 * vps.MiB, ext4, ""},
		"gpt.qcow2":      {0, "ext4", 64 * vps.MiB, ext4, ""},
		"btrfs.qcow2":    {0, "btrfs", 120 * vps.MiB, btrfs, ""},
		"mbr.raw":        {0, "xfs", 320 * vps.MiB, xfs, ""},
		"labelled.raw":   {0, "ext4", 32 * vps.MiB, named, ""},
		"unsure.raw":     {0, "", 0, "", "--partition N"},
		"backed.qcow2":   {0, "", 0, "", "holds only what differs from another file"},
		"datafile.qcow2": {0, "", 0, "", "another file"},
	} {
		f, err := os.Open(in(name))
		if err != nil {
			t.Fatal(err)
		}
		img, err := importFile(t, s, "disk/"+strings.ReplaceAll(name, ".", "-"), f, Import{Partition: c.part, Capacity: vps.GiB})
		_ = f.Close()
		if c.err != "" {
			if vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(vps.ErrorMessage(err), c.err) || strings.Contains(vps.ErrorMessage(err), "scratch") || strings.Contains(vps.ErrorMessage(err), "upload") {
				t.Errorf("%s: %v, want %q", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if img.Filesystem != c.filesystem || img.FilesystemSize != c.size || img.Size != vps.GiB || img.Source != "disk" || img.Distribution != "seen" {
			t.Errorf("%s: %+v", name, img)
		}
		tool(t, "cmp", "-n", strconv.FormatInt(int64(c.size), 10), c.same, img.Path)
	}
	for part, want := range map[int]string{1: "", 2: "", 3: "there is no partition 3"} {
		f, err := os.Open(unsure)
		if err != nil {
			t.Fatal(err)
		}
		_, err = importFile(t, s, "disk/unsure", f, Import{Partition: part})
		_ = f.Close()
		if want == "" && err != nil || want != "" && !strings.Contains(vps.ErrorMessage(err), want) {
			t.Errorf("partition %d: %v", part, err)
		}
	}
	whole, err := os.ReadFile(gpt)
	if err != nil {
		t.Fatal(err)
	}
	_, err = importFile(t, s, "disk/cut", bytes.NewReader(whole[:len(whole)/2]), Import{})
	wantCode(t, err, vps.CodeInvalid)
	if left, err := os.ReadDir(s.home("disk/cut")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestImportOnFullDisk imports on disks that are too small for the file, and for
// what is unpacked of it.
func TestImportOnFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	tool(t, "sh", "-c", `mkdir -p "$0/etc" "$0/bin" && echo ID=x > "$0/etc/os-release" && head -c 40000000 /dev/urandom > "$0/bin/big"`, big)
	file := filepath.Join(dir, "file.tar")
	tool(t, "tar", "-C", big, "-cf", file, ".")
	for _, size := range []string{"20m", "60m"} {
		at := t.TempDir()
		cmd := helper(t, at, helperTmpfs+"=size="+size, helperFile+"="+file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{"error denied: the filesystem of " + at + " is full", "debian/12", "left 0\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is missing in:\n%s", size, want, out)
			}
		}
	}
}
