package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// The ways a volume can be made, as volume.json spells them.
const (
	methodReflink = "reflink"
	methodOverlay = "overlay"
	methodCopy    = "copy"
)

const (
	recordName    = "volume.json"
	recordVersion = 1
	rawName       = "disk.img" // a disk that stands alone
	overlayName   = "disk.cow" // an overlay
)

// record is volume.json. A field may be added; one that changes its meaning
// raises recordVersion.
type record struct {
	Version int       `json:"version"`
	GuestID string    `json:"guest_id"`
	Method  string    `json:"method"`
	Size    vps.Bytes `json:"size"`
	ImageID string    `json:"image_id"`
	// ImageSize and Backing are the apparent length and the path of the
	// image that an overlay lies on.
	ImageSize vps.Bytes `json:"image_size,omitempty"`
	Backing   string    `json:"backing,omitempty"`
}

func (r *record) fileName() string {
	if r.Method == methodOverlay {
		return overlayName
	}
	return rawName
}

// header returns the head that an overlay must have, for a backing file with
// this modification time.
func (r *record) header(mtime int64) COWHeader {
	return COWHeader{
		Backing: r.Backing,
		// The field has 32 bits; the kernel cuts the time in the same way.
		MTime:      uint32(mtime),
		Size:       uint64(r.ImageSize),
		SectorSize: cowSector,
		Alignment:  cowAlignment,
	}
}

// limit is the length that the data file may reach.
func (r *record) limit() vps.Bytes {
	if r.Method == methodOverlay {
		return vps.Bytes(r.header(0).DataOffset()) + r.Size
	}
	return r.Size
}

// check refuses a record that Create cannot have written.
func (r *record) check(id string) error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("version is %d, want %d", r.Version, recordVersion)
	case r.GuestID != id:
		return fmt.Errorf("it belongs to guest %q", r.GuestID)
	case r.Size <= 0:
		return fmt.Errorf("size is %d", r.Size)
	}
	switch r.Method {
	case methodReflink, methodCopy:
		return nil
	case methodOverlay:
		return r.header(0).check()
	default:
		return fmt.Errorf("method is %q", r.Method)
	}
}

// volume describes the record's volume in dir; it looks at the data file.
func (r *record) volume(dir string) (vps.Volume, error) {
	path := filepath.Join(dir, r.fileName())
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return vps.Volume{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return vps.Volume{}, &fs.PathError{Op: "stat", Path: path, Err: errors.New("not a regular file")}
	}
	return vps.Volume{
		GuestID: r.GuestID,
		Disk:    vps.Disk{Path: path, Backing: r.Backing},
		Size:    r.Size,
		Used:    vps.Bytes(st.Blocks * 512), // st_blocks counts 512 bytes, see stat(2)
		Limit:   r.limit(),
		ImageID: r.ImageID,
	}, nil
}

// readRecord reads volume.json of a guest's folder. It returns fs.ErrNotExist
// when there is no such folder or file.
func readRecord(dir, id string) (*record, error) {
	path := filepath.Join(dir, recordName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := r.check(id); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

// write puts volume.json into dir, whole or not at all.
func (r *record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+recordName+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, recordName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes names in dir last through a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
