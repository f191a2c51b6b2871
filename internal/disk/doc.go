// Package disk makes and keeps volumes: the disks of guests on the host, the one
// that a guest boots from cloned from an image, and snapshots of them.
//
// A volume is a folder named after its guest. It holds volume.json, which names
// the guest's disks and how each was made, the disks that are files, and a
// folder of snapshots. The folder belongs to root and the data files to the
// guest's user id, so that a guest's process can write its files but neither
// replace nor rename them.
//
// Ways of making a disk (see docs/adr/0003-volumes.md and 0018-disks.md):
//
//   - a reflink (FICLONE), where the filesystem shares extents between files;
//   - an overlay in User Mode Linux's copy-on-write format, see COWHeader;
//   - a sparse copy, for sizes above the image's capacity without reflinks;
//   - a sparse file, for a disk that is empty;
//   - a logical volume of LVM, thick or thin.
//
// Every change is made beside the old state, and volume.json or a folder is
// moved into place by a rename. A full disk or a kill at any instant leaves
// either the old state or the new one. No image or volume is ever mounted by
// the host.
package disk
