// Package rootfs makes a root filesystem of what people have: archives of one,
// packed in any of the usual ways, images of containers, and images of disks.
//
// What a file is, is told by its contents and never by its name. All of it may
// be hostile: an archive that tries to leave the folder that it is unpacked
// into is refused whole, programs that read it run as nobody, and no
// filesystem is mounted.
package rootfs
