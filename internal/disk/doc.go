// Package disk makes and keeps volumes: the disks of guests as files on the
// host, cloned from an image in constant time.
//
// A volume is a folder named after its guest. It holds the data file and
// volume.json, which says how the volume was made. The folder belongs to root
// and the data file to the guest's user id, so that a guest's process can
// write its file but neither replace nor rename it.
//
// Three ways of cloning exist, tried in this order (see
// docs/adr/0003-volumes.md):
//
//   - a reflink (FICLONE), where the filesystem shares extents between files;
//   - an overlay in User Mode Linux's copy-on-write format, see COWHeader;
//   - a sparse copy, for sizes above the image's capacity without reflinks.
//
// Every change is made beside the old state and moved into place by a rename.
// A full disk or a kill at any instant leaves either no volume or a whole one.
// No image or volume is ever mounted by the host.
package disk
