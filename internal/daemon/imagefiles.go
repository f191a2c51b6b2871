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

// ExportImage writes a version as a file that ImportImage takes.
func (b backend) ExportImage(ctx context.Context, name, id string, w io.Writer) error {
	return b.images.Export(ctx, name, id, w)
}

// VerifyImage compares all versions with their hashes.
func (b backend) VerifyImage(ctx context.Context, name string) (api.Operation, error) {
	if _, err := b.images.Versions(ctx, name); err != nil {
		return api.Operation{}, err
	}
	return b.operations.start(b.lifetime, "image-verify", name, func(ctx context.Context, progress func(vps.Progress)) error {
		return b.images.Verify(ctx, name, progress)
	}), nil
}

// ImageVersions lists the versions, oldest first, with the guests on them.
func (b backend) ImageVersions(ctx context.Context, name string) ([]api.ImageVersion, error) {
	images, err := b.images.Versions(ctx, name)
	if err != nil {
		return nil, err
	}
	latest, err := b.images.Get(ctx, name)
	if err != nil && vps.ErrorCode(err) != vps.CodeNotFound {
		return nil, err
	}
	versions := make([]api.ImageVersion, 0, len(images))
	for _, img := range images {
		users, err := b.usersOf(ctx, img.ID)
		if err != nil {
			return nil, err
		}
		versions = append(versions, api.ImageVersion{Image: img, Newest: img.ID == latest.ID, Guests: users})
	}
	return versions, nil
}
