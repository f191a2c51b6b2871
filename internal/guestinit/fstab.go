package guestinit

import (
	"slices"
	"strings"
)

const fstabPath = "/etc/fstab"

// Notes above a line of fstab that was changed. The line follows, so that
// nothing is lost.
const (
	noteChanged  = "# sublet changed the next line, which was: "
	noteSwapFile = "# sublet: a swap file in fstab hangs the boot under User Mode Linux; the host's own setting for swap does it without one:"
)

// noWait lets a boot go on without a device. The second word is systemd's: it
// bounds how long a unit of it looks for that device beside the boot.
const noWait = "nofail,x-systemd.device-timeout=5s"

// runDevices is where links to block devices lie that systemd does not wait
// for: it waits, for a device below /dev, until udev has announced it.
const runDevices = "/run/sublet/dev/"

// mendFstab returns an fstab(5) that fits the machine:
//
//   - The line of the root filesystem names the device that is there, and its
//     filesystem, and asks for no check: the root is mounted for writing by
//     then, and systemd would wait for udev to announce the disk.
//   - A swap file becomes a comment where it would hang the boot.
//   - A line whose device is missing does not hold the boot up.
//   - A line for a device that is there works though nothing announces devices,
//     when announced is false.
//
// Lines that fit, and all others, stay as they are, so it does nothing the
// second time.
func mendFstab(text string, p place, announced bool) string {
	lines := splitLines(text)
	rootSpec := ""
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "/" && !strings.HasPrefix(f[0], "#") {
			rootSpec = f[0]
		}
	}
	var out []string
	for _, line := range lines {
		old, ok := parseMount(line)
		if !ok {
			out = append(out, line)
			continue
		}
		switch {
		case old.kind == "swap" && isFile(old.spec):
			if p.noSwapFiles {
				out = append(out, noteSwapFile, "#"+line)
				continue
			}
		case old.dir == "/":
			line = changed(line, old, rootMount(old, p))
		case isDevice(old.spec):
			line = changed(line, old, otherMount(old, rootSpec, p, announced))
		}
		out = append(out, line)
	}
	if slices.Equal(lines, out) {
		return text
	}
	return joinLines(out)
}

// changed returns the line, or the note and the line that takes its place.
func changed(line string, old, now mount) string {
	if old == now {
		return line
	}
	return noteChanged + strings.Join(strings.Fields(line), " ") + "\n" + now.String()
}

// mount is a line of fstab(5). Options are kept as they are written.
type mount struct{ spec, dir, kind, options, dump, pass string }

// parseMount returns the fields of a line, those at its end that may be
// missing filled in. A comment, or a line that is none of fstab's, is not one.
func parseMount(line string) (m mount, ok bool) {
	f := strings.Fields(line)
	if len(f) < 3 || strings.HasPrefix(f[0], "#") {
		return mount{}, false
	}
	f = append(f, []string{"", "", "", "defaults", "0", "0"}[min(len(f), 6):]...)
	return mount{f[0], f[1], f[2], f[3], f[4], f[5]}, true
}

func (m mount) String() string {
	return strings.Join([]string{m.spec, m.dir, m.kind, m.options, m.dump, m.pass}, "\t")
}

func (m mount) has(option string) bool {
	return slices.Contains(strings.Split(m.options, ","), option)
}

// isFile tells whether the spec of a swap line is a file.
func isFile(spec string) bool {
	return strings.HasPrefix(spec, "/") && !strings.HasPrefix(spec, "/dev/") && !strings.HasPrefix(spec, runDevices)
}

// isDevice tells whether a spec means a block device, by its path or by what
// lies on it. What is mapped or assembled appears later than this program
// looks.
func isDevice(spec string) bool {
	for _, tag := range []string{"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID="} {
		if strings.HasPrefix(spec, tag) {
			return true
		}
	}
	return strings.HasPrefix(spec, runDevices) || strings.HasPrefix(spec, "/dev/") && !strings.HasPrefix(spec, "/dev/mapper/") && !strings.HasPrefix(spec, "/dev/md")
}

func rootMount(m mount, p place) mount {
	if isDevice(m.spec) && p.device(m.spec) != p.root || strings.HasPrefix(m.spec, "/dev/mapper/") || strings.HasPrefix(m.spec, "/dev/md") {
		m.spec = p.root
	}
	if m.kind != "auto" && filesystemFamily(m.kind) != filesystemFamily(p.kind) {
		m.kind, m.options = p.kind, commonOptions(m.options)
	}
	m.pass = "0"
	return m
}

// filesystemFamily returns one name for the filesystems that one driver of the kernel mounts.
func filesystemFamily(kind string) string {
	if kind == "ext2" || kind == "ext3" {
		return "ext4"
	}
	return kind
}

// commonOptions returns those options that every filesystem takes.
func commonOptions(options string) string {
	var kept []string
	for o := range strings.SplitSeq(options, ",") {
		if slices.Contains([]string{"rw", "ro", "noatime", "nodiratime", "relatime", "strictatime", "lazytime", "sync"}, o) {
			kept = append(kept, o)
		}
	}
	if kept == nil {
		return "defaults"
	}
	return strings.Join(kept, ",")
}

func otherMount(m mount, rootSpec string, p place, announced bool) mount {
	patient := !m.has("nofail") && !m.has("noauto")
	if !patient && announced && m.spec != rootSpec {
		return m // whether it is there makes no difference
	}
	device := p.device(m.spec)
	if device == "" && m.spec == rootSpec {
		// Another part of the root disk: a subvolume of Btrfs.
		device, m.spec = p.root, p.root
	}
	switch {
	case device == "":
		if patient {
			m.options += "," + noWait
		}
	case !announced:
		m.spec, m.pass = runDevices+strings.TrimPrefix(device, "/dev/"), "0"
	}
	return m
}

// runDeviceNames returns the devices that lines of fstab name below
// runDevices, without any folder.
func runDeviceNames(text string) []string {
	var names []string
	for _, line := range splitLines(text) {
		if m, ok := parseMount(line); ok {
			if name, ok := strings.CutPrefix(m.spec, runDevices); ok && name != "" && !strings.Contains(name, "/") {
				names = append(names, name)
			}
		}
	}
	return names
}
