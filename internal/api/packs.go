package api

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// Packs moves whole guests as one stream.
type Packs interface {
	// Pack writes a guest to w.
	Pack(ctx context.Context, guest string, o PackOptions, w io.Writer) error
	// Unpack makes a guest of what r holds. When r is cut off, what came is
	// kept and listed by Unpacks; any other failure leaves nothing.
	Unpack(ctx context.Context, r io.Reader, o UnpackOptions) (Unpacked, error)
	Unpacks(ctx context.Context) ([]Unpacking, error)
}

// PackOptions say what is packed of a guest. The zero value is the disks of one
// that does not run.
type PackOptions struct {
	// Snapshot names the snapshot to pack.
	Snapshot string
	// Live takes a snapshot of a running guest for it.
	Live bool
}

// UnpackOptions say what becomes of a stream.
type UnpackOptions struct {
	// Name is what the guest is to be called; empty keeps its name.
	Name string
	// Storage is where its disks are to lie; empty is a file.
	Storage string
	// Start starts it.
	Start bool
	// Resume is the ID of an Unpacking to go on with, and Offset where its
	// stream goes on. Storage is what it was then.
	Resume string
	Offset int64
}

// Unpacked tells what was made.
type Unpacked struct {
	Schema int      `json:"schema_version"`
	Guest  string   `json:"guest" doc:"The guest's name."`
	Notes  []string `json:"notes" doc:"What it could not keep, and got anew, one sentence each."`
}

// Unpacking is one that was cut off and can be gone on with.
type Unpacking struct {
	ID      string    `json:"id" doc:"The ID in the file's head, in hexadecimal."`
	Guest   string    `json:"guest" doc:"The name of the guest in the file."`
	Offset  int64     `json:"offset" doc:"How many bytes of the file came, and need not be sent again."`
	Changed time.Time `json:"changed" doc:"When the last of them came."`
}

const (
	patternPack   = "GET /v1/guests/{name}/pack"
	patternUnpack = "POST /v1/unpack"
	typePack      = "application/vnd.sublet.pack"
	// hearOut is how long, and how much, is read of a stream that was refused,
	// so that its sender reads the reason before it finds the way shut.
	hearOutTime  = 5 * time.Second
	hearOutBytes = 256 << 20
)

func (s *Server) packs() (Packs, error) {
	if s.backend.Packs == nil {
		return nil, missing("packing")
	}
	return s.backend.Packs, nil
}

func (s *Server) registerPacks(m routes) {
	m.HandleFunc(patternPack, s.servePack)
	m.HandleFunc(patternUnpack, s.serveUnpack)
	addList(s, operation("list-unpacks", http.MethodGet, "/v1/unpacks", "disks", "List what was unpacked in part"),
		func(ctx context.Context) ([]Unpacking, error) {
			p, err := s.packs()
			if err != nil {
				return nil, err
			}
			return p.Unpacks(ctx)
		})
	describePacks(s.api.OpenAPI())
}

func (s *Server) servePack(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	s.serveText(w, r, typePack, false, func(out io.Writer) error {
		if err := onlyKnown(r, "snapshot", "live"); err != nil {
			return err
		}
		o := PackOptions{Snapshot: r.URL.Query().Get("snapshot")}
		var err error
		if o.Live, err = boolean(r, "live"); err != nil {
			return err
		}
		if o.Snapshot != "" {
			if err := vps.ValidName("snapshot", o.Snapshot); err != nil {
				return err
			}
		}
		p, err := s.packs()
		if err != nil {
			return err
		}
		return streamError(ctx, p.Pack(ctx, r.PathValue("name"), o, out))
	})
}

func (s *Server) serveUnpack(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	done, err := s.unpack(ctx, r)
	if err == nil {
		w.Header().Set("Content-Type", typeJSON)
		done.Notes = notNil(done.Notes)
		_ = json.NewEncoder(w).Encode(done) // a caller that left needs no answer
		return
	}
	control := http.NewResponseController(w)
	// Else the server shuts the way as soon as it answers.
	_ = control.EnableFullDuplex()
	w.Header().Set("Connection", "close")
	s.refuse(w, r, streamError(ctx, err))
	if control.Flush() != nil {
		return
	}
	_ = control.SetReadDeadline(time.Now().Add(hearOutTime))
	_, _ = io.CopyN(io.Discard, r.Body, hearOutBytes)
}

func (s *Server) unpack(ctx context.Context, r *http.Request) (Unpacked, error) {
	if err := onlyKnown(r, "name", "storage", "start", "resume", "offset"); err != nil {
		return Unpacked{}, err
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != typePack {
		return Unpacked{}, vps.Errorf(vps.CodeInvalid, "a packed guest is sent as %s; set the Content-Type", typePack)
	}
	q := r.URL.Query()
	o := UnpackOptions{Name: q.Get("name"), Storage: q.Get("storage"), Resume: q.Get("resume")}
	if o.Start, err = boolean(r, "start"); err != nil {
		return Unpacked{}, err
	}
	if o.Name != "" {
		if err := vps.ValidName("name", o.Name); err != nil {
			return Unpacked{}, err
		}
	}
	if text := q.Get("offset"); text != "" {
		if o.Offset, err = strconv.ParseInt(text, 10, 64); err != nil || o.Offset < 0 {
			return Unpacked{}, vps.Invalid("offset", "%q is no place in a file", text)
		}
	}
	if (o.Resume == "") != (o.Offset == 0) {
		return Unpacked{}, vps.Invalid("offset", "resume and offset go together")
	}
	p, err := s.packs()
	if err != nil {
		return Unpacked{}, err
	}
	return p.Unpack(ctx, r.Body, o)
}

// describePacks documents the routes of this file that are streams.
func describePacks(doc *huma.OpenAPI) {
	binary := &huma.Schema{Type: huma.TypeString, Format: "binary"}
	pack := operation("pack-guest", http.MethodGet, "/v1/guests/{name}/pack", "disks", "Pack a guest")
	pack.Description = "The whole guest as one stream, a .sublet file. It has the hash of its password, as the host file has. " +
		"A failure after the first byte is a problem document in the trailer " + errorTrailer + ", and the stream has no end then."
	pack.Parameters = []*huma.Param{
		{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "Name of the guest."},
		query("snapshot", huma.TypeString, "Pack this snapshot of it."),
		query("live", huma.TypeBoolean, "Take a snapshot of a guest that runs, for this."),
	}
	pack.Responses = answers("200", "The .sublet file.", typePack, binary)

	unpack := operation("unpack-guest", http.MethodPost, "/v1/unpack", "disks", "Make a guest of a .sublet file")
	unpack.Description = "Answers when the whole file was checked and the guest is made. What came of a file that is cut off is kept for a day; see /v1/unpacks."
	unpack.Parameters = []*huma.Param{
		query("name", huma.TypeString, "What the guest is to be called; left out: as in the file."),
		query("storage", huma.TypeString, "Where its disks are to lie; left out: file."),
		query("start", huma.TypeBoolean, "Start it."),
		query("resume", huma.TypeString, "The ID of what was unpacked in part, to go on with."),
		query("offset", huma.TypeInteger, "Where in the file the body begins, then."),
	}
	unpack.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{typePack: {Schema: binary}}}
	unpack.Responses = answers("200", "The guest that was made.", typeJSON, doc.Components.Schemas.Schema(reflect.TypeFor[Unpacked](), true, "Unpacked"))
	for _, op := range []huma.Operation{pack, unpack} {
		doc.AddOperation(&op)
	}
}

// Pack writes a guest to w as a .sublet file. After an error the file has no
// end, and nobody takes it for whole.
func (c *Client) Pack(ctx context.Context, guest string, o PackOptions, w io.Writer) error {
	path, err := guestPath(guest, "/pack")
	if err != nil {
		return err
	}
	q := url.Values{}
	if o.Snapshot != "" {
		q.Set("snapshot", o.Snapshot)
	}
	if o.Live {
		q.Set("live", "true")
	}
	return c.stream(ctx, path, q, w)
}

// Unpack makes a guest of a .sublet file, or with o.Resume of what is behind
// o.Offset of it.
func (c *Client) Unpack(ctx context.Context, r io.Reader, o UnpackOptions) (Unpacked, error) {
	q := url.Values{}
	for key, value := range map[string]string{"name": o.Name, "storage": o.Storage, "resume": o.Resume} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if o.Start {
		q.Set("start", "true")
	}
	if o.Offset != 0 {
		q.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	return roundTrip[Unpacked](ctx, c, request{method: http.MethodPost, path: "/v1/unpack", query: q, body: r, contentType: typePack})
}

// Unpacks lists what was unpacked in part and can be gone on with.
func (c *Client) Unpacks(ctx context.Context) ([]Unpacking, error) {
	return getList[Unpacking](ctx, c, "/v1/unpacks", nil)
}
