package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"sublet/internal/vps"
)

// DefaultSocket is where the daemon listens unless it is told otherwise.
const DefaultSocket = "/run/sublet/api.sock"

// maxReply bounds what the client reads of one answer, in bytes. The largest
// are lists of images with all their packages, some hundred KiB each.
const maxReply = 64 << 20

// Client speaks to the daemon. Every error it returns is a *vps.Error with
// the code, field and sentence that the daemon gave; a daemon that cannot be
// reached is vps.CodeUnavailable, and a ctx that ends is vps.CodeTimeout
// wrapping ctx's error.
//
// A Client is safe for concurrent use. It holds at most a few idle
// connections, which Close lets go.
type Client struct {
	socket string
	// remote tells that socket is HOST:PORT.
	remote bool
	http   *http.Client
}

// NewClient returns a client of the daemon that listens on this unix socket;
// "" is DefaultSocket. Nothing is dialled before the first call.
func NewClient(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	return newClient(socket, func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
}

// Unusable returns a client whose every call fails with err, which tells what
// is wrong with how the daemon is named to whoever needs the daemon, and to
// nobody else. err should be a *vps.Error.
func Unusable(err error) *Client {
	return newClient("", func(context.Context, string, string) (net.Conn, error) { return nil, err })
}

// newClient returns a client that reaches its daemon by dial; where names the
// daemon in errors.
func newClient(where string, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Client {
	transport := &http.Transport{
		DialContext:        dial,
		DisableCompression: true,
		MaxIdleConns:       4,
		IdleConnTimeout:    30 * time.Second,
		// For requests that wait to be asked for their body.
		ExpectContinueTimeout: 30 * time.Second,
	}
	return &Client{socket: where, http: &http.Client{
		Transport: transport,
		// The API never redirects; a redirect would only come from a path
		// that a name has changed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close lets idle connections go. The client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Socket returns the path, or the address, that the client dials.
func (c *Client) Socket() string { return c.socket }

// Guests returns all guests, sorted as the daemon keeps them: by name.
func (c *Client) Guests(ctx context.Context) ([]Guest, error) {
	return getList[Guest](ctx, c, "/v1/guests", nil)
}

// Guest returns one guest, or vps.CodeNotFound.
func (c *Client) Guest(ctx context.Context, name string) (Guest, error) {
	path, err := guestPath(name, "")
	if err != nil {
		return Guest{}, err
	}
	return get[Guest](ctx, c, path, nil)
}

// CreateGuest asks for a new guest and returns when the wish is kept, which
// is before the guest exists; Wait waits for that. With dryRun nothing is
// changed, and the answer tells what would be.
func (c *Client) CreateGuest(ctx context.Context, g CreateGuest, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodPost, "/v1/guests", dryRunQuery(dryRun), g)
}

// UpdateGuest changes the fields that are not nil. With dryRun nothing is
// changed. An error for which Changed is true says that the guest was not as
// u.Expect has it.
func (c *Client) UpdateGuest(ctx context.Context, name string, u UpdateGuest, dryRun bool) (Change, error) {
	path, err := guestPath(name, "")
	if err != nil {
		return Change{}, err
	}
	u.SSHKeys = emptyNotNull(u.SSHKeys)
	u.DNS = emptyNotNull(u.DNS)
	u.Forwards = emptyNotNull(u.Forwards)
	u.Domains = emptyNotNull(u.Domains)
	u.Rules = emptyNotNull(u.Rules)
	if u.Expect != nil {
		u.Expect = &Expect{emptyNotNull(u.Expect.SSHKeys), emptyNotNull(u.Expect.Forwards), emptyNotNull(u.Expect.Domains), emptyNotNull(u.Expect.Rules)}
	}
	return send[Change](ctx, c, http.MethodPatch, path, dryRunQuery(dryRun), u)
}

// Order starts, stops, restarts, kills or deletes a guest, and returns when
// the order is kept, not when it is carried out. timeout bounds an orderly
// stop before the guest is killed; zero means the guest's own stop timeout.
// With dryRun nothing is changed.
func (c *Client) Order(ctx context.Context, name string, order Order, timeout time.Duration, dryRun bool) (Change, error) {
	path, err := guestPath(name, "")
	if err != nil {
		return Change{}, err
	}
	method := http.MethodPost
	switch order {
	case OrderStart, OrderStop, OrderRestart, OrderKill:
		path += "/" + string(order)
	case OrderDelete:
		method = http.MethodDelete
	default:
		return Change{}, vps.Invalid("order", "%q is not an order; use start, stop, restart, kill or delete", order)
	}
	query := dryRunQuery(dryRun)
	if timeout != 0 {
		query.Set("timeout", timeout.String())
	}
	return send[Change](ctx, c, method, path, query, nil)
}

// Wait blocks until the guest is in the state asked for and returns it as it
// is then; for WaitDeleted the guest is the zero value. After timeout it
// returns vps.CodeTimeout; zero waits as long as ctx lives. A guest that
// cannot get there any more is an error at once.
func (c *Client) Wait(ctx context.Context, name string, what WaitFor, timeout time.Duration) (Guest, error) {
	path, err := guestPath(name, "/wait")
	if err != nil {
		return Guest{}, err
	}
	query := url.Values{"for": {string(what)}}
	if timeout != 0 {
		query.Set("timeout", timeout.String())
	}
	return get[Guest](ctx, c, path, query)
}

// Console opens the guest's console. The console lives until it is closed,
// the guest ends, somebody takes it over, or ctx ends.
func (c *Client) Console(ctx context.Context, name string, o ConsoleOptions) (*ConsoleConn, error) {
	path, err := guestPath(name, "/console")
	if err != nil {
		return nil, err
	}
	return c.console(ctx, path, o)
}

// Logs writes the last lines of the guest's console log to w, 0 for all of
// it, and with follow goes on until ctx ends or the guest is deleted. A ctx
// that ends while following is the normal end and returns nil. A failure of
// w itself comes back as the cause of a vps.CodeInternal.
func (c *Client) Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	return c.logs(ctx, name, "/logs", lines, follow, w)
}

// AccessLog does the same with the log of callers of the guest's domains.
func (c *Client) AccessLog(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	return c.logs(ctx, name, "/access-log", lines, follow, w)
}

func (c *Client) logs(ctx context.Context, name, which string, lines int, follow bool, w io.Writer) error {
	path, err := guestPath(name, which)
	if err != nil {
		return err
	}
	query := url.Values{}
	if lines != 0 {
		query.Set("lines", strconv.Itoa(lines))
	}
	if follow {
		query.Set("follow", "true")
	}
	if err := c.stream(ctx, path, query, w); err != nil && (!follow || ctx.Err() == nil) {
		return err
	}
	return nil
}

// Tenants returns all tenants, sorted by name.
func (c *Client) Tenants(ctx context.Context) ([]vps.Tenant, error) {
	return getList[vps.Tenant](ctx, c, "/v1/tenants", nil)
}

// PutTenant creates the tenant or changes what is not nil in t. It is
// idempotent.
func (c *Client) PutTenant(ctx context.Context, name string, t UpdateTenant) error {
	if err := vps.ValidName("name", name); err != nil {
		return err
	}
	_, err := send[struct{}](ctx, c, http.MethodPut, "/v1/tenants/"+name, nil, t)
	return err
}

// DeleteTenant removes a tenant that owns no guest any more; one that does is
// vps.CodeConflict.
func (c *Client) DeleteTenant(ctx context.Context, name string) error {
	if err := vps.ValidName("name", name); err != nil {
		return err
	}
	_, err := send[struct{}](ctx, c, http.MethodDelete, "/v1/tenants/"+name, nil, nil)
	return err
}

// Apply makes the host's desired state what the file says, at most 1 MiB of
// YAML. The whole file is one transaction: after an error nothing is changed.
func (c *Client) Apply(ctx context.Context, file io.Reader, o ApplyOptions) (Change, error) {
	body, err := io.ReadAll(io.LimitReader(file, MaxBody+1))
	if err != nil {
		return Change{}, vps.Wrap(vps.CodeInvalid, err, "the host file cannot be read")
	}
	if len(body) > MaxBody {
		return Change{}, vps.Errorf(vps.CodeInvalid, "the host file is larger than %s; split it, or check that it is the right file", vps.Bytes(MaxBody))
	}
	query := dryRunQuery(o.DryRun)
	if o.Prune {
		query.Set("prune", "true")
	}
	return roundTrip[Change](ctx, c, request{
		method: http.MethodPost, path: "/v1/apply", query: query,
		body: bytes.NewReader(body), contentType: typeYAML,
	})
}

// Export writes the host file that Apply reads. Applying it to the same host
// changes nothing.
func (c *Client) Export(ctx context.Context, w io.Writer) error {
	return c.stream(ctx, "/v1/export", nil, w)
}

// Host returns what the host says of itself.
func (c *Client) Host(ctx context.Context) (HostInfo, error) {
	return get[HostInfo](ctx, c, "/v1/host", nil)
}

// Events returns events with an ID above after, oldest first, at most limit
// of them; 0 means the daemon's default. An empty guest means all guests.
func (c *Client) Events(ctx context.Context, guest string, after int64, limit int) ([]vps.Event, error) {
	query := url.Values{}
	if guest != "" {
		query.Set("guest", guest)
	}
	if after != 0 {
		query.Set("after", strconv.FormatInt(after, 10))
	}
	if limit != 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	return getList[vps.Event](ctx, c, "/v1/events", query)
}

// Doctor checks the host and returns what it found, good and bad.
func (c *Client) Doctor(ctx context.Context) ([]Finding, error) {
	return getList[Finding](ctx, c, "/v1/doctor", nil)
}

// Images returns all images.
func (c *Client) Images(ctx context.Context) ([]vps.Image, error) {
	return getList[vps.Image](ctx, c, "/v1/images", nil)
}

// Image returns the newest version of an image, or vps.CodeNotFound.
func (c *Client) Image(ctx context.Context, name string) (vps.Image, error) {
	if err := vps.ValidImageName("image", name); err != nil {
		return vps.Image{}, err
	}
	return get[vps.Image](ctx, c, "/v1/images/"+name, nil)
}

// BuildImage starts building an image, for example "debian/12", and returns
// at once; Operation tells how far it is. It comes from the archive at mirror, or
// from those that the host knows when that is empty.
func (c *Client) BuildImage(ctx context.Context, name, mirror string) (Operation, error) {
	return send[Operation](ctx, c, http.MethodPost, "/v1/images", nil, buildBody{Name: name, Mirror: mirror})
}

// Operation returns the state of long work, or vps.CodeNotFound for one that
// is unknown or long done. How the work itself ended is in the answer's Code
// and Error, not in the error of this call.
func (c *Client) Operation(ctx context.Context, id string) (Operation, error) {
	if err := validID(id); err != nil {
		return Operation{}, err
	}
	return get[Operation](ctx, c, "/v1/operations/"+id, nil)
}

// DeleteImage removes an image that no guest is made from; otherwise it is
// vps.CodeConflict.
func (c *Client) DeleteImage(ctx context.Context, name string) error {
	if err := vps.ValidImageName("image", name); err != nil {
		return err
	}
	_, err := send[struct{}](ctx, c, http.MethodDelete, "/v1/images/"+name, nil, nil)
	return err
}

// Version returns the daemon's version. It is also the cheapest way to learn
// whether the daemon answers.
func (c *Client) Version(ctx context.Context) (VersionInfo, error) {
	return get[VersionInfo](ctx, c, "/v1/version", nil)
}

// guestPath refuses a name that could become another path before it is sent.
func guestPath(name, suffix string) (string, error) {
	if err := vps.ValidName("name", name); err != nil {
		return "", err
	}
	return "/v1/guests/" + name + suffix, nil
}

func dryRunQuery(dryRun bool) url.Values {
	query := url.Values{}
	if dryRun {
		query.Set("dry_run", "true")
	}
	return query
}

// emptyNotNull keeps "empty the list" apart from "leave it": a pointer to a
// nil slice would be written as null.
func emptyNotNull[T any](list *[]T) *[]T {
	if list != nil && *list == nil {
		return &[]T{}
	}
	return list
}

// request is one call, before it is bound to a context.
type request struct {
	method, path string
	query        url.Values
	body         io.Reader
	contentType  string
	header       http.Header
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	return roundTrip[T](ctx, c, request{method: http.MethodGet, path: path, query: query})
}

func getList[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	answer, err := get[list[T]](ctx, c, path, query)
	return answer.Items, err
}

func send[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	r := request{method: method, path: path, query: query}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			var none T
			return none, vps.Wrap(vps.CodeInternal, err, "the request cannot be written as JSON")
		}
		r.body, r.contentType = bytes.NewReader(body), typeJSON
	}
	return roundTrip[T](ctx, c, r)
}

// roundTrip sends a request and reads the whole answer as JSON.
func roundTrip[T any](ctx context.Context, c *Client, r request) (T, error) {
	var out, none T
	resp, err := c.do(ctx, r)
	if err != nil {
		return none, err
	}
	defer closeQuietly(resp.Body)
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return none, c.lost(ctx, err)
	}
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return none, vps.Wrap(vps.CodeInternal, err, "the daemon's answer to %s %s is not understood; are client and daemon of the same version?", r.method, r.path)
	}
	return out, nil
}

// stream copies an answer to w while it arrives. A failure after the first
// byte comes in a trailer.
func (c *Client) stream(ctx context.Context, path string, query url.Values, w io.Writer) error {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: path, query: query})
	if err != nil {
		return err
	}
	defer closeQuietly(resp.Body)
	out := &remember{w: w}
	if _, err := io.Copy(out, resp.Body); err != nil {
		if out.err != nil {
			return vps.Wrap(vps.CodeInternal, out.err, "the output cannot be written")
		}
		return c.lost(ctx, err)
	}
	if text := resp.Trailer.Get(errorTrailer); text != "" {
		return decodeProblem(http.StatusInternalServerError, []byte(text))
	}
	return nil
}

// remember keeps the error of a writer, to tell it from one of the network.
type remember struct {
	w   io.Writer
	err error
}

func (r *remember) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if err != nil {
		r.err = err
	}
	return n, err
}

// do sends a request and turns every answer that is not a success into an
// error. The caller closes the body.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	target := url.URL{Scheme: "http", Host: "sublet", Path: r.path, RawQuery: r.query.Encode()}
	req, err := http.NewRequestWithContext(ctx, r.method, target.String(), r.body)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "%s %s is not a request that can be sent", r.method, r.path)
	}
	maps.Copy(req.Header, r.header)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || (resp.StatusCode >= 200 && resp.StatusCode < 300) {
		return resp, nil
	}
	defer closeQuietly(resp.Body)
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	return nil, decodeProblem(resp.StatusCode, body)
}

// closeQuietly is for bodies that were read: their Close has nothing to tell.
func closeQuietly(c io.Closer) { _ = c.Close() }

// validID refuses what is no identifier of an operation.
func validID(id string) error {
	if id == "" || len(id) > 64 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
		return vps.Invalid("id", "%q is not the id of an operation", id)
	}
	return nil
}
