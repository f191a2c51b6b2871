package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) Images(context.Context) ([]vps.Image, error) { return f.images, f.failure }

func (f *fake) Image(_ context.Context, name string) (vps.Image, error) {
	for _, i := range f.images {
		if i.Name == name {
			return i, f.failure
		}
	}
	return vps.Image{}, vps.Errorf(vps.CodeNotFound, "image %s does not exist; build it with `sublet image build %s`", name, name)
}

func (f *fake) BuildImage(_ context.Context, name, _ string) (api.Operation, error) {
	return api.Operation{ID: "op-1", Kind: "image", Target: name, Progress: vps.Progress{Phase: "starting"}}, f.failure
}

func (f *fake) Operation(context.Context, string) (api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polls++
	if f.onPoll != nil {
		f.onPoll()
	}
	op := api.Operation{ID: "op-1", Kind: "image", Made: "uml/7.2.13-0123456789ab", Target: "debian/12", Progress: vps.Progress{Phase: "installing packages", Fraction: 0.4}}
	switch f.polls {
	case 1:
	case 2:
		return api.Operation{}, vps.Errorf(vps.CodeUnavailable, "the daemon does not run")
	case 3:
		op.Progress = vps.Progress{Phase: "making the filesystem", Fraction: 0.9}
	default:
		op.Progress, op.Done = vps.Progress{Phase: "done", Fraction: 1}, true
	}
	return op, nil
}

func (f *fake) ImportImage(_ context.Context, name string, _ api.ImportImage, file io.Reader) (api.Operation, error) {
	if _, err := io.Copy(io.Discard, file); err != nil {
		return api.Operation{}, err
	}
	if f.failure == nil {
		f.images = append(f.images, vps.Image{Name: name, ID: "img-2", Filesystem: "ext4", Content: 3 * vps.MiB, Warnings: []string{"There is no SSH server."}})
	}
	return api.Operation{ID: "op-1", Kind: "image-import", Target: name, Progress: vps.Progress{Phase: "unpack"}}, f.failure
}

func (f *fake) ExportImage(_ context.Context, name, id string, w io.Writer) error {
	if f.failure != nil {
		return f.failure
	}
	_, err := io.WriteString(w, "image "+name+" "+id)
	return err
}

func (f *fake) VerifyImage(_ context.Context, name string) (api.Operation, error) {
	return api.Operation{ID: "op-1", Kind: "image-verify", Target: name, Progress: vps.Progress{Phase: "checksum"}}, f.failure
}

func (f *fake) ImageVersions(ctx context.Context, name string) ([]api.ImageVersion, error) {
	img, err := f.Image(ctx, name)
	old := img
	old.ID, old.Created = "img-0", img.Created.Add(-24*time.Hour)
	return []api.ImageVersion{{Image: old, Guests: []string{"alice"}}, {Image: img, Newest: true}}, err
}

func (f *fake) DeleteImage(_ context.Context, name string) error {
	for i, img := range f.images {
		if img.Name == name {
			f.images = slices.Delete(f.images, i, i+1)
			return nil
		}
	}
	return vps.Errorf(vps.CodeNotFound, "image %s does not exist", name)
}

func (f *fake) Kernels(context.Context) ([]api.KernelInfo, error) {
	return []api.KernelInfo{{Kernel: vps.Kernel{Name: "uml/6.1.176", Release: "6.1.176", Path: "/usr/bin/linux.uml", Initrd: "/var/lib/sublet/kernels/i"}, Features: []string{"vector", "ext4"}}}, f.failure
}

func (f *fake) Kernel(_ context.Context, name string) (api.KernelInfo, error) {
	created := time.Date(2026, 5, 1, 8, 30, 0, 0, time.UTC)
	return api.KernelInfo{
		Kernel:   vps.Kernel{Name: name, Release: strings.TrimPrefix(name, "uml/"), Path: "/var/lib/sublet/kernels/l", Initrd: "/var/lib/sublet/kernels/i", Fast: true},
		Features: []string{"nftables", "fast"}, Origin: "built from linux-7.2.tar.xz", Default: true, Guests: []string{"alice"}, Running: []string{},
		Created: &created, Log: "/var/lib/sublet/kernel-logs/l.log", Misses: []string{"CONFIG_TIME_NS is n, not y"}, Warning: "This is faster.\nThis is insecure.",
	}, f.failure
}

func (f *fake) BuildKernel(_ context.Context, b api.BuildKernel) (api.Operation, error) {
	f.built = b
	return api.Operation{ID: "op-1", Kind: "kernel-build", Target: "linux", Log: "/var/lib/sublet/kernel-logs/l.log", Progress: vps.Progress{Phase: "starting"}}, f.failure
}

func (f *fake) TestKernel(context.Context, string) ([]api.KernelTest, error) {
	return []api.KernelTest{{Isolation: vps.IsolationStrict, Took: vps.Duration(time.Second), Checks: []api.KernelCheck{
		{Name: "boot", OK: true, Seen: "7.2.13"}, {Name: "nft-ip", Seen: "operation not supported"},
	}}}, f.failure
}

func (f *fake) UseKernel(_ context.Context, name string, dryRun bool) (api.Change, error) {
	return api.Change{DryRun: dryRun, Edits: []string{"settings.kernel: " + name}}, f.failure
}

func (f *fake) DeleteKernel(context.Context, string) error { return f.failure }
