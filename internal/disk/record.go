package disk

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// The ways a disk can be made, as volume.json spells them.
const (
	methodReflink = "reflink"
	methodOverlay = "overlay"
	methodCopy    = "copy"
	methodEmpty   = "empty" // a sparse file
	methodThick   = "thick" // a logical volume of its own
	methodThin    = "thin"  // a logical volume in a thin pool
)

const (
	recordName    = "volume.json"
	recordVersion = 1
	rawName       = "disk.img" // a disk that stands alone
	overlayName   = "disk.cow" // an overlay
)

// record is volume.json: the disks of one guest. What it does not name is not
// a part of the volume, so that writing it anew is how several disks change at
// one instant. A field may be added; one that changes its meaning raises
// recordVersion.
type record struct {
	Version int    `json:"version"`
	GuestID string `json:"guest_id"`
	// part is the disk that the guest boots from.
	part
	// Data are the guest's other disks.
	Data []part `json:"data,omitempty"`
	// Generation is vps.Guest's, when the disk that it boots from was made.
	Generation int64 `json:"generation,omitempty"`
	// Staged marks a volume whose guest may not be known to the store yet.
	Staged bool `json:"staged,omitempty"`
}

// part is one disk.
type part struct {
	// Name is empty for the disk that the guest boots from.
	Name    string    `json:"name,omitempty"`
	Method  string    `json:"method"`
	Size    vps.Bytes `json:"size"`
	ImageID string    `json:"image_id"`
	// ImageSize and Backing are the apparent length and the path of the
	// image that an overlay lies on.
	ImageSize vps.Bytes `json:"image_size,omitempty"`
	Backing   string    `json:"backing,omitempty"`
	// File is the data file's name in the folder; records of older versions
	// have none, and the name follows from the method.
	File string `json:"file,omitempty"`
	// Group, Pool and Volume are LVM's names of a logical volume; Pool is empty
	// for a thick one.
	Group  string `json:"group,omitempty"`
	Pool   string `json:"pool,omitempty"`
	Volume string `json:"volume,omitempty"`
}

func (p *part) fileName() string {
	switch {
	case p.File != "":
		return p.File
	case p.Method == methodOverlay:
		return overlayName
	}
	return rawName
}

// onLVM tells whether the disk is a logical volume.
func (p *part) onLVM() bool { return p.Method == methodThick || p.Method == methodThin }

// header returns the head that an overlay must have, for a backing file with
// this modification time.
func (p *part) header(mtime int64) COWHeader {
	return COWHeader{
		Backing: p.Backing,
		// The field has 32 bits; the kernel cuts the time in the same way.
		MTime:      uint32(mtime),
		Size:       uint64(p.ImageSize),
		SectorSize: cowSector,
		Alignment:  cowAlignment,
	}
}

// limit is the length that the data file may reach.
func (p *part) limit() vps.Bytes {
	if p.Method == methodOverlay {
		return vps.Bytes(p.header(0).DataOffset()) + p.Size
	}
	return p.Size
}

// disk returns the disk with this name, "" being the one that the guest boots
// from, or nil.
func (r *record) disk(name string) *part {
	if name == "" {
		return &r.part
	}
	i := slices.IndexFunc(r.Data, func(p part) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Data[i]
}

// parts returns all disks, the one that the guest boots from first.
func (r *record) parts() []part { return append([]part{r.part}, r.Data...) }

// check refuses a record that this package cannot have written.
func (r *record) check(id string) error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("version is %d, want %d", r.Version, recordVersion)
	case r.GuestID != id:
		return fmt.Errorf("it belongs to guest %q", r.GuestID)
	case r.Name != "":
		return fmt.Errorf("the first disk has the name %q", r.Name)
	}
	seen := map[string]bool{}
	for _, p := range r.parts() {
		if err := p.check(); err != nil {
			return err
		}
		if seen[p.Name] {
			return fmt.Errorf("two disks have the name %q", p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

func (p *part) check() error {
	if p.Size <= 0 {
		return fmt.Errorf("size is %d", p.Size)
	}
	if p.Name != "" && vps.ValidName("", p.Name) != nil {
		return fmt.Errorf("name is %q", p.Name)
	}
	if p.File != "" && (!filepath.IsLocal(p.File) || filepath.Base(p.File) != p.File) {
		return fmt.Errorf("file is %q", p.File)
	}
	switch p.Method {
	case methodReflink, methodCopy, methodEmpty:
		return nil
	case methodOverlay:
		return p.header(0).check()
	case methodThick, methodThin:
		if !validLVM(p.Group) || !validLVM(p.Volume) || (p.Method == methodThin) != (p.Pool != "") || p.Pool != "" && !validLVM(p.Pool) {
			return fmt.Errorf("the logical volume is %q in %q, pool %q", p.Volume, p.Group, p.Pool)
		}
		return nil
	default:
		return fmt.Errorf("method is %q", p.Method)
	}
}

// readRecord reads volume.json of a guest's folder. It returns fs.ErrNotExist
// when there is no such folder or file.
func readRecord(dir, id string) (*record, error) {
	r := &record{}
	path := filepath.Join(dir, recordName)
	if err := readJSON(path, r); err != nil {
		return nil, err
	}
	if err := r.check(id); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

// write puts volume.json into dir, whole or not at all.
func (r *record) write(dir string) error { return durable.WriteJSON(filepath.Join(dir, recordName), r) }

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
