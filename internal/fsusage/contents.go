package fsusage

// marks of what is no filesystem that is read here, but worth naming. From
// each format's own documents; LVM's label may stand in any of four sectors.
var otherMarks = []struct {
	magic
	what string
}{
	{magic{0, "LABELONE"}, lvm},
	{magic{512, "LABELONE"}, lvm},
	{magic{1024, "LABELONE"}, lvm},
	{magic{1536, "LABELONE"}, lvm},
	{magic{0, "LUKS\xba\xbe"}, "LUKS, encrypted"},
	{magic{4096, "\xfc\x4e\x2b\xa9"}, "member of a RAID (md)"},
	{magic{0, "\xfc\x4e\x2b\xa9"}, "member of a RAID (md)"},
	{magic{0, "hsqs"}, "squashfs"},
	{magic{0x52, "FAT32   "}, "FAT filesystem"},
	{magic{0x36, "FAT1"}, "FAT filesystem"},
	{magic{3, "NTFS    "}, "NTFS filesystem"},
	{magic{3, "EXFAT   "}, "exFAT filesystem"},
	{magic{32769, "CD001"}, "ISO 9660 filesystem"},
	{magic{0x1020, "\x10\x20\xf5\xf2"}, "F2FS filesystem"},
	{magic{4086, "SWAP-SPACE"}, "swap space of the first kind"},
}

// lvm names a physical volume: what is on it are its logical volumes, each a
// device of its own.
const lvm = "LVM physical volume; look at its logical volumes, /dev/GROUP/VOLUME"

// otherContents names what is on d in a few words, "" when nothing is known.
func otherContents(d *device) (string, error) {
	for _, m := range otherMarks {
		if ok, err := (&format{magics: []magic{m.magic}}).marks(d); err != nil || ok {
			return m.what, err
		}
	}
	return "", nil
}
