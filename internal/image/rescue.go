package image

import "sublet/internal/vps"

// rescue is the system that mends others: the newest stable Debian, whose
// programs know the newest features of filesystems, with what is wanted to
// look at a guest's disks. There the first disk behind the modules is the
// guest's own.
func rescue(components []string) release {
	return release{
		distribution: "sublet", number: "rescue", codename: "trixie", components: components,
		extra: []string{
			"acl", "attr", "btrfs-progs", "dosfstools", "file", "gdisk", "lvm2", "parted", "psmisc", "rsync", "strace", "tmux", "vim-tiny",
			"xfsprogs", "xz-utils", "zstd",
		},
		files: []file{
			{path: "etc/motd", text: rescueMotd},
			{path: "usr/local/sbin/mount-guest", text: mountGuest, program: true},
			{path: "usr/local/sbin/umount-guest", text: umountGuest, program: true},
			{path: "etc/tmpfiles.d/sublet-rescue.conf", text: "d /dev/disk/by-id 0755\nL /dev/disk/by-id/sublet-root - - - - " + vps.RescueDevice + "\n"},
			// Volume groups in a guest's disks are its own; nothing of them is
			// switched on unasked.
			{path: "etc/lvm/lvmlocal.conf", text: "activation {\n\tauto_activation_volume_list = []\n}\n"},
		},
	}
}

const rescueMotd = `
This is the rescue system. It is gone, with all that is written to it, when the
rescue ends. The disks of the guest are not mounted:

  /dev/disk/by-id/sublet-root   the disk that it boots from (` + vps.RescueDevice + `)
  behind it                     its data disks, in their order

  mount-guest                   mounts the first at /mnt, with /dev, /proc, /sys
  chroot /mnt                   goes into the guest's system then
  umount-guest                  unmounts it; do so before the rescue ends
  e2fsck, xfs_repair, btrfs     check and mend a filesystem that is not mounted

`

// The two programs take no words and no files of the guest's but to mount them.
const (
	mountGuest = `#!/bin/sh
# Mounts the guest's root filesystem at /mnt, ready for chroot. With a disk as
# its argument it mounts that.
set -eu
disk=${1:-` + vps.RescueDevice + `}
if mountpoint -q /mnt; then
	echo "mount-guest: /mnt is mounted already; umount-guest unmounts it" >&2
	exit 1
fi
mount "$disk" /mnt
# Never through a link that the guest made: it would lead into this system.
for d in dev proc sys; do
	if [ -d "/mnt/$d" ] && [ ! -L "/mnt/$d" ]; then
		mount --rbind --make-rslave "/$d" "/mnt/$d"
	fi
done
echo "$disk is mounted at /mnt; chroot /mnt goes into it, umount-guest unmounts it"
`
	umountGuest = `#!/bin/sh
# Unmounts what mount-guest has mounted.
set -eu
umount --recursive /mnt
`
)
