package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// maxWait bounds how long one request may wait.
const maxWait = 24 * time.Hour

// patternWait is the route whose requests count as streams; see streams.go
// for the others.
const patternWait = "GET /v1/guests/{name}/wait"

// reply is an answer with a body.
type reply[T any] struct{ Body T }

// Inputs. huma fills and checks them; names in the path are checked before,
// see routes.HandleFunc. (Embedding would be shorter, but huma does not look
// into embedded structs that are not exported.)
type (
	nothing struct{}

	guestInput struct {
		Name string `path:"name" doc:"Name of the guest." example:"alice"`
	}
	createInput struct {
		DryRun bool `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   CreateGuest
	}
	updateInput struct {
		Name   string `path:"name" doc:"Name of the guest." example:"alice"`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   UpdateGuest
	}
	orderInput struct {
		Name    string `path:"name" doc:"Name of the guest." example:"alice"`
		DryRun  bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Timeout string `query:"timeout" doc:"How long an orderly stop may take before the guest is killed, for example 30s. Left out: the guest's own stop timeout."`
	}
	waitInput struct {
		Name    string `path:"name" doc:"Name of the guest." example:"alice"`
		For     string `query:"for" required:"true" enum:"ssh,running,stopped,deleted" doc:"The state to wait for; ssh means that its SSH server answers."`
		Timeout string `query:"timeout" doc:"How long to wait, for example 60s, at most 24h. Left out: as long as the caller stays."`
	}
	tenantInput struct {
		Name string `path:"name" doc:"Name of the tenant." example:"owner"`
	}
	putTenantInput struct {
		Name string `path:"name" doc:"Name of the tenant." example:"owner"`
		Body UpdateTenant
	}
	imageInput struct {
		Distribution string `path:"distribution" example:"debian"`
		Release      string `path:"release" example:"12"`
	}
	buildInput struct {
		Body buildBody
	}
	buildOutput struct {
		Location string `header:"Location" doc:"Where the state of the operation is."`
		Body     Operation
	}
	operationInput struct {
		ID string `path:"id" doc:"ID of the operation."`
	}
	eventsInput struct {
		Guest string `query:"guest" doc:"Only this guest's events."`
		After int64  `query:"after" minimum:"0" doc:"Only events with a higher ID."`
		Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"At most so many."`
	}
)

func (i *imageInput) name() string { return i.Distribution + "/" + i.Release }

// routes is the mux with a check in front of every handler, huma's and our
// own: what a caller writes into a path is a valid name before it is used.
type routes struct {
	*http.ServeMux
	refuse func(http.ResponseWriter, *http.Request, error)
}

// HandleFunc registers a handler behind the check of its path's names.
func (m routes) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	m.ServeMux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := checkPath(pattern, r); err != nil {
			m.refuse(w, r, err)
			return
		}
		handler(w, r)
	})
}

func checkPath(pattern string, r *http.Request) error {
	switch {
	case strings.Contains(pattern, "{name}"):
		return vps.ValidName("name", r.PathValue("name"))
	case strings.Contains(pattern, "{distribution}"):
		return vps.ValidImageName("image", r.PathValue("distribution")+"/"+r.PathValue("release"))
	case strings.Contains(pattern, "{driver}"):
		return vps.ValidKernelName("kernel", r.PathValue("driver")+"/"+r.PathValue("release"))
	case strings.Contains(pattern, "{id}"):
		return validID(r.PathValue("id"))
	}
	return nil
}

// duration reads a duration in a query; "" is zero, which is "left out".
func duration(field, text string, limit time.Duration) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := vps.ParseDuration(text)
	if err != nil {
		return 0, vps.Invalid(field, "%s", vps.ErrorMessage(err))
	}
	if d <= 0 || d > limit {
		return 0, vps.Invalid(field, "%s is out of range; use more than 0s and at most %s", text, limit)
	}
	return d, nil
}

// register adds one route. What the handler returns as an error is translated
// here and nowhere else.
func register[I, O any](s *Server, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	// Bodies are read, and bounded, before huma sees them: see readBody.
	op.MaxBodyBytes, op.BodyReadTimeout = -1, -1
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, s.fail(ctx, err)
		}
		return out, nil
	})
}

// addList adds a route without input that answers with a list.
func addList[T any](s *Server, op huma.Operation, read func(context.Context) ([]T, error)) {
	register(s, op, func(ctx context.Context, _ *nothing) (*reply[list[T]], error) {
		return listOf(read(ctx))
	})
}

func listOf[T any](items []T, err error) (*reply[list[T]], error) {
	if err != nil {
		return nil, err
	}
	return &reply[list[T]]{list[T]{Schema: SchemaVersion, Items: notNil(items)}}, nil
}

func bodyOf[T any](body T, err error) (*reply[T], error) {
	if err != nil {
		return nil, err
	}
	return &reply[T]{body}, nil
}

func changeOf(c Change, err error) (*reply[Change], error) { return bodyOf(shownChange(c), err) }

func operation(id, method, path, tag, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{tag}, Summary: summary}
}

// begun answers with where long work is found again.
func begun(op Operation, err error) (*buildOutput, error) {
	if err != nil {
		return nil, err
	}
	return &buildOutput{Location: "/v1/operations/" + op.ID, Body: op}, nil
}

func (s *Server) registerRoutes() {
	s.registerGuests()
	s.registerNetwork()
	s.registerOrders()
	s.registerRescue()
	s.registerTenants()
	s.registerHost()
	s.registerBilling()
	s.registerBills()
	s.registerImages()
	s.registerImageFiles()
	s.registerUsages()
	s.registerTraffic()
	s.registerDisks()
	s.registerKernels()
	s.registerQuotas()
	s.registerPageLinks()
	s.registerNotices()
	s.registerDomainChecks()
	s.registerDomains()
}

func (s *Server) registerGuests() {
	const tag = "guests"
	addList(s, operation("list-guests", http.MethodGet, "/v1/guests", tag, "List all guests"),
		func(ctx context.Context) ([]Guest, error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			return o.Guests(ctx)
		})
	register(s, operation("show-guest", http.MethodGet, "/v1/guests/{name}", tag, "Show a guest"),
		func(ctx context.Context, in *guestInput) (*reply[Guest], error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			return bodyOf(o.Guest(ctx, in.Name))
		})
	create := operation("create-guest", http.MethodPost, "/v1/guests", tag, "Create a guest")
	create.Description = "Keeps the wish and answers at once; the guest is made after that. Wait for it with wait."
	register(s, create, func(ctx context.Context, in *createInput) (*reply[Change], error) {
		if err := vps.ValidName("name", in.Body.Name); err != nil {
			return nil, err
		}
		d, err := s.desired()
		if err != nil {
			return nil, err
		}
		return changeOf(d.CreateGuest(ctx, in.Body, in.DryRun))
	})
	update := operation("update-guest", http.MethodPatch, "/v1/guests/{name}", tag, "Change a guest")
	update.Description = "Members left out stay as they are; an empty list empties it. Memory, disk, identity and the IPv6 prefix take effect at the next boot, the rest at once."
	register(s, update, func(ctx context.Context, in *updateInput) (*reply[Change], error) {
		d, err := s.desired()
		if err != nil {
			return nil, err
		}
		return changeOf(d.UpdateGuest(ctx, in.Name, in.Body, in.DryRun))
	})
}

func (s *Server) registerOrders() {
	const tag = "guests"
	orders := []struct {
		order         Order
		method, path  string
		summary, text string
	}{
		{OrderStart, http.MethodPost, "/v1/guests/{name}/start", "Start a guest", "A guest that runs is left alone."},
		{OrderStop, http.MethodPost, "/v1/guests/{name}/stop", "Stop a guest", "Orderly, and by force when the timeout is over."},
		{OrderRestart, http.MethodPost, "/v1/guests/{name}/restart", "Restart a guest", "Orderly stop, then start."},
		{OrderKill, http.MethodPost, "/v1/guests/{name}/kill", "Switch a guest off", "Like pulling the plug: what it has not written to disk is lost."},
		{OrderDelete, http.MethodDelete, "/v1/guests/{name}", "Delete a guest", "With its disk."},
	}
	for _, o := range orders {
		op := operation(string(o.order)+"-guest", o.method, o.path, tag, o.summary)
		op.Description = o.text + " The answer comes when the order is kept, not when it is carried out."
		register(s, op, func(ctx context.Context, in *orderInput) (*reply[Change], error) {
			timeout, err := duration("timeout", in.Timeout, maxWait)
			if err != nil {
				return nil, err
			}
			d, err := s.desired()
			if err != nil {
				return nil, err
			}
			return changeOf(d.Order(ctx, in.Name, o.order, timeout, in.DryRun))
		})
	}
	wait := operation("wait-guest", http.MethodGet, "/v1/guests/{name}/wait", tag, "Wait for a guest")
	wait.Description = "Answers when the guest is in that state, with 504 after the timeout, and at once when it cannot get there any more."
	register(s, wait, s.wait)
}

func (s *Server) wait(ctx context.Context, in *waitInput) (*reply[Guest], error) {
	timeout, err := duration("timeout", in.Timeout, maxWait)
	if err != nil {
		return nil, err
	}
	o, err := s.observed()
	if err != nil {
		return nil, err
	}
	ctx, cancel := stream(ctx)
	defer cancel()
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	g, err := o.Wait(ctx, in.Name, WaitFor(in.For))
	return bodyOf(g, streamError(ctx, err))
}

func (s *Server) registerTenants() {
	const tag = "tenants"
	addList(s, operation("list-tenants", http.MethodGet, "/v1/tenants", tag, "List all tenants"),
		func(ctx context.Context) ([]vps.Tenant, error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			return o.Tenants(ctx)
		})
	put := operation("put-tenant", http.MethodPut, "/v1/tenants/{name}", tag, "Create or change a tenant")
	put.Description = "Members left out stay as they are."
	register(s, put,
		func(ctx context.Context, in *putTenantInput) (*nothing, error) {
			d, err := s.desired()
			if err != nil {
				return nil, err
			}
			return nil, d.PutTenant(ctx, in.Name, in.Body)
		})
	register(s, operation("delete-tenant", http.MethodDelete, "/v1/tenants/{name}", tag, "Delete a tenant that owns no guest"),
		func(ctx context.Context, in *tenantInput) (*nothing, error) {
			d, err := s.desired()
			if err != nil {
				return nil, err
			}
			return nil, d.DeleteTenant(ctx, in.Name)
		})
}

func (s *Server) registerHost() {
	const tag = "host"
	register(s, operation("show-host", http.MethodGet, "/v1/host", tag, "Show the host"),
		func(ctx context.Context, _ *nothing) (*reply[HostInfo], error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			h, err := o.Host(ctx)
			h.Settings.Services, h.Settings.DiskThresholds = notNil(h.Settings.Services), notNil(h.Settings.DiskThresholds)
			return bodyOf(h, err)
		})
	events := operation("list-events", http.MethodGet, "/v1/events", tag, "List what happened")
	register(s, events, func(ctx context.Context, in *eventsInput) (*reply[list[vps.Event]], error) {
		if in.Guest != "" {
			if err := vps.ValidName("guest", in.Guest); err != nil {
				return nil, err
			}
		}
		o, err := s.observed()
		if err != nil {
			return nil, err
		}
		return listOf(o.Events(ctx, in.Guest, in.After, in.Limit))
	})
	addList(s, operation("doctor", http.MethodGet, "/v1/doctor", tag, "Check the host"),
		func(ctx context.Context) ([]Finding, error) {
			o, err := s.observed()
			if err != nil {
				return nil, err
			}
			return o.Doctor(ctx)
		})
	register(s, operation("version", http.MethodGet, "/v1/version", tag, "Tell which daemon answers"),
		func(context.Context, *nothing) (*reply[VersionInfo], error) {
			return &reply[VersionInfo]{VersionInfo{Schema: SchemaVersion, Version: s.version, API: apiVersion}}, nil
		})
}

func (s *Server) registerImages() {
	const tag = "images"
	addList(s, operation("list-images", http.MethodGet, "/v1/images", tag, "List all images"), s.listImages)
	register(s, operation("show-image", http.MethodGet, "/v1/images/{distribution}/{release}", tag, "Show an image"),
		func(ctx context.Context, in *imageInput) (*reply[vps.Image], error) {
			i, err := s.images()
			if err != nil {
				return nil, err
			}
			image, err := i.Image(ctx, in.name())
			return bodyOf(shownImage(image), err)
		})
	build := operation("build-image", http.MethodPost, "/v1/images", tag, "Build an image")
	build.Description = "Starts the build and answers at once with the operation to follow."
	build.DefaultStatus = http.StatusAccepted
	register(s, build, func(ctx context.Context, in *buildInput) (*buildOutput, error) {
		if err := vps.ValidImageName("name", in.Body.Name); err != nil {
			return nil, err
		}
		i, err := s.images()
		if err != nil {
			return nil, err
		}
		return begun(i.BuildImage(ctx, in.Body.Name, in.Body.Mirror))
	})
	register(s, operation("delete-image", http.MethodDelete, "/v1/images/{distribution}/{release}", tag, "Delete an image that no guest is made from"),
		func(ctx context.Context, in *imageInput) (*nothing, error) {
			i, err := s.images()
			if err != nil {
				return nil, err
			}
			return nil, i.DeleteImage(ctx, in.name())
		})
	register(s, operation("show-operation", http.MethodGet, "/v1/operations/{id}", tag, "Show how far long work is"),
		func(ctx context.Context, in *operationInput) (*reply[Operation], error) {
			i, err := s.images()
			if err != nil {
				return nil, err
			}
			return bodyOf(i.Operation(ctx, in.ID))
		})
}

func (s *Server) listImages(ctx context.Context) ([]vps.Image, error) {
	i, err := s.images()
	if err != nil {
		return nil, err
	}
	images, err := i.Images(ctx)
	shown := make([]vps.Image, 0, len(images))
	for _, image := range images {
		shown = append(shown, shownImage(image))
	}
	return shown, err
}

// The parts of the backend, or an error for one that is not there.

func (s *Server) desired() (Desired, error) {
	if s.backend.Desired == nil {
		return nil, missing("changes")
	}
	return s.backend.Desired, nil
}

func (s *Server) observed() (Observed, error) {
	if s.backend.Observed == nil {
		return nil, missing("observation")
	}
	return s.backend.Observed, nil
}

func (s *Server) consoles() (Consoles, error) {
	if s.backend.Consoles == nil {
		return nil, missing("consoles")
	}
	return s.backend.Consoles, nil
}

func (s *Server) images() (Images, error) {
	if s.backend.Images == nil {
		return nil, missing("images")
	}
	return s.backend.Images, nil
}

func missing(what string) error {
	return vps.Errorf(vps.CodeUnavailable, "this daemon runs without %s", what)
}
