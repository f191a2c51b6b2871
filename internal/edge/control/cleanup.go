//go:build linux

package control

import (
	"context"
	"errors"
	"os"

	"sublet/internal/vps"
)

// CleanUp ends all of an edge's processes whose folder this is, with the
// connections that they have, and removes the folder. No Manager may run there.
// Absent is success.
func CleanUp(ctx context.Context, dir string) error {
	m := New(Options{Dir: dir, Wake: func(string) {}})
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := m.find(ctx); err != nil {
		return err
	}
	for _, e := range m.edges {
		if _, _, err := e.ask(ctx, &message{Op: opDrain}, none); err == nil {
			select {
			case <-e.ended:
				continue
			case <-ctx.Done():
			}
		}
		if err := e.kill(); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the edge (process %d) cannot be ended", e.pid)
		}
	}
	return os.RemoveAll(dir)
}
