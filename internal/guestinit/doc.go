// Package guestinit is what runs first in every guest: process 1 of the
// initramfs, before the image's own init. It makes any image into this guest
// without the image's help: it mounts the root disk and grows its filesystem,
// puts the kernel's modules where the image looks for them, sets the network
// up and writes the identity that the seed disk tells. Then it steps aside
// and executes the image's init.
//
// Three rules decide every doubt:
//
//   - Only a root disk that cannot be mounted, or has no init, stops a boot.
//     Every other failed step says so in one line on the console that begins
//     with "sublet: ", and the boot goes on.
//   - What a user changed inside the guest stays. The last value that was
//     applied is remembered in the guest (StatePath), and a file is written
//     again only when the host's value has changed since.
//   - The root disk's content belongs to the guest and is not trusted to be
//     sane: all its paths are resolved inside of it by the kernel
//     (openat2 with RESOLVE_IN_ROOT), absolute symbolic links included.
//
// Everything but system calls on the machine itself works on a Tree, which
// may be any folder, so that tests need no guest.
package guestinit
