// Package tree makes a tar archive of a folder and a folder of a tar archive,
// with everything that a Linux filesystem keeps of a file: owners, modes,
// times to the nanosecond, hard links, devices, holes and extended attributes
// (as star and GNU tar write them, in SCHILY.xattr records of the pax format).
//
// Either side may be hostile. No path of an archive, and no symbolic link in
// a tree, leads out of the folder that was opened: the kernel resolves every
// path below it (openat2(2)). What a tree takes of memory does not grow with
// the archive, but for 200 bytes for each folder whose time is to be set and
// each file that has several names.
package tree
