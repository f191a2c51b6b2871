// Package vps holds the nouns of sublet: host, guest, tenant, image, volume,
// ports and network, with their units, limits and validation.
//
// Everything here is a plain value. The package imports the standard library
// only, does no I/O, and every function is safe for concurrent use.
package vps
