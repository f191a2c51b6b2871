package daemon

import (
	"context"
	"errors"
	"io"

	"sublet/internal/api"
	"sublet/internal/image"
	"sublet/internal/vps"
)

// ImportImage takes the file in before it returns; what is made of it is made
// in the background.
func (b backend) ImportImage(ctx context.Context, name string, o api.ImportImage, file io.Reader) (api.Operation, error) {
	how := image.Import{Filesystem: o.Filesystem, Capacity: o.Capacity, Partition: o.Partition}
	if err := how.Validate(); err != nil {
		return api.Operation{}, err
	}
	upload, err := b.images.Receive(ctx, name, file)
	if err != nil {
		return api.Operation{}, err
	}
	if err := ctx.Err(); err != nil { // nobody would hear of it
		return api.Operation{}, errors.Join(err, upload.Drop())
	}
	return b.operations.start(b.lifetime, "image-import", name, func(ctx context.Context, progress func(vps.Progress)) error {
		_, err := upload.Import(ctx, how, progress)
		return err
	}), nil
}
