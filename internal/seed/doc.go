// Package seed makes and reads the seed disk: the small read-only disk that
// tells a guest at boot who it is.
//
// The disk has no filesystem, so that neither the host nor the guest needs a
// tool or a driver for it, and its bytes follow from its content alone: two
// seeds are equal exactly when their bytes are. The layout, in order:
//
//	SUBLET-SEED 1\n   magic line, 14 bytes; the number is the format's version
//	length            of the JSON in bytes, 4 bytes, big endian
//	digest            SHA-256 of the JSON, 32 bytes
//	JSON              the fields of Seed
//	zeros             up to a multiple of 4096 bytes, whole sectors
//
// The host writes it (Set), the program that runs first in a guest reads it
// (Read). The package holds no state.
package seed
