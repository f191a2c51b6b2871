package fsusage

// otherMark is a mark, and what has it.
type otherMark struct {
	magic
	what string
}

// owners are marks of what takes a whole device for itself: a filesystem's
// superblock behind one is what was there before. From each format's own
// documents; LVM's label may stand in any of four sectors.
var owners = []otherMark{
	{magic{0, "LABELONE"}, lvm},
	{magic{512, "LABELONE"}, lvm},
	{magic{1024, "LABELONE"}, lvm},
	{magic{1536, "LABELONE"}, lvm},
	{magic{0, "LUKS\xba\xbe"}, "LUKS, encrypted"},
}

// foreign are marks of what is no filesystem that is read here, but worth
// naming.
var foreign = []otherMark{
	{magic{4096, "\xfc\x4e\x2b\xa9"}, "member of a RAID (md)"},
	{magic{0, "\xfc\x4e\x2b\xa9"}, "member of a RAID (md)"},
	{magic{0, "hsqs"}, "squashfs"},
	{magic{0x52, "FAT32   "}, "FAT filesystem"},
	{magic{0x36, "FAT1"}, "FAT filesystem"},
	{magic{3, "NTFS    "}, "NTFS filesystem"},
	{magic{3, "EXFAT   "}, "exFAT filesystem"},
	{magic{32769, "CD001"}, "ISO 9660 filesystem"},
	{magic{0x400, "\x10\x20\xf5\xf2"}, "F2FS filesystem"},
	{magic{4086, "SWAP-SPACE"}, "swap space of the first kind"},
}

// lvm names a physical volume: what is on it are its logical volumes, each a
// device of its own.
const lvm = "LVM physical volume; look at its logical volumes, /dev/GROUP/VOLUME"

// named says in a few words what is on d by the first of the marks that is
// there, "" when none is.
func named(d *device, marks []otherMark) (string, error) {
	for _, m := range marks {
		if ok, err := (&format{magics: []magic{m.magic}}).marks(d); err != nil || ok {
			return m.what, err
		}
	}
	return "", nil
}
