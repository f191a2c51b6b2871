package guestinit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/seed"
)

// devices finds block devices by what fstab(5) calls them.
type devices struct {
	// dev and sys are the folders /dev and /sys.
	dev, sys string
	// skip are paths of devices that are not the guest's own.
	skip []string
	// labels of all devices, by path; nil until somebody asks.
	labels map[string]labels
}

// labels are how a filesystem can be found.
type labels struct{ uuid, label string }

// find returns the path of a device in /dev, "" when it is not there. A
// partition's UUID or label finds nothing: guests' disks have no partitions
// that sublet makes, and those that a user makes are not looked through.
func (d *devices) find(spec string) string {
	tag, value, tagged := strings.Cut(spec, "=")
	value = strings.Trim(value, `"'`)
	for prefix, name := range map[string]string{"/dev/disk/by-uuid/": "UUID", "/dev/disk/by-label/": "LABEL"} {
		if rest, ok := strings.CutPrefix(spec, prefix); ok {
			tag, value, tagged = name, rest, true
		}
	}
	if !tagged {
		rest, ok := strings.CutPrefix(spec, "/dev/")
		if !ok {
			rest, ok = strings.CutPrefix(spec, runDevices)
		}
		if !ok {
			return ""
		}
		end, err := filepath.EvalSymlinks(filepath.Join(d.dev, rest))
		if err != nil {
			return ""
		}
		if rest, ok = strings.CutPrefix(end, d.dev+"/"); !ok {
			return ""
		}
		return "/dev/" + rest
	}
	if value == "" || tag != "UUID" && tag != "LABEL" {
		return ""
	}
	if d.labels == nil {
		d.probeAll()
	}
	for device, l := range d.labels {
		if tag == "UUID" && strings.EqualFold(l.uuid, value) || tag == "LABEL" && l.label == value {
			return device
		}
	}
	return ""
}

// probeAll reads the labels of all block devices but those in memory, and loops,
// which nothing uses yet.
func (d *devices) probeAll() {
	d.labels = map[string]labels{}
	entries, err := os.ReadDir(filepath.Join(d.sys, "class/block"))
	if err != nil {
		return
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "loop") || slices.Contains(d.skip, "/dev/"+name) {
			continue
		}
		if l, ok := probeLabels(filepath.Join(d.dev, name)); ok {
			d.labels["/dev/"+name] = l
		}
	}
}

// Where filesystems keep their labels: struct ext4_super_block at 1 KiB,
// struct xfs_dsb at 0, struct btrfs_super_block at 64 KiB, and union
// swap_header, whose magic ends a page of 4 KiB.
const (
	extAt, extMagicAt, extUUIDAt, extLabelAt       = 1024, 56, 104, 120
	xfsUUIDAt, xfsLabelAt                          = 32, 108
	btrfsAt, btrfsMagicAt, btrfsUUIDAt, btrfsLabel = 64 << 10, 64, 32, 299
	swapMagicAt, swapUUIDAt, swapLabelAt           = 4086, 1036, 1052
)

// probeLabels reads the labels of what lies on a device. They are a tenant's:
// text to compare with, and nothing else.
func probeLabels(path string) (l labels, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return l, false
	}
	defer f.Close() //nolint:errcheck // read only
	head := make([]byte, btrfsAt+4096)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) || n < 4096 {
		return l, false
	}
	at := func(offset, length int) []byte { return head[offset : offset+length] }
	switch {
	case string(at(extAt+extMagicAt, 2)) == "\x53\xef":
		return labels{uuid(at(extAt+extUUIDAt, 16)), text(at(extAt+extLabelAt, 16))}, true
	case string(at(0, 4)) == "XFSB":
		return labels{uuid(at(xfsUUIDAt, 16)), text(at(xfsLabelAt, 12))}, true
	case string(at(btrfsAt+btrfsMagicAt, 8)) == "_BHRfS_M":
		return labels{uuid(at(btrfsAt+btrfsUUIDAt, 16)), text(at(btrfsAt+btrfsLabel, 256))}, true
	case string(at(swapMagicAt, 10)) == "SWAPSPACE2":
		return labels{uuid(at(swapUUIDAt, 16)), text(at(swapLabelAt, 16))}, true
	}
	return l, false
}

// uuid writes 16 bytes in the form of RFC 9562.
func uuid(b []byte) string {
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// makeNodes makes what programs look for in /dev before anything loads the
// module behind it, or that no module makes. The numbers are those of the
// kernel's list of devices (Documentation/admin-guide/devices.txt); modprobe
// finds the module by them. What is there already is fine.
func makeNodes(devDir string) error {
	var failed error
	for _, n := range []struct {
		name  string
		minor uint32
		mode  uint32
	}{{"net/tun", 200, 0o666}, {"fuse", 229, 0o666}, {"loop-control", 237, 0o660}} {
		path := filepath.Join(devDir, n.name)
		const miscMajor = 10
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = unix.Mknod(path, unix.S_IFCHR|n.mode, int(unix.Mkdev(miscMajor, n.minor)))
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = os.Chmod(path, os.FileMode(n.mode)) // Mknod heeds the umask
		}
		failed = errors.Join(failed, err)
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(devDir, name)); err != nil && !errors.Is(err, unix.EEXIST) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// diskLink is the name under which a guest finds a disk, whatever the device
// is called: udev leaves links alone that are not its own.
func diskLink(name string) string { return "disk/by-id/sublet-" + name }

// linkDisks makes the links to the extra disks that are there. /dev is new at
// each boot, so none is left of a disk that was taken away.
func linkDisks(devDir string, disks []seed.Disk) error {
	var failed error
	for _, d := range disks {
		rest, ok := strings.CutPrefix(d.Device, "/dev/")
		if !ok {
			continue
		}
		if _, err := os.Stat(filepath.Join(devDir, rest)); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		link := filepath.Join(devDir, diskLink(d.Name))
		err := os.MkdirAll(filepath.Dir(link), 0o755)
		if err == nil {
			err = os.Symlink("../../"+rest, link)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
