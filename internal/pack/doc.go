// Package pack writes and reads .sublet files: a whole guest in one stream.
//
// A file is a head and frames (docs/adr/0019-pack.md has it byte by byte):
//
//	head   "SUBLETPACK", version (2 bytes), an ID that was never used (16 bytes)
//	frame  kind (1), 0 (1), disk (2), length (4), chunk number (8), content, sum (32)
//
// Numbers are big-endian. The content is one frame of Zstandard (RFC 8878).
// Each sum is the SHA-256 of the sum before it, the frame's head and its
// content as it lies in the file; the first stands on the head of the file. So
// a sum vouches for all that came before it, and the last one for the whole.
//
// The first frame is the manifest, the last one the end, both JSON. Between
// them are chunks of 1 MiB of the disks, in order; chunks of zeros are left
// out. The end has a digest of each disk's content, which says the same of a
// disk whatever it is kept in: see Digest.
//
// What is read may be hostile: nothing is believed that was not checked, and
// memory is bounded.
package pack
