package api

import (
	"context"
	"net/http"

	"sublet/internal/vps"
)

// RescueGuest says how a guest is to be rescued.
type RescueGuest struct {
	Keys []string     `json:"keys" minItems:"1" doc:"Lines of authorized_keys for root of the rescue system."`
	For  vps.Duration `json:"for,omitempty" doc:"How long, 10s to 168h; left out: 2h. After that the guest goes back to what it was."`
}

// Rescuer brings broken guests back.
type Rescuer interface {
	// Rescue boots the rescue system in a guest's place, with its disks beside.
	// vps.CodeNotFound: there is no such guest, or no image of the rescue
	// system; vps.CodeConflict: it is in rescue already.
	Rescue(ctx context.Context, name string, r RescueGuest, dryRun bool) (Change, error)
	// EndRescue takes the guest back to what it was before.
	EndRescue(ctx context.Context, name string, dryRun bool) (Change, error)
	// Reinstall makes the disk that a guest boots from anew, from an image's
	// newest version; empty is the guest's own image.
	Reinstall(ctx context.Context, name, image string) (Operation, error)
}

type (
	rescueInput struct {
		Name   string `path:"name" doc:"Name of the guest." example:"alice"`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   RescueGuest
	}
	endRescueInput struct {
		Name   string `path:"name" doc:"Name of the guest." example:"alice"`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
	}
	reinstallBody struct {
		Image string `json:"image,omitempty" doc:"Image to make it from; left out: the guest's own." example:"debian/12"`
	}
	reinstallInput struct {
		Name string `path:"name" doc:"Name of the guest." example:"alice"`
		Body reinstallBody
	}
)

func (s *Server) registerRescue() {
	const tag = "guests"
	rescue := operation("rescue-guest", http.MethodPost, "/v1/guests/{name}/rescue", tag, "Boot a guest's rescue system")
	rescue.Description = "Stops the guest in an orderly way and boots the rescue system in its place, with the guest's disks as further disks, and its address and ports. " +
		"The answer comes when the order is kept, not when it is carried out."
	register(s, rescue, func(ctx context.Context, in *rescueInput) (*reply[Change], error) {
		r, err := s.rescuer()
		if err != nil {
			return nil, err
		}
		return changeOf(r.Rescue(ctx, in.Name, in.Body, in.DryRun))
	})
	end := operation("end-rescue", http.MethodDelete, "/v1/guests/{name}/rescue", tag, "End a guest's rescue")
	end.Description = "The guest goes back to what it was before, running or stopped. What was written to the rescue system's own disk is gone."
	register(s, end, func(ctx context.Context, in *endRescueInput) (*reply[Change], error) {
		r, err := s.rescuer()
		if err != nil {
			return nil, err
		}
		return changeOf(r.EndRescue(ctx, in.Name, in.DryRun))
	})
	again := operation("reinstall-guest", http.MethodPost, "/v1/guests/{name}/reinstall", tag, "Reinstall a guest")
	again.Description = "Makes the disk that the guest boots from anew, and deletes the old one. Everything else stays. A guest that runs is stopped, and started again. " +
		"Starts the work and answers at once with the operation to follow."
	again.DefaultStatus = http.StatusAccepted
	register(s, again, func(ctx context.Context, in *reinstallInput) (*buildOutput, error) {
		if in.Body.Image != "" {
			if err := vps.ValidImageName("image", in.Body.Image); err != nil {
				return nil, err
			}
		}
		r, err := s.rescuer()
		if err != nil {
			return nil, err
		}
		return begun(r.Reinstall(ctx, in.Name, in.Body.Image))
	})
}

func (s *Server) rescuer() (Rescuer, error) {
	if s.backend.Rescuer == nil {
		return nil, missing("rescue")
	}
	return s.backend.Rescuer, nil
}

// Rescue boots the rescue system in a guest's place. It returns when the order
// is kept; Wait waits for the rest.
func (c *Client) Rescue(ctx context.Context, name string, r RescueGuest, dryRun bool) (Change, error) {
	path, err := guestPath(name, "/rescue")
	if err != nil {
		return Change{}, err
	}
	return send[Change](ctx, c, http.MethodPost, path, dryRunQuery(dryRun), r)
}

// EndRescue takes a guest back to what it was before its rescue.
func (c *Client) EndRescue(ctx context.Context, name string, dryRun bool) (Change, error) {
	path, err := guestPath(name, "/rescue")
	if err != nil {
		return Change{}, err
	}
	return send[Change](ctx, c, http.MethodDelete, path, dryRunQuery(dryRun), nil)
}

// Reinstall makes a guest's disk anew from an image; "" is its own. It returns
// at once with the operation to follow.
func (c *Client) Reinstall(ctx context.Context, name, image string) (Operation, error) {
	path, err := guestPath(name, "/reinstall")
	if err != nil {
		return Operation{}, err
	}
	return send[Operation](ctx, c, http.MethodPost, path, nil, reinstallBody{Image: image})
}
