package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"sublet/internal/vps"
)

const (
	magic = "SUBLETPACK"
	// Version is the version of the format.
	Version = 1
	// ChunkSize is how much of a disk one frame holds; the last chunk of a disk
	// is as long as the disk.
	ChunkSize = 1 << 20
	// HeadSize is the length of a file's head.
	HeadSize = len(magic) + 2 + idSize

	idSize    = 16
	frameHead = 16
	// maxContent bounds a frame: what Zstandard makes of a chunk that cannot be
	// made smaller, with room to spare.
	maxContent = ChunkSize + 64<<10
	// maxJSON bounds the manifest and the end.
	maxJSON = 1 << 20
	// MaxDisks bounds the disks of a file.
	MaxDisks = 1 + vps.MaxDataDisks
)

// The kinds of frames.
const (
	kindManifest = 'm'
	kindChunk    = 'c'
	kindEnd      = 'e'
)

// Manifest says what a file holds. It is the first thing in it.
type Manifest struct {
	Schema  int       `json:"schema_version"`
	Created time.Time `json:"created"`
	// Guest is a host file with one guest, as JSON: its spec and its ports, and
	// its password's hash, as `export` has them.
	Guest json.RawMessage `json:"guest"`
	Name  string          `json:"name"`
	// Image is what the guest was made from. The disks do not need it.
	Image   string `json:"image"`
	ImageID string `json:"image_id"`
	// State is what the guest did when its disks were read.
	State vps.SnapshotState `json:"state"`
	// Disks are the guest's disks; the first is the one that it boots from.
	Disks []Disk `json:"disks"`
	// Domains are the guest's, each a vps.Domain; a reader passes over what it does
	// not know.
	Domains []json.RawMessage `json:"domains"`
	// Quota is the guest's own, a vps.Quota; null for none.
	Quota json.RawMessage `json:"quota"`
}

// Disk is one disk of a file.
type Disk struct {
	// Name is "root" for the first one.
	Name string    `json:"name"`
	Size vps.Bytes `json:"size"`
	// Used is about how much of it is not zeros, and 0 when that is not known.
	Used vps.Bytes `json:"used"`
}

// end is the last frame.
type end struct {
	Disks []endDisk `json:"disks"`
}

type endDisk struct {
	Chunks int64  `json:"chunks"`
	Digest string `json:"sha256"`
}

// check refuses a manifest that Write would not make.
func (m *Manifest) check() error {
	if m.Schema != 1 || len(m.Disks) == 0 || len(m.Disks) > MaxDisks || m.Disks[0].Name != "root" {
		return errors.New("the manifest is not one of this version")
	}
	if err := vps.ValidName("", m.Name); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, d := range m.Disks {
		if vps.ValidName("", d.Name) != nil || seen[d.Name] {
			return fmt.Errorf("the manifest has a disk %q", d.Name)
		}
		seen[d.Name] = true
		if d.Size <= 0 || d.Size > maxDisk || d.Used < 0 {
			return fmt.Errorf("the disk %s has %d bytes", d.Name, d.Size)
		}
	}
	return nil
}

// maxDisk is beyond what a guest can have, with room for a logical volume's
// last extent.
const maxDisk = vps.MaxDisk + vps.GiB

// ID is what tells one file from all others.
type ID [idSize]byte

// String is the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads what String writes.
func ParseID(text string) (id ID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != idSize {
		return id, vps.Invalid("id", "%q is no ID of a pack", text)
	}
	return ID(b), nil
}

// ParseHead reads the head of a file. The error is vps.CodeInvalid and says
// what the file is not.
func ParseHead(b []byte) (id ID, err error) {
	if len(b) < HeadSize || !bytes.HasPrefix(b, []byte(magic)) {
		return id, vps.Errorf(vps.CodeInvalid, "this is no .sublet file; `sublet pack` makes them")
	}
	if v := binary.BigEndian.Uint16(b[len(magic):]); v != Version {
		return id, vps.Errorf(vps.CodeInvalid, "this .sublet file is of version %d, and this sublet reads version %d; unpack it with a newer one", v, Version)
	}
	return ID(b[len(magic)+2 : HeadSize]), nil
}

func head(id ID) []byte {
	b := append([]byte(magic), 0, Version)
	return append(b, id[:]...)
}

// frame is the head of a frame.
type frame struct {
	kind   byte
	disk   uint16
	length uint32
	number uint64
}

func (f frame) bytes() (b [frameHead]byte) {
	b[0] = f.kind
	binary.BigEndian.PutUint16(b[2:], f.disk)
	binary.BigEndian.PutUint32(b[4:], f.length)
	binary.BigEndian.PutUint64(b[8:], f.number)
	return b
}

func parseFrame(b [frameHead]byte) (frame, error) {
	f := frame{b[0], binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])}
	switch {
	case b[1] != 0 || f.length == 0 || f.length > maxContent:
	case f.kind == kindChunk, (f.kind == kindManifest || f.kind == kindEnd) && f.disk == 0 && f.number == 0:
		return f, nil
	}
	return f, fmt.Errorf("a frame begins with %x", b)
}

// sum is the running checksum.
type sum [sha256.Size]byte

// firstSum is that of the head.
func firstSum(head []byte) sum { return sha256.Sum256(head) }

func (s sum) next(head [frameHead]byte, content []byte) (next sum) {
	h := sha256.New()
	h.Write(s[:])
	h.Write(head[:])
	h.Write(content)
	h.Sum(next[:0])
	return next
}

// Source is a disk to be packed. disk.Content is one.
type Source interface {
	io.ReaderAt
	// Size is the disk's length in bytes.
	Size() int64
	// NextData returns the first place at or behind at that may hold something
	// else than zeros; io.EOF says that there is none.
	NextData(at int64) (int64, error)
}

// chunks calls each for every chunk of a disk that is not all zeros, in order.
// The bytes are the callee's until it returns.
func chunks(src Source, each func(number int64, content []byte) error) error {
	buf := make([]byte, ChunkSize)
	for at := int64(0); at < src.Size(); at += ChunkSize {
		next, err := src.NextData(at)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		at = next / ChunkSize * ChunkSize
		b := buf[:min(ChunkSize, src.Size()-at)]
		if n, err := src.ReadAt(b, at); n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if zeros(b) {
			continue
		}
		if err := each(at/ChunkSize, b); err != nil {
			return err
		}
	}
	return nil
}

// Estimate returns how much of a disk may be something else than zeros,
// without reading it, as far as NextData knows.
func Estimate(src Source) (vps.Bytes, error) {
	var n vps.Bytes
	for at := int64(0); at < src.Size(); at += ChunkSize {
		next, err := src.NextData(at)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		at = next / ChunkSize * ChunkSize
		n += vps.Bytes(min(ChunkSize, src.Size()-at))
	}
	return n, nil
}

var zeroBlock [4096]byte //nolint:gochecknoglobals // a constant

// zeros tells whether all bytes are.
func zeros(b []byte) bool {
	for len(b) > len(zeroBlock) {
		if !bytes.Equal(b[:len(zeroBlock)], zeroBlock[:]) {
			return false
		}
		b = b[len(zeroBlock):]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// digest is the digest of a disk's content: the SHA-256 of the size of the
// disk and, for each chunk that is not all zeros, its number and its SHA-256.
type digest struct {
	h interface {
		io.Writer
		Sum(b []byte) []byte
	}
	chunks int64
}

func newDigest(size int64) *digest {
	d := &digest{h: sha256.New()}
	_, _ = d.h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	return d
}

func (d *digest) add(number int64, content []byte) {
	s := sha256.Sum256(content)
	_, _ = d.h.Write(append(binary.BigEndian.AppendUint64(nil, uint64(number)), s[:]...))
	d.chunks++
}

func (d *digest) String() string { return hex.EncodeToString(d.h.Sum(nil)) }

// Digest returns what the end of a file says of a disk with this content. It
// reads all of it.
func Digest(src Source) (string, error) {
	d := newDigest(src.Size())
	err := chunks(src, func(number int64, content []byte) error {
		d.add(number, content)
		return nil
	})
	return d.String(), err
}
