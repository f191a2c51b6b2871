//go:build linux

package uml

import (
	"context"
	"path/filepath"

	console "sublet/internal/keeper/mconsole"
	"sublet/internal/vps"
)

// doorbell is the card whose appearing tells the guest's early-boot program to
// open its own card anew (guestinit.Doorbell). Its transport names a link that
// does not exist: nothing is opened, because nobody brings the card up.
const doorbell = "vec15"

// Replug lets a running guest open its tap again after the link was made anew
// on the host. It returns when the guest was told, which it acts on within a
// second; connections through it live on. Doing it without need costs the
// guest some packets, no more.
//
// The kernel refuses to reconfigure a card that is in use ("ERR Device is
// currently open", vector_remove() in arch/um/drivers/vector_kern.c), and a
// descriptor of a removed tap stays dead, so the guest itself has to do it.
func (d *Driver) Replug(ctx context.Context, in vps.Instance) error {
	path := MconsolePath(filepath.Dir(in.Socket), in.Name)
	// Left by a daemon that was killed between the two: not there is fine.
	_, _ = console.Do(ctx, path, "remove "+doorbell)
	if _, err := console.Do(ctx, path, "config "+doorbell+":transport=tap,ifname=none"); err != nil {
		return err
	}
	_, err := console.Do(ctx, path, "remove "+doorbell)
	return err
}
