package api

import (
	"context"
	"net/http"
	"time"

	"sublet/internal/vps"
)

// KernelInfo is a kernel that guests can boot, and what it can do.
type KernelInfo struct {
	vps.Kernel
	Features []string `json:"features"`
	Origin   string   `json:"origin" doc:"Where it comes from, for people."`
	Default  bool     `json:"default" doc:"Whether guests boot it that name no kernel."`
	Guests   []string `json:"guests" doc:"Guests that boot it next time."`
	Running  []string `json:"running" doc:"Guests that run on it now."`
	// Created, Log and Misses are of kernels that were built on the host.
	Created *time.Time `json:"created,omitempty" doc:"When it was built; left out when it was not built here."`
	Log     string     `json:"log,omitempty" doc:"Path of the build's log on the host."`
	Misses  []string   `json:"misses" doc:"Options of its configuration that did not come out as they were asked for."`
	Warning string     `json:"warning,omitempty" doc:"What the kernel itself says of the isolation fast; left out when it does not know it."`
}

// BuildKernel says what a kernel is built from. Source is a path on the host;
// without one, apt fetches Package, or without that the newest there is.
type BuildKernel struct {
	Source  string `json:"source,omitempty" doc:"Absolute path, on the host, of an archive or an unpacked folder with the source of a kernel."`
	Package string `json:"package,omitempty" doc:"Debian's package with a source, such as linux-source-6.12; without it and without a source: the newest."`
	Suite   string `json:"suite,omitempty" doc:"Suite of Debian's to take the package from, such as trixie-backports; left out: the host's own."`
	Config  string `json:"config,omitempty" doc:"More options of the kernel's configuration, in the form of a .config."`
	SMP     bool   `json:"smp,omitempty" doc:"Whether guests can have several processors."`
}

// KernelTest is what a throw-away guest found out about a kernel.
type KernelTest struct {
	Isolation vps.Isolation `json:"isolation" doc:"How the guest ran."`
	Took      vps.Duration  `json:"took" doc:"From the start of the guest to its first answer."`
	Checks    []KernelCheck `json:"checks"`
}

// KernelCheck is one thing that a guest tried.
type KernelCheck struct {
	Name string `json:"name" doc:"What was tried."`
	OK   bool   `json:"ok"`
	Seen string `json:"seen,omitempty" doc:"What happened, for people."`
}

// Kernels keeps kernels.
type Kernels interface {
	Kernels(ctx context.Context) ([]KernelInfo, error)
	Kernel(ctx context.Context, name string) (KernelInfo, error)
	// BuildKernel starts a build and returns at once.
	BuildKernel(ctx context.Context, b BuildKernel) (Operation, error)
	// TestKernel boots a throw-away guest with it, once for each isolation.
	TestKernel(ctx context.Context, name string) ([]KernelTest, error)
	// UseKernel makes it the host's default; "" means the installed one.
	UseKernel(ctx context.Context, name string, dryRun bool) (Change, error)
	DeleteKernel(ctx context.Context, name string) error
}

type (
	kernelInput struct {
		Driver  string `path:"driver" example:"uml"`
		Release string `path:"release" example:"6.12.74-1a2b3c4d5e6f"`
	}
	buildKernelInput struct {
		Body BuildKernel
	}
	useKernelInput struct {
		DryRun bool `query:"dry_run" doc:"Change nothing, only tell."`
		Body   struct {
			Name string `json:"name" doc:"The kernel's name; empty: the one that is installed on the host."`
		}
	}
)

func (i *kernelInput) name() string { return i.Driver + "/" + i.Release }

func (s *Server) registerKernels() {
	const tag = "kernels"
	addList(s, operation("list-kernels", http.MethodGet, "/v1/kernels", tag, "List the kernels that guests can boot"), s.listKernels)
	register(s, operation("show-kernel", http.MethodGet, "/v1/kernels/{driver}/{release}", tag, "Show a kernel"),
		func(ctx context.Context, in *kernelInput) (*reply[KernelInfo], error) {
			k, err := s.kernels()
			if err != nil {
				return nil, err
			}
			info, err := k.Kernel(ctx, in.name())
			return bodyOf(shownKernel(info), err)
		})
	build := operation("build-kernel", http.MethodPost, "/v1/kernels", tag, "Build a kernel")
	build.Description = "Starts the build and answers at once with the operation to follow."
	build.DefaultStatus = http.StatusAccepted
	register(s, build, func(ctx context.Context, in *buildKernelInput) (*buildOutput, error) {
		k, err := s.kernels()
		if err != nil {
			return nil, err
		}
		return begun(k.BuildKernel(ctx, in.Body))
	})
	test := operation("test-kernel", http.MethodPost, "/v1/kernels/{driver}/{release}/test", tag, "Boot a throw-away guest with a kernel")
	test.Description = "Answers when the guest is gone again, in seconds."
	register(s, test, func(ctx context.Context, in *kernelInput) (*reply[list[KernelTest]], error) {
		k, err := s.kernels()
		if err != nil {
			return nil, err
		}
		return listOf(k.TestKernel(ctx, in.name()))
	})
	register(s, operation("use-kernel", http.MethodPut, "/v1/kernels/default", tag, "Choose the kernel of guests that name none"),
		func(ctx context.Context, in *useKernelInput) (*reply[Change], error) {
			k, err := s.kernels()
			if err != nil {
				return nil, err
			}
			return bodyOf(k.UseKernel(ctx, in.Body.Name, in.DryRun))
		})
	register(s, operation("delete-kernel", http.MethodDelete, "/v1/kernels/{driver}/{release}", tag, "Delete a kernel that no guest has"),
		func(ctx context.Context, in *kernelInput) (*nothing, error) {
			k, err := s.kernels()
			if err != nil {
				return nil, err
			}
			return nil, k.DeleteKernel(ctx, in.name())
		})
}

func (s *Server) listKernels(ctx context.Context) ([]KernelInfo, error) {
	k, err := s.kernels()
	if err != nil {
		return nil, err
	}
	kernels, err := k.Kernels(ctx)
	shown := make([]KernelInfo, 0, len(kernels))
	for _, kernel := range kernels {
		shown = append(shown, shownKernel(kernel))
	}
	return shown, err
}

// shownKernel has lists where there are none.
func shownKernel(k KernelInfo) KernelInfo {
	k.Features, k.Guests, k.Running, k.Misses = notNil(k.Features), notNil(k.Guests), notNil(k.Running), notNil(k.Misses)
	return k
}

func (s *Server) kernels() (Kernels, error) {
	if s.backend.Kernels == nil {
		return nil, missing("kernels")
	}
	return s.backend.Kernels, nil
}

// Kernels returns the kernels that guests can boot.
func (c *Client) Kernels(ctx context.Context) ([]KernelInfo, error) {
	return getList[KernelInfo](ctx, c, "/v1/kernels", nil)
}

// Kernel returns one kernel, or vps.CodeNotFound.
func (c *Client) Kernel(ctx context.Context, name string) (KernelInfo, error) {
	if err := vps.ValidKernelName("kernel", name); err != nil {
		return KernelInfo{}, err
	}
	return get[KernelInfo](ctx, c, "/v1/kernels/"+name, nil)
}

// BuildKernel starts a build in the daemon; Operation tells how far it is.
func (c *Client) BuildKernel(ctx context.Context, b BuildKernel) (Operation, error) {
	return send[Operation](ctx, c, http.MethodPost, "/v1/kernels", nil, b)
}

// TestKernel boots throw-away guests with a kernel, and returns when they are
// gone.
func (c *Client) TestKernel(ctx context.Context, name string) ([]KernelTest, error) {
	if err := vps.ValidKernelName("kernel", name); err != nil {
		return nil, err
	}
	l, err := send[list[KernelTest]](ctx, c, http.MethodPost, "/v1/kernels/"+name+"/test", nil, nil)
	return l.Items, err
}

// UseKernel makes a kernel the host's default; "" means the installed one.
func (c *Client) UseKernel(ctx context.Context, name string, dryRun bool) (Change, error) {
	body := struct {
		Name string `json:"name"`
	}{name}
	return send[Change](ctx, c, http.MethodPut, "/v1/kernels/default", dryRunQuery(dryRun), body)
}

// DeleteKernel removes a kernel that no guest has; otherwise it is
// vps.CodeConflict.
func (c *Client) DeleteKernel(ctx context.Context, name string) error {
	if err := vps.ValidKernelName("kernel", name); err != nil {
		return err
	}
	_, err := send[struct{}](ctx, c, http.MethodDelete, "/v1/kernels/"+name, nil, nil)
	return err
}
