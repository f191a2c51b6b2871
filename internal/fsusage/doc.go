// Package fsusage tells how full filesystems are by reading their own bytes:
// from files, block devices, and images in the formats that guests' disks come
// in. Nothing is mounted, nothing is written, and no program is run.
//
// Whoever owns a guest also owns every byte read here. So all numbers are
// checked before they are used, what is read is bounded (see device), and a
// filesystem whose numbers cannot be right is an error rather than a report.
//
// A format is one value of type format, in a file of its own, named in the
// list formats.
package fsusage
