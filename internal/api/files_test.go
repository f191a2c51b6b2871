package api

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeFiles is a guest with one file, which is what was copied in last.
type fakeFiles struct {
	content []byte
	asked   []any
}

func (f *fakeFiles) CopyOut(_ context.Context, name string, o CopyOptions, w io.Writer) error {
	f.asked = append(f.asked, o)
	if name != "alice" {
		return vps.Errorf(vps.CodeConflict, "%s runs", name)
	}
	if _, err := w.Write(f.content); err != nil {
		return err
	}
	if o.Path == "/broken" {
		return vps.Errorf(vps.CodeInternal, "the appliance failed")
	}
	return nil
}

func (f *fakeFiles) CopyIn(_ context.Context, name string, o CopyOptions, archive io.Reader) (err error) {
	f.asked = append(f.asked, o)
	if name != "alice" {
		return vps.Errorf(vps.CodeConflict, "%s runs", name)
	}
	f.content, err = io.ReadAll(archive)
	return err
}

func (f *fakeFiles) Check(_ context.Context, _ string, o CheckOptions, w io.Writer) (CheckReport, error) {
	f.asked = append(f.asked, o)
	_, _ = io.WriteString(w, "pass 1\n")
	if o.Disk == "lost" {
		return CheckReport{}, vps.Errorf(vps.CodeNotFound, "there is no disk lost")
	}
	return CheckReport{Filesystem: "xfs", Verdict: "mended", OK: true}, nil
}

func (f *fakeFiles) Rescue(_ context.Context, _ string, r RescueGuest, _ bool) (Change, error) {
	f.asked = append(f.asked, r)
	return Change{Steps: []string{"create-rescue"}}, nil
}

func (f *fakeFiles) EndRescue(context.Context, string, bool) (Change, error) { return Change{}, nil }

func (f *fakeFiles) Reinstall(_ context.Context, name, image string) (Operation, error) {
	f.asked = append(f.asked, image)
	return Operation{ID: "abc", Target: name}, nil
}

func startFiles(t *testing.T) (*started, *fakeFiles) {
	t.Helper()
	f, files := newFake(), &fakeFiles{}
	b := f.backend()
	b.Files, b.Rescuer = files, files
	return startWith(t, f, &b), files
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s, files := startFiles(t)
	// More than a request may be elsewhere.
	archive := bytes.Repeat([]byte("archive "), MaxBody/4)
	check(t, s.CopyIn(t.Context(), "alice", CopyOptions{Path: "/a b&c", Disk: "data", Unpack: true}, bytes.NewReader(archive)))
	var out bytes.Buffer
	check(t, s.CopyOut(t.Context(), "alice", CopyOptions{Path: "/etc"}, &out))
	if !bytes.Equal(out.Bytes(), archive) {
		t.Errorf("%d bytes came back of %d", out.Len(), len(archive))
	}
	same(t, files.asked[0].(CopyOptions), CopyOptions{Path: "/a b&c", Disk: "data", Unpack: true})
	for _, test := range []struct {
		guest string
		o     CopyOptions
		code  vps.Code
	}{
		{"bob", CopyOptions{Path: "/"}, vps.CodeConflict},
		{"alice", CopyOptions{}, vps.CodeInvalid},
		{"alice", CopyOptions{Path: strings.Repeat("/x", 4096)}, vps.CodeInvalid},
		{"alice", CopyOptions{Path: "/", Disk: "../x"}, vps.CodeInvalid},
		{"No/name", CopyOptions{Path: "/"}, vps.CodeInvalid},
	} {
		if err := s.CopyOut(t.Context(), test.guest, test.o, io.Discard); vps.ErrorCode(err) != test.code {
			t.Errorf("out of %s, %+v: %v", test.guest, test.o, err)
		}
		if err := s.CopyIn(t.Context(), test.guest, test.o, bytes.NewReader(archive)); vps.ErrorCode(err) != test.code {
			t.Errorf("into %s, %+v: %v", test.guest, test.o, err)
		}
	}
	// A copy that breaks off is not taken for whole.
	if err := s.CopyOut(t.Context(), "alice", CopyOptions{Path: "/broken"}, io.Discard); vps.ErrorCode(err) != vps.CodeInternal {
		t.Errorf("a copy that broke off: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	s, files := startFiles(t)
	var said bytes.Buffer
	report, err := s.Check(t.Context(), "alice", CheckOptions{Repair: true}, &said)
	check(t, err)
	same(t, report, CheckReport{Schema: SchemaVersion, Filesystem: "xfs", Verdict: "mended", OK: true})
	if said.String() != "pass 1\n" || !files.asked[0].(CheckOptions).Repair {
		t.Errorf("it said %q, and was asked %+v", said.String(), files.asked)
	}
	if _, err := s.Check(t.Context(), "alice", CheckOptions{Disk: "lost"}, io.Discard); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("a disk that is not there: %v", err)
	}
}

func TestRescueAndReinstall(t *testing.T) {
	t.Parallel()
	s, files := startFiles(t)
	change, err := s.Rescue(t.Context(), "alice", RescueGuest{Keys: []string{"key"}, For: vps.Duration(time.Hour)}, false)
	check(t, err)
	same(t, change.Steps, []string{"create-rescue"})
	same(t, files.asked[0].(RescueGuest), RescueGuest{Keys: []string{"key"}, For: vps.Duration(time.Hour)})
	_, err = s.EndRescue(t.Context(), "alice", true)
	check(t, err)
	op, err := s.Reinstall(t.Context(), "alice", "debian/13")
	check(t, err)
	if op.ID != "abc" || files.asked[1] != "debian/13" {
		t.Errorf("%+v, %v", op, files.asked)
	}
	if _, err := s.Reinstall(t.Context(), "alice", "no image"); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("a bad name: %v", err)
	}
}
