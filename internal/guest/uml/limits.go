//go:build linux

package uml

import (
	"context"
	"path/filepath"

	"sublet/internal/keeper"
	"sublet/internal/vps"
)

// Limits tells what bounds the processes of a running guest; nil when that is
// not known.
func (d *Driver) Limits(_ context.Context, in vps.Instance) (*vps.Resources, error) {
	return keeper.Limits(filepath.Dir(in.Socket))
}

// SetLimits bounds the processes of a running guest anew, at once.
func (d *Driver) SetLimits(_ context.Context, in vps.Instance, r vps.Resources) error {
	return keeper.SetLimits(filepath.Dir(in.Socket), r)
}
