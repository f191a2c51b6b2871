// Package image builds and keeps images: read-only root filesystems that
// guests' volumes are cloned from.
//
// An image is a plain ext4 file with a manifest beside it:
//
//	DIR/debian/12/<version>/disk.img       mode 0444, never written again
//	DIR/debian/12/<version>/manifest.json  vps.Image
//	DIR/debian/12/latest                   a link to the newest version
//
// Each build makes a new version with an id of its own; guests keep the one
// that they were made from. disk.img is sparse and as long as the largest
// disk that an overlay on it can offer; the filesystem at its start is just
// large enough for its files and made to be grown by the guest.
//
// A build unpacks Debian with mmdebstrap in mount and process-id namespaces
// of its own, edits the tree with Go code, and packs it with mke2fs -d. No
// filesystem of an image is ever mounted. A build that fails, is interrupted
// or killed changes no image; Sweep removes what a killed one left.
package image
