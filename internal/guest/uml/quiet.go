//go:build linux

package uml

import (
	"context"

	"sublet/internal/keeper"
	"sublet/internal/vps"
)

// Pause makes a running guest stand still; see keeper.Pause.
func (d *Driver) Pause(ctx context.Context, in vps.Instance) (resume func() error, err error) {
	return keeper.Pause(ctx, in)
}

// Sync asks a running guest's kernel to write out what it has not yet written
// to its disks ("Emergency Sync" of the kernel's sysrq). It returns when that
// was asked for, which is done within moments; a guest that does not listen is
// an error.
func (d *Driver) Sync(ctx context.Context, in vps.Instance) error {
	c, err := d.console(ctx, in)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.Do(ctx, "sysrq s")
	return err
}
