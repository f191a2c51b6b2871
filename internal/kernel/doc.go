// Package kernel keeps what guests under User Mode Linux boot: the kernel
// itself, the initrd that holds the early-boot program, and a read-only disk
// with the kernel's modules.
//
// All three are files in one folder, named by a digest of what they were made
// from and never changed afterwards. So a guest that runs, or reboots by
// itself, keeps the parts that belong together, though apt replaced the
// package meanwhile or a newer sublet was installed:
//
//	linux-6.1.176-0123456789ab          the kernel, mode 0555
//	modules-6.1.176-0123456789ab.ext4   its modules, mode 0444, sparse
//	initrd-0123456789ab.cpio            the early-boot program, mode 0444
//	uml-6.1.176-0123456789ab.json       the three of one kernel
//	built-6.12.74-1a2b3c4d5e6f.json     a kernel that was built on this host
//
// A file has its final name only once it is whole and on the disk.
package kernel
