package image

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestExport takes an image to another host and back, and keeps old versions.
func TestExport(t *testing.T) {
	t.Parallel()
	here, there := New(t.TempDir(), Options{}), New(t.TempDir(), Options{})
	system := testSystem(t)
	first, err := importFile(t, here, "alpine/3", packed(t, system, "."), Import{Capacity: 4 * vps.GiB})
	if err != nil {
		t.Fatal(err)
	}
	second, err := importFile(t, here, "alpine/3", packed(t, system, "."), Import{})
	if err != nil {
		t.Fatal(err)
	}
	versions, err := here.Versions(t.Context(), "alpine/3")
	if err != nil || len(versions) != 2 || versions[0].ID == versions[1].ID {
		t.Fatalf("versions %v, %v", versions, err)
	}
	if got, err := here.Get(t.Context(), "alpine/3"); err != nil || got.ID != second.ID {
		t.Errorf("the newest is %s, %v", got.ID, err)
	}
	if got, err := here.ByID(t.Context(), first.ID); err != nil || got.ID != first.ID {
		t.Errorf("the first is %s, %v", got.ID, err)
	}
	var file bytes.Buffer
	if err := here.Export(t.Context(), "alpine/3", first.ID, &file); err != nil {
		t.Fatal(err)
	}
	if n := file.Len(); n > 4<<20 {
		t.Errorf("%d bytes for %s of content", n, first.Content)
	}
	got, err := importFile(t, there, "alpine/3", bytes.NewReader(file.Bytes()), Import{})
	if err != nil {
		t.Fatal(err)
	}
	want := first
	want.Path, want.Content = got.Path, got.Content // the holes may be others
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := there.Verify(t.Context(), "alpine/3", nil); err != nil {
		t.Error(err)
	}
	_, err = importFile(t, there, "alpine/3", bytes.NewReader(file.Bytes()), Import{})
	wantCode(t, err, vps.CodeConflict, first.ID)
	_, err = importFile(t, there, "alpine/4", bytes.NewReader(file.Bytes()[:file.Len()-100]), Import{})
	wantCode(t, err, vps.CodeInvalid)
	wantCode(t, here.Export(t.Context(), "alpine/3", "other", &file), vps.CodeNotFound, "other")
	if _, err := there.Get(t.Context(), "alpine/4"); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a damaged one: %v", err)
	}
	lie := `{"version":1,"id":"../../x","size":9,"filesystem_size":4,"sha256":"","architecture":"amd64"}`
	_, err = importFile(t, there, "alpine/4", archiveOf(t, regular("sublet-image.json", lie), regular("disk.img", "abcd")), Import{})
	wantCode(t, err, vps.CodeInvalid, "id")
	lie = strings.Replace(lie, "../../x", "x-1", 1)
	_, err = importFile(t, there, "alpine/4", archiveOf(t, regular("sublet-image.json", lie), regular("disk.img", "abcd")), Import{})
	wantCode(t, err, vps.CodeInvalid, "SHA-256")
}
