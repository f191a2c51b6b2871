package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// operations keeps long work that goes on when its caller has left. It is
// memory only: a killed daemon's builds are swept at the next start.
type operations struct {
	mu   sync.Mutex
	all  map[string]*api.Operation
	ids  []string // oldest first
	work sync.WaitGroup
}

// keptOperations bounds how many are remembered.
const keptOperations = 100

// start runs work in the background and returns how it is found again. ctx
// must outlive the caller's request.
func (o *operations) start(ctx context.Context, kind, target string, do func(context.Context, func(vps.Progress)) error) api.Operation {
	return o.begin(ctx, api.Operation{Kind: kind, Target: target}, func(ctx context.Context, w work) error { return do(ctx, w.progress) })
}

// work is how long work tells of itself.
type work struct {
	// update changes what is known of the operation.
	update func(change func(*api.Operation))
}

func (w work) progress(p vps.Progress) { w.update(func(op *api.Operation) { op.Progress = p }) }

// made says what came out of it.
func (w work) made(name string) { w.update(func(op *api.Operation) { op.Made = name }) }

// begin is start for work that has more to say than how far it is.
func (o *operations) begin(ctx context.Context, begun api.Operation, do func(context.Context, work) error) api.Operation {
	op := &begun
	op.ID = strings.ToLower(rand.Text()[:12])
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = map[string]*api.Operation{}
	}
	o.all[op.ID] = op
	o.ids = append(o.ids, op.ID)
	if len(o.ids) > keptOperations {
		delete(o.all, o.ids[0])
		o.ids = slices.Delete(o.ids, 0, 1)
	}
	started := *op
	o.work.Go(func() {
		update := func(change func(*api.Operation)) {
			o.mu.Lock()
			defer o.mu.Unlock()
			change(op)
		}
		err := do(ctx, work{update})
		update(func(op *api.Operation) {
			op.Done = true
			if err != nil {
				op.Code, op.Error = vps.ErrorCode(err), vps.ErrorMessage(err)
			}
		})
	})
	return started
}

func (o *operations) get(id string) (api.Operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.all[id]; op != nil {
		return *op, nil
	}
	return api.Operation{}, vps.Errorf(vps.CodeNotFound, "there is no operation %q; it ended with an earlier daemon, or never was", id)
}

func (b backend) Images(ctx context.Context) ([]vps.Image, error) { return b.images.List(ctx) }

func (b backend) Image(ctx context.Context, name string) (vps.Image, error) {
	return b.images.Get(ctx, name)
}

func (b backend) BuildImage(_ context.Context, name, mirror string) (api.Operation, error) {
	if err := vps.ValidImageName("name", name); err != nil {
		return api.Operation{}, err
	}
	return b.operations.start(b.lifetime, "image-build", name, func(ctx context.Context, progress func(vps.Progress)) error {
		img, err := b.images.BuildFrom(ctx, name, mirror, progress)
		if err != nil {
			b.log.ErrorContext(ctx, "an image could not be built", "image", name, "error", err)
			return err
		}
		b.log.InfoContext(ctx, "an image was built", "image", name, "id", img.ID)
		return nil
	}), nil
}

func (b backend) Operation(_ context.Context, id string) (api.Operation, error) {
	return b.operations.get(id)
}

func (b backend) DeleteImage(ctx context.Context, name string) error {
	var failure error
	err := b.images.Delete(ctx, name, func(id string) []string {
		// Asked under the images' lock: a guest made meanwhile is seen.
		users, err := b.usersOf(ctx, id)
		if err != nil {
			failure = err
			return []string{"(unknown)"} // so that nothing is deleted
		}
		return users
	})
	return cmp.Or(failure, err)
}

// usersOf returns the names of the guests on a version of an image.
func (b backend) usersOf(ctx context.Context, id string) ([]string, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	users := []string{}
	for i := range host.Guests {
		g := &host.Guests[i]
		// A disk that was restored or moved here may lie on another version.
		images, err := b.volumes.Images(g.ID)
		if err != nil {
			return nil, err
		}
		if g.ImageID == id || g.Rescue != nil && g.Rescue.ImageID == id || slices.Contains(images, id) {
			users = append(users, g.Spec.Name)
		}
	}
	return users, nil
}
