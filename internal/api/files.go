package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// CopyOptions say what to copy.
type CopyOptions struct {
	// Path is one in the guest; Disk the disk that it lies on, empty for the
	// one that the guest boots from, whose root is the guest's.
	Path, Disk string
	// Unpack puts the archive into the folder Path as it is; otherwise the
	// archive is of one file or folder, which is placed as cp does.
	Unpack bool
}

// CheckOptions say what to check.
type CheckOptions struct {
	Disk   string
	Repair bool
}

// CheckReport is what a check found.
type CheckReport struct {
	Schema     int    `json:"schema_version"`
	Filesystem string `json:"filesystem" doc:"The kind that was found: ext4, xfs or btrfs."`
	Verdict    string `json:"verdict" enum:"clean,mended,damaged" doc:"What was found."`
	OK         bool   `json:"ok" doc:"Whether the filesystem is sound now."`
}

// Files works on the filesystems of guests that do not run.
type Files interface {
	// CopyOut writes a tar archive of a file or folder to w, and CopyIn takes
	// one. vps.CodeConflict: the guest runs. They stop when ctx ends.
	CopyOut(ctx context.Context, name string, o CopyOptions, w io.Writer) error
	CopyIn(ctx context.Context, name string, o CopyOptions, archive io.Reader) error
	// Check looks for damage, and mends it when asked to. What the program
	// says goes to w as it comes. It goes on when ctx ends.
	Check(ctx context.Context, name string, o CheckOptions, w io.Writer) (CheckReport, error)
}

// The routes of this file; all are streams.
const (
	patternCopyOut = "GET /v1/guests/{name}/files"
	patternCopyIn  = "PUT /v1/guests/{name}/files"
	patternCheck   = "POST /v1/guests/{name}/fsck"
	typeTar        = "application/x-tar"
)

// maxPath is how long a path may be (PATH_MAX in linux/limits.h).
const maxPath = 4096

func (s *Server) files() (Files, error) {
	if s.backend.Files == nil {
		return nil, missing("access to guests' files")
	}
	return s.backend.Files, nil
}

func copyOptions(r *http.Request) (o CopyOptions, err error) {
	if err := onlyKnown(r, "path", "disk", "unpack"); err != nil {
		return o, err
	}
	q := r.URL.Query()
	o.Path, o.Disk = q.Get("path"), q.Get("disk")
	if o.Path == "" || len(o.Path) > maxPath {
		return o, vps.Invalid("path", "name a path in the guest, of at most %d characters", maxPath)
	}
	if err := validDisk(o.Disk); err != nil {
		return o, err
	}
	o.Unpack, err = boolean(r, "unpack")
	return o, err
}

func validDisk(name string) error {
	if name == "" {
		return nil
	}
	return vps.ValidName("disk", name)
}

func (s *Server) serveCopyOut(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	s.serveText(w, r, typeTar, false, func(out io.Writer) error {
		o, err := copyOptions(r)
		if err != nil {
			return err
		}
		f, err := s.files()
		if err != nil {
			return err
		}
		return streamError(ctx, f.CopyOut(ctx, r.PathValue("name"), o, out))
	})
}

func (s *Server) serveCopyIn(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	o, err := copyOptions(r)
	var f Files
	if err == nil {
		f, err = s.files()
	}
	if err == nil {
		err = streamError(ctx, f.CopyIn(ctx, r.PathValue("name"), o, r.Body))
	}
	if err != nil {
		w.Header().Set("Connection", "close") // the rest of the archive is not worth reading
		s.refuse(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// checkLine is one line of a check's answer.
type checkLine struct {
	Text   string       `json:"text,omitempty" doc:"What the program says, as it comes."`
	Report *CheckReport `json:"report,omitempty" doc:"What was found, in the last line only."`
}

// lineWriter makes lines of JSON of what is written.
type lineWriter struct {
	mu  sync.Mutex
	enc *json.Encoder
}

// Write never fails: the work goes on when nobody listens.
func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.enc.Encode(checkLine{Text: string(b)})
	return len(b), nil
}

func (s *Server) serveCheck(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	s.serveText(w, r, typeLines, true, func(out io.Writer) error {
		if err := onlyKnown(r, "disk", "repair"); err != nil {
			return err
		}
		o := CheckOptions{Disk: r.URL.Query().Get("disk")}
		if err := validDisk(o.Disk); err != nil {
			return err
		}
		var err error
		if o.Repair, err = boolean(r, "repair"); err != nil {
			return err
		}
		f, err := s.files()
		if err != nil {
			return err
		}
		enc := json.NewEncoder(out)
		report, err := f.Check(ctx, r.PathValue("name"), o, &lineWriter{enc: enc})
		if err != nil {
			return streamError(ctx, err)
		}
		report.Schema = SchemaVersion
		return enc.Encode(checkLine{Report: &report})
	})
}

func copyQuery(o CopyOptions) url.Values {
	q := url.Values{"path": {o.Path}}
	if o.Disk != "" {
		q.Set("disk", o.Disk)
	}
	if o.Unpack {
		q.Set("unpack", "true")
	}
	return q
}

// CopyOut writes a tar archive of a file or folder of a guest that does not
// run to w. What is in it is the guest's: see package tree.
func (c *Client) CopyOut(ctx context.Context, name string, o CopyOptions, w io.Writer) error {
	path, err := guestPath(name, "/files")
	if err != nil {
		return err
	}
	return c.stream(ctx, path, copyQuery(o), w)
}

// CopyIn copies a tar archive into a guest that does not run.
func (c *Client) CopyIn(ctx context.Context, name string, o CopyOptions, archive io.Reader) error {
	path, err := guestPath(name, "/files")
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, request{method: http.MethodPut, path: path, query: copyQuery(o), body: archive, contentType: typeTar})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Check looks for damage in the filesystem of a guest that does not run. What
// the program says goes to w as it comes. The check goes on when ctx ends.
func (c *Client) Check(ctx context.Context, name string, o CheckOptions, w io.Writer) (CheckReport, error) {
	path, err := guestPath(name, "/fsck")
	if err != nil {
		return CheckReport{}, err
	}
	q := url.Values{}
	if o.Disk != "" {
		q.Set("disk", o.Disk)
	}
	if o.Repair {
		q.Set("repair", "true")
	}
	resp, err := c.do(ctx, request{method: http.MethodPost, path: path, query: q})
	if err != nil {
		return CheckReport{}, err
	}
	defer closeQuietly(resp.Body)
	lines := json.NewDecoder(resp.Body)
	for {
		var line checkLine
		err := lines.Decode(&line)
		switch {
		case errors.Is(err, io.EOF) && resp.Trailer.Get(errorTrailer) != "":
			return CheckReport{}, decodeProblem(http.StatusInternalServerError, []byte(resp.Trailer.Get(errorTrailer)))
		case errors.Is(err, io.EOF):
			return CheckReport{}, c.lost(ctx, io.ErrUnexpectedEOF)
		case err != nil:
			return CheckReport{}, c.lost(ctx, err)
		case line.Report != nil:
			return *line.Report, nil
		}
		if _, err := io.WriteString(w, line.Text); err != nil {
			return CheckReport{}, fmt.Errorf("write what the check says: %w", err)
		}
	}
}

// describeFiles documents the routes of this file.
func describeFiles(doc *huma.OpenAPI) {
	const tag, path = "guests", "/v1/guests/{name}/files"
	name := &huma.Param{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "Name of the guest."}
	where := &huma.Param{Name: "path", In: "query", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "A path in the guest."}
	disk := query("disk", huma.TypeString, "The disk; left out, the one that the guest boots from.")
	binary := &huma.Schema{Type: huma.TypeString, Format: "binary"}

	out := operation("copy-out", http.MethodGet, path, tag, "Copy files out of a guest that does not run")
	out.Description = "A tar archive (pax) of the file or folder. Its members are called as its last part, or \".\" when the path ends in \"/.\". " +
		"What is in it is the guest's, so unpack it with care. A failure after the first byte is a problem document in the trailer " + errorTrailer + "."
	out.Parameters = []*huma.Param{name, where, disk}
	out.Responses = answers("200", "The archive.", typeTar, binary)

	in := operation("copy-in", http.MethodPut, path, tag, "Copy files into a guest that does not run")
	in.Description = "Takes a tar archive of one file or folder, which is placed as cp does: into the path where that is a folder, and else in its place."
	in.Parameters = []*huma.Param{name, where, disk, query("unpack", huma.TypeBoolean, "Take any archive, and put all of it into the folder.")}
	in.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{typeTar: {Schema: binary}}}
	in.Responses = answers("204", "It is copied.", "", nil)

	line := doc.Components.Schemas.Schema(reflect.TypeFor[checkLine](), true, "CheckLine")
	check := operation("fsck-guest", http.MethodPost, "/v1/guests/{name}/fsck", tag, "Check the filesystem of a guest that does not run")
	check.Description = fmt.Sprintf("The answer is one JSON object per line: what the program says as it comes, and the report in the last one. Damage is no failure of the "+
		"request. A failure after the first byte is a problem document in the trailer %s. The check goes on when its caller leaves.", errorTrailer)
	check.Parameters = []*huma.Param{name, disk, query("repair", huma.TypeBoolean, "Mend what is found.")}
	check.Responses = answers("200", "What the program says, and the report.", typeLines, line)
	for _, op := range []huma.Operation{out, in, check} {
		doc.AddOperation(&op)
	}
}
