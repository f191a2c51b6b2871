//go:build linux

package uml

import (
	"context"
	"errors"
	"path/filepath"

	"sublet/internal/keeper"
	"sublet/internal/keeper/mconsole"
	"sublet/internal/vps"
)

// doorbell is the card whose appearing tells the guest's early-boot program to
// open its own card anew (guestinit.Doorbell).
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
	c, err := d.console(ctx, in)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := ring(ctx, c, doorbell); err != nil {
		return err
	}
	_, err = c.Do(ctx, "remove "+doorbell)
	return err
}

// ring makes a card appear in the guest. Its transport names a link that does
// not exist: nothing is opened, because nobody brings the card up.
func ring(ctx context.Context, c *mconsole.Console, bell string) error {
	// Left by a daemon that was killed: not there is fine.
	_, _ = c.Do(ctx, "remove "+bell)
	_, err := c.Do(ctx, "config "+bell+":transport=tap,ifname=none")
	return err
}

// console opens a running guest's management console.
func (d *Driver) console(ctx context.Context, in vps.Instance) (*mconsole.Console, error) {
	c, err := mconsole.Open(keeper.GuestRoot(in.PID), MconsolePath(filepath.Dir(in.Socket), in.Name))
	if err != nil {
		return nil, err
	}
	// If the guest runs now, the number was its own when that was opened.
	if err := keeper.Attach(ctx, in); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
