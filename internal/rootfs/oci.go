//go:build linux

package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sublet/internal/tree"
	"sublet/internal/vps"
)

// Bounds of an image of a container.
const (
	maxJSON   = 8 << 20
	maxLayers = 1000
	maxNested = 4 // indexes in indexes
)

// descriptor points at a blob: the Open Container Initiative's image
// specification, descriptor.md and image-index.md.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Platform  *struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	} `json:"platform"`
}

// index is an image-index.md, or a manifest.md: what it has tells which.
type index struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// config is the part of config.md that counts here, in both formats.
type config struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// container is an image of a container that was unpacked.
type container struct {
	root *tree.Root
	arch string
}

// layer is one of its layers.
type layer struct {
	// name is its file; digest is that of the file, empty when nobody says, and
	// plain that of what is in it.
	name, digest, plain string
}

// unpackContainer makes a root filesystem of the image of a container in dir.
// It returns nil when there is none.
func unpackContainer(ctx context.Context, dir string, o Options) (*Source, error) {
	root, err := tree.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a folder
	c := container{root, o.Architecture}
	var layers []layer
	kind := OCI
	switch {
	case c.has("oci-layout") && c.has("index.json"):
		layers, err = c.oci()
	case c.has("manifest.json"):
		kind = Docker
		layers, err = c.docker()
	default:
		return nil, nil //nolint:nilnil // it is something else
	}
	if err != nil {
		return nil, err
	}
	merged := filepath.Join(o.Dir, "merged")
	s := &Source{Kind: kind, Root: merged}
	if err := os.Mkdir(merged, 0o700); err != nil {
		return nil, err
	}
	into, err := tree.OpenBeneath(merged)
	if err != nil {
		return nil, err
	}
	defer into.Close() //nolint:errcheck // a folder
	for _, l := range layers {
		left, err := c.apply(ctx, into, l)
		if err != nil {
			return nil, refused(ctx, err)
		}
		s.Left.Attributes += left.Attributes
	}
	if !isRoot(merged) {
		return nil, errNoRoot()
	}
	return s, own(merged)
}

func (c container) has(name string) bool {
	_, err := c.root.Resolve(name)
	return err == nil
}

// oci finds the layers of an image layout.
func (c container) oci() ([]layer, error) {
	var top index
	if err := c.read("index.json", "", &top); err != nil {
		return nil, err
	}
	manifests, err := c.manifests(top, 0)
	if err != nil {
		return nil, err
	}
	var found [][]layer
	var others, digests []string
	for _, m := range manifests {
		conf, err := c.config(m.manifest.Config)
		if err != nil {
			return nil, err
		}
		switch {
		case conf.OS != "linux" || conf.Architecture != c.arch:
			others = append(others, conf.OS+"/"+conf.Architecture)
			continue
		case slices.Contains(digests, m.digest): // the same under another name
			continue
		case len(m.manifest.Layers) > maxLayers || len(conf.RootFS.DiffIDs) != len(m.manifest.Layers):
			return nil, badContainer("its configuration names %d layers and its manifest %d", len(conf.RootFS.DiffIDs), len(m.manifest.Layers))
		}
		var layers []layer
		for i, d := range m.manifest.Layers {
			name, err := blob(d.Digest)
			if err != nil {
				return nil, err
			}
			layers = append(layers, layer{name, d.Digest, conf.RootFS.DiffIDs[i]})
		}
		found, digests = append(found, layers), append(digests, m.digest)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, badContainer("there are %d images in it; export the one that is wanted", len(found))
	case len(others) > 0:
		return nil, badContainer("it is for %s, and this host is linux/%s", strings.Join(others, ", "), c.arch)
	}
	return nil, badContainer("there is no image in it")
}

// manifest is one of an image, for one platform.
type manifest struct {
	digest   string
	manifest index
}

// manifests reads what an index leads to, through other indexes too.
func (c container) manifests(top index, depth int) ([]manifest, error) {
	var all []manifest
	if depth > maxNested || len(top.Manifests) > maxLayers {
		return nil, badContainer("its indexes are too deep, or too large")
	}
	for _, d := range top.Manifests {
		// Attestations call themselves so.
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		// Most layouts hold the blobs of one platform of those that they name.
		if d.Platform != nil && (d.Platform.OS != "linux" || d.Platform.Architecture != c.arch) {
			if name, err := blob(d.Digest); err != nil || !c.has(name) {
				continue
			}
		}
		name, err := blob(d.Digest)
		if err != nil {
			return nil, err
		}
		var i index
		if err := c.read(name, d.Digest, &i); err != nil {
			return nil, err
		}
		if len(i.Manifests) == 0 {
			all = append(all, manifest{d.Digest, i})
			continue
		}
		below, err := c.manifests(i, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

func (c container) config(d descriptor) (config, error) {
	var conf config
	name, err := blob(d.Digest)
	if err != nil {
		return conf, err
	}
	return conf, c.read(name, d.Digest, &conf)
}

// docker finds the layers of what `docker save` writes, whose form is told in
// the image specification of Docker, version 1.2.
func (c container) docker() ([]layer, error) {
	var images []struct {
		Config string
		Layers []string
	}
	if err := c.read("manifest.json", "", &images); err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, badContainer("there are %d images in it; save the one that is wanted", len(images))
	}
	var conf config
	if err := c.read(images[0].Config, "", &conf); err != nil {
		return nil, err
	}
	switch n := len(images[0].Layers); {
	case n > maxLayers || n != len(conf.RootFS.DiffIDs):
		return nil, badContainer("its configuration names %d layers and its manifest %d", len(conf.RootFS.DiffIDs), n)
	case conf.Architecture != c.arch || conf.OS != "linux":
		return nil, badContainer("it is for %s/%s, and this host is linux/%s", conf.OS, conf.Architecture, c.arch)
	}
	var layers []layer
	for i, name := range images[0].Layers {
		layers = append(layers, layer{name: name, plain: conf.RootFS.DiffIDs[i]})
	}
	return layers, nil
}

// digestOf starts the only digests that are in use.
const digestOf = "sha256:"

// blob is the file of a digest.
func blob(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, digestOf)
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size {
		return "", badContainer("%q is no digest that is known", digest)
	}
	return "blobs/sha256/" + sum, nil
}

// read reads a small file of JSON, whose digest is checked when it is known.
func (c container) read(name, digest string, into any) error {
	f, err := c.root.File(name)
	if err != nil {
		return badContainer("its file %q is missing", name)
	}
	defer f.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	switch sum := sha256.Sum256(text); {
	case err != nil:
		return err
	case len(text) > maxJSON:
		return badContainer("its file %q is too large", name)
	case digest != "" && digestOf+hex.EncodeToString(sum[:]) != digest:
		return badContainer("its file %q is not what its digest says", name)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return badContainer("its file %q is damaged", name)
	}
	return nil
}

func badContainer(format string, args ...any) error {
	return vps.Errorf(vps.CodeInvalid, "the image of a container is refused: "+format, args...)
}

// apply puts a layer over what is there: first it removes what the layer says
// is gone. Nothing is done when the layer is not what its digest says.
func (c container) apply(ctx context.Context, into *tree.Root, l layer) (left tree.Left, err error) {
	if err := c.sound(ctx, l); err != nil {
		return left, err
	}
	if err := c.each(ctx, l, func(archive io.Reader) error { return into.Mask(ctx, archive) }); err != nil {
		return left, err
	}
	err = c.each(ctx, l, func(archive io.Reader) error {
		left, err = into.Unpack(ctx, archive, tree.Options{Layer: true, MaxMembers: maxMembers, MaxSize: maxLength})
		return err
	})
	return left, err
}

// sound compares a layer with its digests.
func (c container) sound(ctx context.Context, l layer) error {
	f, err := c.root.File(l.name)
	if err != nil {
		return badContainer("its layer %q is missing", l.name)
	}
	defer f.Close() //nolint:errcheck // read only
	packed, plain := sha256.New(), sha256.New()
	file := io.TeeReader(f, packed)
	in, err := open(ctx, file)
	if err != nil {
		return err
	}
	_, err = io.Copy(plain, contextReader{ctx, in})
	if err = errors.Join(err, in.Close()); err == nil {
		_, err = io.Copy(io.Discard, file) // what is behind the compressed part
	}
	if err != nil {
		return err
	}
	if l.digest != "" && digestOf+hex.EncodeToString(packed.Sum(nil)) != l.digest || digestOf+hex.EncodeToString(plain.Sum(nil)) != l.plain {
		return badContainer("its layer %q is not what its digest says", l.name)
	}
	return nil
}

// each reads a layer once more.
func (c container) each(ctx context.Context, l layer, do func(io.Reader) error) error {
	f, err := c.root.File(l.name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	in, err := open(ctx, f)
	if err != nil {
		return err
	}
	return errors.Join(do(in), in.Close())
}

// contextReader reads while a context lasts.
type contextReader struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
