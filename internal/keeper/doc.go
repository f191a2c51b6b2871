//go:build linux

// Package keeper is the small process beside a guest. It starts the guest,
// holds its console and its log, and writes down how it ended, so that guests
// outlive the daemon.
//
// # Who belongs to whom
//
// The keeper runs in a session of its own (or as a transient unit of systemd)
// and starts two children: the anchor, a process that only waits and is the
// first of a new pid namespace, and the guest, inside that namespace. Whatever
// the guest leaves behind when it dies, and User Mode Linux leaves helpers
// that hold its disks' locks, is killed by the kernel together with the
// anchor. The anchor ends when the keeper does, because the pipe between them
// breaks. So there is never a guest without a keeper, and never a second guest
// on the same disk: see docs/adr/0006-keeper.md.
//
// # The run folder
//
//	config.json    what the keeper was told to do (Config)
//	lock           open-file-description lock, held while anything of it runs
//	instance.json  the record: vps.Instance and what the keeper needs itself
//	keeper.sock    the socket; package-level functions are its client
//	keeper.log     what the keeper itself has to say
//
// # The protocol
//
// A caller sends one line of JSON, a request, and gets one line of JSON back.
// For the console op, frames follow in both directions; see frame.go. Both
// sides ignore fields and frame kinds that they do not know. A keeper answers
// every request whose version is not above its own, and any op that it does
// not know with vps.CodeInvalid, so a newer daemon can tell what an older
// keeper can do.
package keeper
