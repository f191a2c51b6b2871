package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"syscall"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// statuses is the one table between codes and HTTP statuses. No status stands
// for two codes, so that either tells the other.
func statuses() map[vps.Code]int {
	return map[vps.Code]int{
		vps.CodeInternal:    http.StatusInternalServerError,
		vps.CodeInvalid:     http.StatusUnprocessableEntity,
		vps.CodeNotFound:    http.StatusNotFound,
		vps.CodeConflict:    http.StatusConflict,
		vps.CodeDenied:      http.StatusForbidden,
		vps.CodeTimeout:     http.StatusGatewayTimeout,
		vps.CodeUnavailable: http.StatusServiceUnavailable,
		vps.CodePartial:     http.StatusFailedDependency,
	}
}

// statusOf returns the HTTP status of a code; a code that is not known is a
// fault of ours.
func statusOf(code vps.Code) int {
	if status, ok := statuses()[code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// codeOf returns the code of an HTTP status. A status that no code has comes
// from the HTTP layer itself: 4xx is a wrong request, anything else a fault.
func codeOf(status int) vps.Code {
	for code, s := range statuses() {
		if s == status {
			return code
		}
	}
	if status >= 400 && status < 500 {
		return vps.CodeInvalid
	}
	return vps.CodeInternal
}

// Problem is an error as it travels: RFC 9457 with two members of our own.
type Problem struct { //nolint:errname // RFC 9457 calls it a problem, and so does the document
	Title  string   `json:"title" doc:"The HTTP status as text." example:"Not Found"`
	Status int      `json:"status" doc:"The HTTP status." example:"404"`
	Detail string   `json:"detail" doc:"A sentence for people: what is wrong and what to do." example:"there is no guest bob; sublet list shows all"`
	Code   vps.Code `json:"code" doc:"What kind of error it is, for programs."`
	Field  string   `json:"field,omitempty" doc:"The offending input, as a path." example:"forwards[1].host"`
}

// Error returns the sentence. With GetStatus it makes a Problem an error that
// huma writes as it is.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType replaces plain JSON by the media type of problem documents.
func (p *Problem) ContentType(string) string { return typeProblem }

// problemOf translates an error for the wire. The cause stays behind.
func problemOf(err error) *Problem {
	e, ok := errors.AsType[*vps.Error](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		e = &vps.Error{Code: vps.CodeTimeout, Message: "this was not done in the time given"}
	case errors.Is(err, context.Canceled):
		e = &vps.Error{Code: vps.CodeUnavailable, Message: "the daemon is stopping; try again when it is back"}
	default:
		e = &vps.Error{Code: vps.CodeInternal, Message: vps.ErrorMessage(err)}
	}
	status := statusOf(e.Code)
	return &Problem{
		Title: http.StatusText(status), Status: status,
		Code: e.Code, Field: e.Field, Detail: e.Message,
	}
}

// problemOfHuma translates what huma found wrong with a request: the first
// finding, with its place as the field. Values are not repeated, because one
// of them may be a password's hash.
func problemOfHuma(m *huma.ErrorModel) *Problem {
	p := &Problem{Title: http.StatusText(m.Status), Status: m.Status, Code: codeOf(m.Status), Detail: m.Detail}
	if len(m.Errors) == 0 || m.Errors[0] == nil {
		return p
	}
	first := m.Errors[0]
	p.Field, p.Detail = first.Location, first.Message
	for _, where := range []string{"body", "query", "path", "header"} {
		if rest, ok := strings.CutPrefix(first.Location, where); ok && (rest == "" || rest[0] == '.') {
			p.Field = strings.TrimPrefix(rest, ".")
			break
		}
	}
	switch p.Detail {
	case "unexpected property":
		p.Detail = "this member is not known; check its spelling"
	case "unknown query parameter":
		p.Detail = "this parameter is not known; check its spelling"
	}
	if known, ok := strings.CutPrefix(p.Detail, "expected value to be one of "); ok {
		p.Detail = "this is not known; use one of " + strings.Trim(known, `"`)
	}
	if form, ok := strings.CutPrefix(p.Detail, "expected string to be "); ok { // by a pattern, which has a description
		p.Detail = "this is not " + form
	}
	return p
}

// translate is the huma transformer that lets no other kind of error out.
func translate(_ huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		return problemOfHuma(m), nil
	}
	return v, nil
}

// fail logs the cause of an error and returns what the caller may read of it.
func (s *Server) fail(ctx context.Context, err error) *Problem {
	p := problemOf(err)
	level := slog.LevelDebug
	if p.Code == vps.CodeInternal {
		level = slog.LevelError
	}
	s.log.LogAttrs(ctx, level, "request failed",
		slog.String("code", string(p.Code)), slog.Any("error", err))
	return p
}

// refuse answers with a problem. It is for handlers that huma does not run.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, s.fail(r.Context(), err))
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	h := w.Header()
	h.Set("Content-Type", typeProblem)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("Content-Length")
	w.WriteHeader(p.Status)
	// The client that does not read this is gone; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(p)
}

// decodeProblem is the way back, for the client. It always returns an error.
func decodeProblem(status int, body []byte) error {
	var p Problem
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		return &vps.Error{Code: codeOf(status), Message: fmt.Sprintf("the daemon answered %d %s", status, http.StatusText(status))}
	}
	if _, known := statuses()[p.Code]; !known {
		p.Code = codeOf(status)
	}
	return &vps.Error{Code: p.Code, Field: p.Field, Message: p.Detail}
}

// lost explains why a request brought no answer.
func (c *Client) lost(ctx context.Context, err error) error {
	const start = "start it with `systemctl start sublet`, or with `make up` in the checkout"
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return e // said already: see NewRemoteClient
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return vps.Wrap(vps.CodeTimeout, ctx.Err(), "the daemon did not answer in the time given")
	case ctx.Err() != nil:
		return vps.Wrap(vps.CodeTimeout, ctx.Err(), "interrupted before the daemon answered")
	case c.remote:
		return c.lostRemote(err)
	case errors.Is(err, fs.ErrPermission):
		return vps.Wrap(vps.CodeUnavailable, err, "you may not use the daemon's socket %s; run this as root, or join the group that `ls -l` shows for it and log in again", c.socket)
	case errors.Is(err, fs.ErrNotExist):
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon does not run: there is no socket %s; %s", c.socket, start)
	case errors.Is(err, syscall.ECONNREFUSED):
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon does not run: nobody answers on %s; %s", c.socket, start)
	case errors.Is(err, syscall.EINVAL) && len(c.socket) > maxSocketPath:
		return vps.Wrap(vps.CodeUnavailable, err, "the socket's path %s is %d bytes long, and the system allows %d; choose a shorter one", c.socket, len(c.socket), maxSocketPath)
	case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EPROTOTYPE):
		return vps.Wrap(vps.CodeUnavailable, err, "%s is not the daemon's socket; give the right path", c.socket)
	default:
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon on %s ended before it answered; whether anything was changed is not known, so look before you try again", c.socket)
	}
}
