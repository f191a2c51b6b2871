package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sublet/internal/vps"
)

const (
	diskName        = "disk.img"
	manifestName    = "manifest.json"
	latestName      = "latest"
	manifestVersion = 1
)

// manifest is manifest.json. A field may be added; one that changes its
// meaning raises manifestVersion.
type manifest struct {
	Version int `json:"version"`
	vps.Image
}

// readManifest reads the version in dir and checks that it is whole as far as
// can be seen without reading the disk: name is "debian/12".
func readManifest(dir, name string) (manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	switch {
	case m.Version != manifestVersion:
		return manifest{}, fmt.Errorf("%s: version is %d, want %d", manifestName, m.Version, manifestVersion)
	case m.Name != name || m.ID != filepath.Base(dir):
		return manifest{}, fmt.Errorf("%s: it is for version %s of %s", manifestName, m.ID, m.Name)
	case m.FilesystemSize <= 0 || m.FilesystemSize > m.Size:
		return manifest{}, fmt.Errorf("%s: the sizes are out of range", manifestName)
	}
	if m.Path, err = filepath.Abs(filepath.Join(dir, diskName)); err != nil {
		return manifest{}, err
	}
	info, err := os.Lstat(m.Path)
	switch {
	case err != nil:
		return manifest{}, err
	case !info.Mode().IsRegular():
		return manifest{}, fmt.Errorf("%s is not a regular file", diskName)
	case vps.Bytes(info.Size()) != m.Size:
		return manifest{}, fmt.Errorf("%s is %d bytes long, want %d", diskName, info.Size(), m.Size)
	}
	return m, nil
}

func (m *manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, manifestName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close())
}

// corrupt is what a user is told about a version that cannot be used.
func corrupt(err error, name, dir string) error {
	if errors.Is(err, fs.ErrPermission) {
		return vps.Wrap(vps.CodeInternal, err, "image %s in %s cannot be read; sublet has to run as root", name, dir)
	}
	return vps.Wrap(vps.CodeInternal, err, "image %s in %s is damaged (%v); %s", name, dir, err, again(name))
}

// again says how an image is made once more.
func again(name string) string {
	if _, ok := releases()[name]; ok {
		return "build it again: sublet image build " + name
	}
	return "import it again: sublet image import FILE --name " + name
}
