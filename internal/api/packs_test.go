package api

import (
	"bytes"
	"context"
	"io"
	"testing"

	"sublet/internal/vps"
)

// fakePacks packs alice as so many bytes, and unpacks what is not too long.
type fakePacks struct{ *fake }

const packBytes = 3 << 20

func (fakePacks) Pack(_ context.Context, guest string, o PackOptions, w io.Writer) error {
	if guest != "alice" {
		return vps.Errorf(vps.CodeNotFound, "there is no guest %s", guest)
	}
	if _, err := w.Write(bytes.Repeat([]byte{'p'}, packBytes)); err != nil || !o.Live {
		return err
	}
	return vps.Errorf(vps.CodeConflict, "it went on before it was to")
}

func (fakePacks) Unpack(_ context.Context, r io.Reader, o UnpackOptions) (Unpacked, error) {
	if o.Name == "full" {
		_, _ = io.CopyN(io.Discard, r, 1000)
		return Unpacked{}, vps.Errorf(vps.CodeDenied, "there is no room")
	}
	n, err := io.Copy(io.Discard, r)
	if n != packBytes-o.Offset {
		return Unpacked{}, vps.Errorf(vps.CodePartial, "%d bytes came, %v", n, err)
	}
	return Unpacked{Schema: SchemaVersion, Guest: o.Name + o.Storage + o.Resume}, err
}

func (fakePacks) Unpacks(context.Context) ([]Unpacking, error) {
	return []Unpacking{{ID: "ab", Guest: "alice", Offset: 7}}, nil
}

func TestPacksRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	var out bytes.Buffer
	check(t, s.Pack(ctx, "alice", PackOptions{}, &out))
	if out.Len() != packBytes {
		t.Errorf("%d bytes came", out.Len())
	}
	wantCode(t, s.Pack(ctx, "alice", PackOptions{Live: true}, io.Discard), vps.CodeConflict)
	wantCode(t, s.Pack(ctx, "bob", PackOptions{Snapshot: "one"}, io.Discard), vps.CodeNotFound)
	wantCode(t, s.Pack(ctx, "alice", PackOptions{Snapshot: "../x"}, io.Discard), vps.CodeInvalid)

	got := must[Unpacked](t)(s.Unpack(ctx, &out, UnpackOptions{Name: "bob", Storage: "file"}))
	same(t, got, Unpacked{Schema: SchemaVersion, Guest: "bobfile", Notes: []string{}})
	got = must[Unpacked](t)(s.Unpack(ctx, bytes.NewReader(make([]byte, packBytes-7)), UnpackOptions{Name: "bob", Resume: "ab", Offset: 7}))
	same(t, got.Guest, "bobab")
	_, err := s.Unpack(ctx, &out, UnpackOptions{Name: "../x"})
	wantCode(t, err, vps.CodeInvalid)
	_, err = s.Unpack(ctx, &out, UnpackOptions{Offset: 7})
	wantCode(t, err, vps.CodeInvalid)
	same(t, must[[]Unpacking](t)(s.Unpacks(ctx)), []Unpacking{{ID: "ab", Guest: "alice", Offset: 7}})
	// The reason of a refusal is heard, however much is still to be sent.
	_, err = s.Unpack(ctx, io.LimitReader(endless{}, 64<<20), UnpackOptions{Name: "full"})
	wantCode(t, err, vps.CodeDenied)
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
