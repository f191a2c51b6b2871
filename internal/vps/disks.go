package vps

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Limits of disks and of what is made on them.
const (
	// MaxDataDisks bounds the extra disks of a guest: User Mode Linux has 16
	// block devices (MAX_DEV in arch/um/drivers/ubd_kern.c), of which three are
	// the guest's root, its seed and its kernel's modules.
	MaxDataDisks = 8
	MinDataDisk  = 1 * MiB
	MinSwap      = 16 * MiB
	MaxSwap      = 256 * GiB
)

// StorageFile keeps volumes as files in the host's folder of volumes.
const StorageFile = "file"

// DataDisk is an extra disk of a guest, empty when it is made.
type DataDisk struct {
	// Name is unique among the guest's disks; the guest finds the disk as
	// /dev/disk/by-id/sublet-NAME.
	Name string `json:"name" doc:"Lower-case letters, digits and hyphens; the guest finds it as /dev/disk/by-id/sublet-NAME."`
	Size Bytes  `json:"size" doc:"Size in bytes, a multiple of 1048576; it can only grow."`
}

// String writes the disk as the command line takes it: "data=10GiB".
func (d DataDisk) String() string { return d.Name + "=" + d.Size.Exact() }

// ParseDataDisk reads NAME=SIZE.
func ParseDataDisk(text string) (DataDisk, error) {
	name, size, found := strings.Cut(text, "=")
	n, err := ParseBytes(size)
	if !found || err != nil {
		return DataDisk{}, Invalid("", "%q is not a disk; write NAME=SIZE, for example data=10GiB", text)
	}
	d := DataDisk{Name: name, Size: n}
	return d, d.validate("")
}

func (d DataDisk) validate(field string) error {
	if err := ValidName(field, d.Name); err != nil {
		return err
	}
	if d.Name == rootDiskName {
		return Invalid(field, "%q is the guest's first disk; choose another name", d.Name)
	}
	if err := sizeBetween(field, d.Size, MinDataDisk, MaxDisk); err != nil {
		return err
	}
	if d.Size%MiB != 0 {
		return Invalid(field, "%s is not a whole number of MiB", d.Size.Exact())
	}
	return nil
}

// rootDiskName is what the disk that a guest boots from is called among its
// disks.
const rootDiskName = "root"

// RootDevice returns the device that a guest of this driver has the disk as
// that it boots from.
func RootDevice(driver string) string { return DataDevice(driver, -3) }

// DataDevice returns the device that a guest of this driver has its data disk
// number i as, from 0: behind its root, its seed and its kernel's modules.
func DataDevice(driver string, i int) string {
	prefix := "/dev/ubd"
	if driver != DefaultDriver {
		prefix = "/dev/xvd"
	}
	return prefix + string(rune('d'+i))
}

// Where volumes lie: a folder, a volume group of LVM, or a thin pool in one.
// Names of groups and pools are those of lvm(8), without a leading hyphen.
var storagePattern = regexp.MustCompile(`^lvm:[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,62}(/[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,62})?$`)

// validateDisks checks the guest's disks, where they lie, and its swap.
func (s *GuestSpec) validateDisks() error {
	if err := sizeBetween("disk", s.Disk, MinDisk, MaxDisk); err != nil {
		return err
	}
	if s.Disk%MiB != 0 {
		return Invalid("disk", "%s is not a whole number of MiB", s.Disk.Exact())
	}
	if s.Storage != StorageFile && (!storagePattern.MatchString(s.Storage) || strings.Contains(s.Storage, "..")) {
		return Invalid("storage", "%q is no place for disks; use %s, lvm:GROUP or lvm:GROUP/POOL", s.Storage, StorageFile)
	}
	if len(s.Disks) > MaxDataDisks {
		return Invalid("disks", "%d disks are more than the limit of %d beside the root disk", len(s.Disks), MaxDataDisks)
	}
	for i, d := range s.Disks {
		field := fmt.Sprintf("disks[%d]", i)
		if err := d.validate(field); err != nil {
			return err
		}
		if slices.ContainsFunc(s.Disks[:i], func(o DataDisk) bool { return o.Name == d.Name }) {
			return Invalid(field, "there are two disks named %s", d.Name)
		}
	}
	if s.Swap == 0 {
		return nil
	}
	if err := sizeBetween("swap", s.Swap, MinSwap, MaxSwap); err != nil {
		return err
	}
	switch {
	case s.Swap%MiB != 0:
		return Invalid("swap", "%s is not a whole number of MiB", s.Swap.Exact())
	case s.Swap > s.Disk/2:
		return Invalid("swap", "%s of swap are more than half of the disk of %s, where it lies; give less, or a larger disk", s.Swap, s.Disk)
	}
	return nil
}

// RescueDevice is the guest's own root disk in the rescue system, under User
// Mode Linux: the first behind the root, the seed and the modules.
const RescueDevice = "/dev/ubdd"
