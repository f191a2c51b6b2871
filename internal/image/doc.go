// Package image builds and keeps images: read-only root filesystems that
// guests' volumes are cloned from.
//
// An image is a plain file with a filesystem, and a manifest beside it:
//
//	DIR/debian/12/<version>/disk.img       mode 0444, never written again
//	DIR/debian/12/<version>/manifest.json  vps.Image
//	DIR/debian/12/latest                   a link to the newest version
//
// Each build or import makes a new version with an id of its own; guests keep
// the one that they were made from. disk.img is sparse and as long as the
// largest disk that an overlay on it can offer; the filesystem at its start is
// made just large enough for its files, and to be grown by the guest.
//
// A build unpacks Debian or Ubuntu with mmdebstrap in mount and process-id
// namespaces of its own, edits the tree with Go code, and packs it with mke2fs
// -d. An import takes a file of the user's in (see package rootfs), and does
// the same with what is in it, or takes a disk's filesystem as it is; XFS and
// Btrfs are filled in an appliance. No filesystem of an image is ever mounted
// by this host. What fails, is interrupted or killed changes no image; Sweep
// removes what a killed one left. Why it is so: docs/adr/0016-images.md.
package image
