// Package kbuild makes kernels for User Mode Linux from their source: it fetches
// the source (or takes what the owner hands in), configures it for guests of
// sublet, and builds it.
//
// A source is code that runs: its Makefiles do as they please while they build.
// They do it as a user of their own, in namespaces without a network, that may
// write to the build's folder and to nothing else; what comes out runs in the
// jail of its guests. So a source that is not what it says endangers the guests
// that boot it, and not more.
//
// The configuration is in fragment.config, which docs/kernel.md explains.
package kbuild
