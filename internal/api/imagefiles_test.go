package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// fakeImageFiles takes files in.
type fakeImageFiles struct {
	asked   ImportImage
	got     bytes.Buffer
	refuse  error // before anything is read
	enough  int64 // after so many bytes it is full; 0 is never
	broken  chan error
	exports string
}

func (f *fakeImageFiles) ImportImage(_ context.Context, name string, o ImportImage, file io.Reader) (Operation, error) {
	f.asked = o
	if f.refuse != nil {
		return Operation{}, f.refuse
	}
	if f.enough > 0 {
		_, err := io.CopyN(&f.got, file, f.enough)
		return Operation{}, errors.Join(err, vps.Errorf(vps.CodeDenied, "the disk is full"))
	}
	if _, err := io.Copy(&f.got, file); err != nil {
		f.broken <- err
		return Operation{}, vps.Errorf(vps.CodeInvalid, "the file did not arrive whole")
	}
	return Operation{ID: "abc", Kind: "image-import", Target: name}, nil
}

func (f *fakeImageFiles) ExportImage(_ context.Context, _, id string, w io.Writer) error {
	if id == "none" {
		return vps.Errorf(vps.CodeNotFound, "there is no such version")
	}
	if _, err := io.WriteString(w, f.exports); err != nil {
		return err
	}
	if id == "bad" {
		return vps.Errorf(vps.CodeInternal, "it is damaged")
	}
	return nil
}

func (f *fakeImageFiles) VerifyImage(_ context.Context, name string) (Operation, error) {
	return Operation{ID: "abc", Kind: "image-verify", Target: name}, nil
}

func (f *fakeImageFiles) ImageVersions(_ context.Context, name string) ([]ImageVersion, error) {
	return []ImageVersion{{Image: vps.Image{Name: name, ID: "v0"}, Guests: []string{"alice"}}, {Image: vps.Image{Name: name, ID: "v1"}, Newest: true}}, nil
}

func startImageFiles(t *testing.T) (*started, *fakeImageFiles) {
	t.Helper()
	f, files := newFake(), &fakeImageFiles{broken: make(chan error, 1), exports: "the image"}
	b := f.backend()
	b.ImageFiles = files
	return startWith(t, f, &b), files
}

// reads counts the reads of an endless file.
type reads struct{ n int64 }

func (r *reads) Read(b []byte) (int, error) { r.n += int64(len(b)); return len(b), nil }

func TestImportImage(t *testing.T) {
	t.Parallel()
	s, files := startImageFiles(t)
	file := strings.Repeat("more than a body may have elsewhere ", MaxBody/10)
	o := ImportImage{Filesystem: "xfs", Capacity: 5 * vps.GiB, Partition: 3}
	op, err := s.ImportImage(t.Context(), "arch/latest", o, strings.NewReader(file))
	check(t, err)
	same(t, op, Operation{ID: "abc", Kind: "image-import", Target: "arch/latest"})
	same(t, files.asked, o)
	if files.got.String() != file {
		t.Errorf("%d of %d bytes arrived", files.got.Len(), len(file))
	}
	if _, err := s.ImportImage(t.Context(), "../x", o, strings.NewReader("")); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("a bad name: %v", err)
	}
	broken := io.MultiReader(strings.NewReader(file), iotestError{})
	if _, err := s.ImportImage(t.Context(), "arch/latest", o, broken); vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(vps.ErrorMessage(err), "cannot be read: gone") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	if err := <-files.broken; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the daemon saw %v", err)
	}
}

type iotestError struct{}

func (iotestError) Read([]byte) (int, error) { return 0, errors.New("gone") }

// TestImportImageRefused looks that the caller hears why, whenever that is.
func TestImportImageRefused(t *testing.T) {
	t.Parallel()
	s, files := startImageFiles(t)
	files.refuse = vps.Errorf(vps.CodeConflict, "it is being made already")
	endless := &reads{}
	if _, err := s.ImportImage(t.Context(), "arch/latest", ImportImage{}, endless); vps.ErrorCode(err) != vps.CodeConflict || endless.n > 0 {
		t.Errorf("%v, after %d bytes", err, endless.n)
	}
	files.refuse, files.enough = nil, 1<<20
	large := io.LimitReader(&reads{}, 64<<20)
	if _, err := s.ImportImage(t.Context(), "arch/latest", ImportImage{}, large); vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("a full disk: %v", err)
	}
	files.enough = 0
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.ImportImage(ctx, "arch/latest", ImportImage{}, readerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }))
	if err == nil {
		t.Error("a caller who left")
	}
	if err := <-files.broken; err == nil {
		t.Error("the daemon took it for whole")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestExportImage(t *testing.T) {
	t.Parallel()
	s, _ := startImageFiles(t)
	var out bytes.Buffer
	check(t, s.ExportImage(t.Context(), "debian/12", "", &out))
	if out.String() != "the image" {
		t.Errorf("got %q", out.String())
	}
	for id, code := range map[string]vps.Code{"none": vps.CodeNotFound, "bad": vps.CodeInternal} {
		if err := s.ExportImage(t.Context(), "debian/12", id, io.Discard); vps.ErrorCode(err) != code {
			t.Errorf("%s: %v", id, err)
		}
	}
	versions, err := s.ImageVersions(t.Context(), "debian/12")
	if err != nil || len(versions) != 2 || versions[0].Guests[0] != "alice" || !versions[1].Newest {
		t.Errorf("versions %+v, %v", versions, err)
	}
	op, err := s.VerifyImage(t.Context(), "debian/12")
	if err != nil || op.Target != "debian/12" {
		t.Errorf("verify: %+v, %v", op, err)
	}
}
