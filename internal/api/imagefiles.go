package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

const (
	patternImport = "POST /v1/images/{distribution}/{release}/import"

	patternImageExport = "GET /v1/images/{distribution}/{release}/export"

	typeBytes = "application/octet-stream"

	// uploadPatience is how long a sender may send nothing.
	uploadPatience = 2 * time.Minute
	// What is read of a file that was refused, so that the sender gets to read
	// why: most clients read no answer before they have sent all.
	drainBytes = 1 << 30
	drainTime  = 30 * time.Second
)

// ImportImage says how an image is made of a file.
type ImportImage struct {
	Filesystem string    // ext4, xfs or btrfs; empty is ext4, or what the file has
	Capacity   vps.Bytes // largest disk of guests as overlays on it; 0 is the host's usual
	Partition  int       // of a disk, with its root filesystem; 0 finds it
}

// ImageFiles moves images in and out.
type ImageFiles interface {
	// ImportImage takes the file in, then starts to make an image of it and
	// returns. A file that breaks off leaves nothing.
	ImportImage(ctx context.Context, name string, o ImportImage, file io.Reader) (Operation, error)
	// ExportImage writes a version as one file that ImportImage takes; an empty
	// id means the newest.
	ExportImage(ctx context.Context, name, id string, w io.Writer) error
	// VerifyImage starts to compare all versions with their hashes.
	VerifyImage(ctx context.Context, name string) (Operation, error)
	// ImageVersions lists all versions, oldest first.
	ImageVersions(ctx context.Context, name string) ([]ImageVersion, error)
}

// ImageVersion is a version of an image.
type ImageVersion struct {
	vps.Image
	Newest bool     `json:"newest" doc:"Whether new guests are made from it."`
	Guests []string `json:"guests" doc:"Names of the guests on it."`
}

func (s *Server) imageFiles() (ImageFiles, error) {
	if s.backend.ImageFiles == nil {
		return nil, missing("images")
	}
	return s.backend.ImageFiles, nil
}

func (s *Server) serveImport(w http.ResponseWriter, r *http.Request) {
	var op Operation
	taken := s.receive(w, r, func(ctx context.Context, body io.Reader) (err error) {
		op, err = s.importImage(ctx, r, body)
		return err
	})
	if !taken {
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	w.Header().Set("Location", "/v1/operations/"+op.ID)
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(op) // a caller that left needs no answer
}

func (s *Server) serveImageExport(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	s.serveText(w, r, typeBytes, false, func(out io.Writer) error {
		if err := onlyKnown(r, "version"); err != nil {
			return err
		}
		files, err := s.imageFiles()
		if err != nil {
			return err
		}
		name := r.PathValue("distribution") + "/" + r.PathValue("release")
		return streamError(ctx, files.ExportImage(ctx, name, r.URL.Query().Get("version"), out))
	})
}

// registerImageFiles adds the routes that huma can run.
func (s *Server) registerImageFiles() {
	const tag = "images"
	register(s, operation("list-image-versions", http.MethodGet, "/v1/images/{distribution}/{release}/versions", tag, "List the versions of an image"),
		func(ctx context.Context, in *imageInput) (*reply[list[ImageVersion]], error) {
			files, err := s.imageFiles()
			if err != nil {
				return nil, err
			}
			versions, err := files.ImageVersions(ctx, in.name())
			for i := range versions {
				versions[i].Image = shownImage(versions[i].Image)
				versions[i].Guests = notNil(versions[i].Guests)
			}
			return listOf(versions, err)
		})
	verify := operation("verify-image", http.MethodPost, "/v1/images/{distribution}/{release}/verify", tag, "Compare an image with its hash")
	verify.Description = "Reads all bytes of all versions. Answers at once with the operation to follow, which fails when one is damaged."
	verify.DefaultStatus = http.StatusAccepted
	register(s, verify, func(ctx context.Context, in *imageInput) (*buildOutput, error) {
		files, err := s.imageFiles()
		if err != nil {
			return nil, err
		}
		return begun(files.VerifyImage(ctx, in.name()))
	})
}

func (s *Server) importImage(ctx context.Context, r *http.Request, body io.Reader) (Operation, error) {
	if err := onlyKnown(r, "filesystem", "capacity", "partition"); err != nil {
		return Operation{}, err
	}
	capacity, err := bytesOf(r, "capacity")
	if err != nil {
		return Operation{}, err
	}
	const most = 1024
	partition, err := integer(r, "partition", most)
	if err != nil {
		return Operation{}, err
	}
	files, err := s.imageFiles()
	if err != nil {
		return Operation{}, err
	}
	name := r.PathValue("distribution") + "/" + r.PathValue("release")
	return files.ImportImage(ctx, name, ImportImage{Filesystem: r.URL.Query().Get("filesystem"), Capacity: capacity, Partition: partition}, body)
}

// bytesOf reads a number of bytes in a query; "" is 0.
func bytesOf(r *http.Request, key string) (vps.Bytes, error) {
	text := r.URL.Query().Get(key)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, vps.Invalid(key, "%q is not a number of bytes", text)
	}
	return vps.Bytes(n), nil
}

// receive has take read a body for as long as its sender needs. What take
// refuses is answered; the return value tells whether the answer is still due.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, take func(ctx context.Context, body io.Reader) error) bool {
	ctx, cancel := stream(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	body := &patient{r: r.Body, control: control}
	err := take(ctx, body)
	if err != nil {
		body.drain()
	}
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		w.Header().Set("Connection", "close")
		s.refuse(w, r, streamError(ctx, err))
	}
	return err == nil
}

// patient reads a body of any size from a sender who has to send something now
// and then.
type patient struct {
	r       io.Reader
	control *http.ResponseController
	began   bool
}

func (p *patient) Read(b []byte) (int, error) {
	p.began = true
	_ = p.control.SetReadDeadline(time.Now().Add(uploadPatience))
	return p.r.Read(b)
}

// drain reads what still comes, within bounds. A sender who was never asked for
// the file waits for that, and has sent nothing.
func (p *patient) drain() {
	if !p.began {
		return
	}
	_ = p.control.SetReadDeadline(time.Now().Add(drainTime))
	_, _ = io.CopyN(io.Discard, p.r, drainBytes) // the answer is what counts
}

// ImportImage sends a file to make an image of and returns when it has arrived
// and the work has begun; Operation tells how far that is.
func (c *Client) ImportImage(ctx context.Context, name string, o ImportImage, file io.Reader) (Operation, error) {
	if err := vps.ValidImageName("name", name); err != nil {
		return Operation{}, err
	}
	query := url.Values{}
	if o.Filesystem != "" {
		query.Set("filesystem", o.Filesystem)
	}
	if o.Capacity != 0 {
		query.Set("capacity", strconv.FormatInt(int64(o.Capacity), 10))
	}
	if o.Partition != 0 {
		query.Set("partition", strconv.Itoa(o.Partition))
	}
	// The daemon may refuse before the file is sent.
	header := http.Header{"Expect": {"100-continue"}}
	body := &source{r: file}
	op, err := roundTrip[Operation](ctx, c, request{
		method: http.MethodPost, path: "/v1/images/" + name + "/import", query: query, body: body, contentType: typeBytes, header: header,
	})
	if body.err != nil {
		return Operation{}, vps.Wrap(vps.CodeInvalid, body.err, "the file cannot be read: %v", body.err)
	}
	return op, err
}

// ExportImage writes a version of an image to w, as one file that ImportImage
// takes; an empty id means the newest.
func (c *Client) ExportImage(ctx context.Context, name, id string, w io.Writer) error {
	if err := vps.ValidImageName("image", name); err != nil {
		return err
	}
	query := url.Values{}
	if id != "" {
		query.Set("version", id)
	}
	return c.stream(ctx, "/v1/images/"+name+"/export", query, w)
}

// VerifyImage starts to compare all versions of an image with their hashes.
func (c *Client) VerifyImage(ctx context.Context, name string) (Operation, error) {
	if err := vps.ValidImageName("image", name); err != nil {
		return Operation{}, err
	}
	return send[Operation](ctx, c, http.MethodPost, "/v1/images/"+name+"/verify", nil, nil)
}

// ImageVersions lists all versions of an image, oldest first.
func (c *Client) ImageVersions(ctx context.Context, name string) ([]ImageVersion, error) {
	if err := vps.ValidImageName("image", name); err != nil {
		return nil, err
	}
	return getList[ImageVersion](ctx, c, "/v1/images/"+name+"/versions", nil)
}

// source remembers the error of a reader, to tell it from one of the network.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// describeImageFiles documents the routes of this file.
func describeImageFiles(doc *huma.OpenAPI) {
	text := &huma.Schema{Type: huma.TypeString}
	bytes := &huma.Schema{Type: huma.TypeString, Format: "binary"}
	path := []*huma.Param{
		{Name: "distribution", In: "path", Required: true, Schema: text, Example: "arch"},
		{Name: "release", In: "path", Required: true, Schema: text, Example: "latest"},
	}
	in := operation("import-image", http.MethodPost, "/v1/images/{distribution}/{release}/import", "images", "Make an image of a file")
	in.Description = "The file is told by its contents: a root filesystem as a tar archive (plain, gzip, xz, zstd or bzip2), an OCI layout or what docker saves, as an archive, the image of a disk (a filesystem, partitions, or qcow2), or an exported image. " +
		"Answers when it has arrived, with the operation to follow. Send `Expect: 100-continue` to hear of a refusal before the file is sent."
	in.Parameters = append(slices.Clone(path),
		query("filesystem", huma.TypeString, "What it is put into: ext4, xfs or btrfs; left out: ext4."),
		query("capacity", huma.TypeInteger, "Bytes; the largest disk of guests whose disks are overlays on it."),
		query("partition", huma.TypeInteger, "Number of the partition of a disk that holds the root filesystem; left out: it is found."),
	)
	in.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{typeBytes: {Schema: bytes}}}
	in.Responses = answers("202", "The work has begun.", typeJSON, &huma.Schema{Ref: "#/components/schemas/Operation"})
	out := operation("export-image", http.MethodGet, "/v1/images/{distribution}/{release}/export", "images", "Write an image as one file")
	out.Description = "Importing it on another host gives the same version. A failure after the first byte is a problem document in the trailer " + errorTrailer + "."
	out.Parameters = append(slices.Clone(path), query("version", huma.TypeString, "ID of the version; left out: the newest."))
	out.Responses = answers("200", "The file.", typeBytes, bytes)
	doc.AddOperation(&in)
	doc.AddOperation(&out)
}
