package fsusage

import "sublet/internal/vps"

var btrfsFormat = format{name: "btrfs", magics: []magic{{64<<10 + 64, "_BHRfS_M"}}, read: readBtrfs}

func readBtrfs(*device, []*device) (vps.Filesystem, error) {
	return vps.Filesystem{}, damaged("it is not read yet")
}
