//go:build linux

package uml

import (
	"context"
	"strings"
	"time"

	"sublet/internal/keeper/mconsole"
	"sublet/internal/vps"
)

// The card that asks a guest to freeze its filesystems, and where it answers
// (guestinit.FreezeBell, FreezeAnswer). As with the doorbell, nothing is ever
// opened by it.
const (
	freezeBell   = "vec14"
	freezeAnswer = "sys/net/ipv4/conf/" + freezeBell + "/tag"

	freezeBegun  = "3"
	freezeDone   = "1"
	freezeFailed = "2"

	// heardWithin is how long a guest has to say that it heard, and frozenWithin
	// how long it then has to write out what it holds.
	heardWithin  = 3 * time.Second
	frozenWithin = 20 * time.Second
	askEvery     = 20 * time.Millisecond
)

// Freeze asks a running guest to freeze its filesystems, and returns when they
// are. thaw lets them go on; the guest does so by itself after some seconds in
// which it runs, or when thaw cannot reach it. vps.CodeUnavailable is for a
// guest that cannot be asked: it boots, or nothing of ours stayed in it.
func (d *Driver) Freeze(ctx context.Context, in vps.Instance) (thaw func(), err error) {
	c, err := d.console(ctx, in)
	if err != nil {
		return nil, err
	}
	thaw = func() {
		_, _ = c.Do(context.WithoutCancel(ctx), "remove "+freezeBell)
		_ = c.Close()
	}
	if err = ring(ctx, c, freezeBell); err == nil {
		err = awaitFreeze(ctx, c)
	}
	if err != nil {
		thaw()
		return nil, err
	}
	return thaw, nil
}

func awaitFreeze(ctx context.Context, c *mconsole.Console) error {
	deadline := time.Now().Add(heardWithin)
	for begun := false; ; {
		text, err := c.Do(ctx, "proc "+freezeAnswer)
		if err != nil {
			return vps.Wrap(vps.CodeUnavailable, err, "the guest's answer cannot be read")
		}
		switch answer := strings.TrimSpace(text); {
		case answer == freezeDone:
			return nil
		case answer == freezeFailed:
			return vps.Errorf(vps.CodeConflict, "the guest could not freeze its filesystems; its kernel's log says why")
		case answer == freezeBegun && !begun:
			begun, deadline = true, time.Now().Add(frozenWithin)
		case time.Now().After(deadline):
			return vps.Errorf(vps.CodeUnavailable, "the guest does not freeze its filesystems")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askEvery):
		}
	}
}
