package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"sublet/internal/vps"
)

// Usages tell how full guests' disks are. The first two take a guest's name,
// or "" for all guests; one that does not exist is vps.CodeNotFound.
type Usages interface {
	// DiskUsage reads the disks as they are now.
	DiskUsage(ctx context.Context, guest string) ([]vps.DiskUsage, error)
	DiskForecast(ctx context.Context, guest string) ([]vps.DiskForecast, error)
	// DiskHistory returns what was kept since a time, each filesystem's oldest
	// sample first.
	DiskHistory(ctx context.Context, guest string, since time.Time) ([]vps.DiskSample, error)
}

type (
	someGuestInput struct {
		Guest string `query:"guest" doc:"Only this guest's disks; left out: all guests'."`
	}
	historyInput struct {
		Name  string    `path:"name" doc:"Name of the guest." example:"alice"`
		Since time.Time `query:"since" doc:"Only samples since then; left out: all."`
	}
)

func (s *Server) registerUsages() {
	const tag = "disks"
	usage := operation("show-disk-usage", http.MethodGet, "/v1/disk-usage", tag, "Tell how full guests' disks are")
	usage.Description = "Read from the disks' own bytes at this moment, without asking the guests. A disk that cannot be read is in the list, with the reason."
	register(s, usage, func(ctx context.Context, in *someGuestInput) (*reply[list[vps.DiskUsage]], error) {
		u, err := s.usages(in.Guest)
		if err != nil {
			return nil, err
		}
		disks, err := u.DiskUsage(ctx, in.Guest)
		for i := range disks {
			disks[i].Parts = notNil(disks[i].Parts)
			for j := range disks[i].Parts {
				showFilesystem(disks[i].Parts[j].Filesystem)
			}
		}
		return listOf(disks, err)
	})
	register(s, operation("forecast-disk-usage", http.MethodGet, "/v1/disk-forecast", tag, "Tell when guests' disks fill up"),
		func(ctx context.Context, in *someGuestInput) (*reply[list[vps.DiskForecast]], error) {
			u, err := s.usages(in.Guest)
			if err != nil {
				return nil, err
			}
			return listOf(u.DiskForecast(ctx, in.Guest))
		})
	history := operation("show-disk-history", http.MethodGet, "/v1/guests/{name}/disk-history", tag, "Show how full a guest's disks were")
	history.Description = "The last sample of each hour for 15 days, and of each day for two years."
	register(s, history, func(ctx context.Context, in *historyInput) (*reply[list[vps.DiskSample]], error) {
		u, err := s.usages(in.Name)
		if err != nil {
			return nil, err
		}
		return listOf(u.DiskHistory(ctx, in.Name, in.Since))
	})
}

// showFilesystem leaves no list null.
func showFilesystem(f *vps.Filesystem) {
	if f == nil {
		return
	}
	f.Features = notNil(f.Features)
	if f.Btrfs != nil {
		f.Btrfs.Spaces, f.Btrfs.Devices = notNil(f.Btrfs.Spaces), notNil(f.Btrfs.Devices)
	}
}

// usages is the backend's part, once the guest's name is found to be one.
func (s *Server) usages(guest string) (Usages, error) {
	if guest != "" {
		if err := vps.ValidName("guest", guest); err != nil {
			return nil, err
		}
	}
	if s.backend.Usages == nil {
		return nil, missing("disk usage")
	}
	return s.backend.Usages, nil
}

func guestQuery(guest string) url.Values {
	if guest == "" {
		return nil
	}
	return url.Values{"guest": {guest}}
}

// DiskUsage tells how full a guest's disks are, or those of all guests for "".
func (c *Client) DiskUsage(ctx context.Context, guest string) ([]vps.DiskUsage, error) {
	return getList[vps.DiskUsage](ctx, c, "/v1/disk-usage", guestQuery(guest))
}

// DiskForecast tells when a guest's disks fill up, or those of all guests for
// "".
func (c *Client) DiskForecast(ctx context.Context, guest string) ([]vps.DiskForecast, error) {
	return getList[vps.DiskForecast](ctx, c, "/v1/disk-forecast", guestQuery(guest))
}

// DiskHistory returns how full a guest's disks were since a time; the zero
// time is all that is kept.
func (c *Client) DiskHistory(ctx context.Context, guest string, since time.Time) ([]vps.DiskSample, error) {
	path, err := guestPath(guest, "/disk-history")
	if err != nil {
		return nil, err
	}
	var query url.Values
	if !since.IsZero() {
		query = url.Values{"since": {since.UTC().Format(time.RFC3339)}}
	}
	return getList[vps.DiskSample](ctx, c, path, query)
}
