package api

import (
	"context"
	"net/http"
	"net/url"

	"sublet/internal/vps"
)

// Disks are guests' disks and the snapshots of them.
type Disks interface {
	// GuestDisks lists the disks of a guest, the one that it boots from first.
	GuestDisks(ctx context.Context, guest string) ([]GuestDisk, error)
	// RemoveDisk takes a data disk away from a guest, with what lies on it.
	RemoveDisk(ctx context.Context, guest, disk string, dryRun bool) (Change, error)
	Snapshots(ctx context.Context, guest string) ([]vps.Snapshot, error)
	// TakeSnapshot and RestoreSnapshot begin the work and return at once.
	TakeSnapshot(ctx context.Context, guest, name string) (Operation, error)
	RestoreSnapshot(ctx context.Context, guest, name string, stop bool) (Operation, error)
	DeleteSnapshot(ctx context.Context, guest, name string) error
}

// GuestDisk is one disk of a guest: what was asked for and what there is.
type GuestDisk struct {
	Guest  string    `json:"guest"`
	Name   string    `json:"name" doc:"root is the one that the guest boots from."`
	Device string    `json:"device" doc:"What the guest has it as from its next start on."`
	Asked  vps.Bytes `json:"asked" doc:"The size that was asked for; 0 for a disk that is to go."`
	Size   vps.Bytes `json:"size" doc:"The size that it has; 0 for one that is yet to be made."`
	Used   vps.Bytes `json:"used" doc:"What it occupies on the host."`
	Path   string    `json:"path" doc:"Where it lies on the host."`
	// Pending says what is still to be done to it, for people.
	Pending string `json:"pending,omitempty" doc:"What happens to it at the guest's next start."`
	Storage string `json:"storage"`
}

// RootDisk is what the disk that a guest boots from is called among its disks.
const RootDisk = "root"

type (
	diskInput struct {
		Name   string `path:"name" doc:"Name of the guest." example:"alice"`
		Disk   string `path:"disk" doc:"Name of the disk." example:"data"`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
	}
	snapshotInput struct {
		Name     string `path:"name" doc:"Name of the guest." example:"alice"`
		Snapshot string `path:"snapshot" doc:"Name of the snapshot." example:"before-upgrade"`
	}
	restoreInput struct {
		Name     string `path:"name" doc:"Name of the guest." example:"alice"`
		Snapshot string `path:"snapshot" doc:"Name of the snapshot." example:"before-upgrade"`
		Stop     bool   `query:"stop" doc:"Stop a guest that runs, in an orderly way, and start it again after that."`
	}
)

func (s *Server) disks() (Disks, error) {
	if s.backend.Disks == nil {
		return nil, missing("disks")
	}
	return s.backend.Disks, nil
}

func (s *Server) registerDisks() {
	const tag = "disks"
	register(s, operation("list-disks", http.MethodGet, "/v1/guests/{name}/disks", tag, "List the disks of a guest"),
		func(ctx context.Context, in *guestInput) (*reply[list[GuestDisk]], error) {
			d, err := s.disks()
			if err != nil {
				return nil, err
			}
			return listOf(d.GuestDisks(ctx, in.Name))
		})
	remove := operation("remove-disk", http.MethodDelete, "/v1/guests/{name}/disks/{disk}", tag, "Take a data disk away from a guest")
	remove.Description = "With what lies on it. A running guest keeps it until it stops."
	register(s, remove, func(ctx context.Context, in *diskInput) (*reply[Change], error) {
		if err := vps.ValidName("disk", in.Disk); err != nil {
			return nil, err
		}
		d, err := s.disks()
		if err != nil {
			return nil, err
		}
		return changeOf(d.RemoveDisk(ctx, in.Name, in.Disk, in.DryRun))
	})
	register(s, operation("list-snapshots", http.MethodGet, "/v1/guests/{name}/snapshots", tag, "List the snapshots of a guest"),
		func(ctx context.Context, in *guestInput) (*reply[list[vps.Snapshot]], error) {
			d, err := s.disks()
			if err != nil {
				return nil, err
			}
			return listOf(d.Snapshots(ctx, in.Name))
		})
	s.registerSnapshots(tag)
}

func (s *Server) registerSnapshots(tag string) {
	take := operation("take-snapshot", http.MethodPut, "/v1/guests/{name}/snapshots/{snapshot}", tag, "Take a snapshot of a guest's disks")
	take.Description = "Begins the work and answers at once with the operation to follow. A running guest stands still for as long as it takes."
	take.DefaultStatus = http.StatusAccepted
	register(s, take, func(ctx context.Context, in *snapshotInput) (*buildOutput, error) {
		d, err := s.disks()
		if err == nil {
			err = vps.ValidName("snapshot", in.Snapshot)
		}
		if err != nil {
			return nil, err
		}
		return begun(d.TakeSnapshot(ctx, in.Name, in.Snapshot))
	})
	restore := operation("restore-snapshot", http.MethodPost, "/v1/guests/{name}/snapshots/{snapshot}/restore", tag, "Make a guest's disks what they were in a snapshot")
	restore.Description = "Begins the work and answers at once with the operation to follow. What was on the disks goes when all is in place."
	restore.DefaultStatus = http.StatusAccepted
	register(s, restore, func(ctx context.Context, in *restoreInput) (*buildOutput, error) {
		d, err := s.disks()
		if err == nil {
			err = vps.ValidName("snapshot", in.Snapshot)
		}
		if err != nil {
			return nil, err
		}
		return begun(d.RestoreSnapshot(ctx, in.Name, in.Snapshot, in.Stop))
	})
	register(s, operation("delete-snapshot", http.MethodDelete, "/v1/guests/{name}/snapshots/{snapshot}", tag, "Delete a snapshot"),
		func(ctx context.Context, in *snapshotInput) (*nothing, error) {
			d, err := s.disks()
			if err == nil {
				err = vps.ValidName("snapshot", in.Snapshot)
			}
			if err != nil {
				return nil, err
			}
			return nil, d.DeleteSnapshot(ctx, in.Name, in.Snapshot)
		})
}

// Disks lists the disks of a guest, the one that it boots from first.
func (c *Client) Disks(ctx context.Context, guest string) ([]GuestDisk, error) {
	path, err := guestPath(guest, "/disks")
	if err != nil {
		return nil, err
	}
	return getList[GuestDisk](ctx, c, path, nil)
}

// RemoveDisk takes a data disk away from a guest, with what lies on it. It
// returns when the wish is kept: a running guest has the disk until it stops.
func (c *Client) RemoveDisk(ctx context.Context, guest, disk string, dryRun bool) (Change, error) {
	path, err := diskPath(guest, "/disks/", disk)
	if err != nil {
		return Change{}, err
	}
	return send[Change](ctx, c, http.MethodDelete, path, dryRunQuery(dryRun), nil)
}

// Snapshots lists the snapshots of a guest, oldest first.
func (c *Client) Snapshots(ctx context.Context, guest string) ([]vps.Snapshot, error) {
	path, err := guestPath(guest, "/snapshots")
	if err != nil {
		return nil, err
	}
	return getList[vps.Snapshot](ctx, c, path, nil)
}

// TakeSnapshot begins a snapshot of all disks of a guest; Operation tells how
// far it is.
func (c *Client) TakeSnapshot(ctx context.Context, guest, name string) (Operation, error) {
	path, err := diskPath(guest, "/snapshots/", name)
	if err != nil {
		return Operation{}, err
	}
	return send[Operation](ctx, c, http.MethodPut, path, nil, nil)
}

// RestoreSnapshot begins to make a guest's disks what they were in a snapshot.
// With stop a running guest is stopped for that and started again; without, it
// is vps.CodeConflict.
func (c *Client) RestoreSnapshot(ctx context.Context, guest, name string, stop bool) (Operation, error) {
	path, err := diskPath(guest, "/snapshots/", name)
	if err != nil {
		return Operation{}, err
	}
	query := url.Values{}
	if stop {
		query.Set("stop", "true")
	}
	return send[Operation](ctx, c, http.MethodPost, path+"/restore", query, nil)
}

// DeleteSnapshot removes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, guest, name string) error {
	path, err := diskPath(guest, "/snapshots/", name)
	if err != nil {
		return err
	}
	_, err = send[struct{}](ctx, c, http.MethodDelete, path, nil, nil)
	return err
}

// diskPath is a path with the names of a guest and of a thing of its.
func diskPath(guest, noun, name string) (string, error) {
	if err := vps.ValidName("name", name); err != nil {
		return "", err
	}
	return guestPath(guest, noun+name)
}
