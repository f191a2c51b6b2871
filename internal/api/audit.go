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

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// The kinds of attacks.
const (
	AttackNetwork = "network" // packets that a guest sends
	AttackJail    = "jail"    // what a guest's process tries on the host
)

// AuditResult is what became of one attack.
type AuditResult struct {
	Kind     string `json:"kind" enum:"network,jail" doc:"Whether it goes against the network's wall or against the process's jail."`
	Attack   string `json:"attack" doc:"Names the attack."`
	What     string `json:"what" doc:"What was tried, for people."`
	Expected string `json:"expected" doc:"What the wall or the jail has to make of it."`
	Seen     string `json:"seen" doc:"What became of it."`
	Counter  string `json:"counter" doc:"The counter that rose, or what refused it; empty when nothing did."`
	OK       bool   `json:"ok" doc:"Whether it was seen as expected."`
}

// AuditReport is the outcome of a whole audit.
type AuditReport struct {
	Schema  int           `json:"schema_version"`
	OK      bool          `json:"ok" doc:"Whether every attack was seen as expected."`
	Results []AuditResult `json:"results" doc:"All attacks, in the order in which they were made."`
}

// Auditor attacks its own host.
type Auditor interface {
	// Audit makes every attack and hands each result to progress as it comes,
	// which is not called by two goroutines at a time and not after Audit has
	// returned. It blocks for minutes, leaves nothing behind, also when ctx
	// ends before it is done, and is vps.CodeConflict while another one runs.
	// Attacks that got through are no error: the report says so.
	Audit(ctx context.Context, progress func(AuditResult)) (AuditReport, error)
}

// patternAudit is the route of the audit, whose answer is a stream.
const patternAudit = "POST /v1/audit"

// auditLine is one line of that stream: a result, or at the end the report.
type auditLine struct {
	Result *AuditResult `json:"result,omitempty" doc:"One result, as it came."`
	Report *AuditReport `json:"report,omitempty" doc:"The outcome, in the last line only."`
}

func (s *Server) serveAudit(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	s.serveText(w, r, typeLines, true, func(out io.Writer) error {
		if err := onlyKnown(r); err != nil {
			return err
		}
		auditor, err := s.auditor()
		if err != nil {
			return err
		}
		enc := json.NewEncoder(out)
		report, err := auditor.Audit(ctx, func(result AuditResult) {
			if enc.Encode(auditLine{Result: &result}) != nil {
				cancel() // nobody reads it any more
			}
		})
		if err != nil {
			return streamError(ctx, err)
		}
		report.Schema, report.Results = SchemaVersion, notNil(report.Results)
		return enc.Encode(auditLine{Report: &report})
	})
}

func (s *Server) auditor() (Auditor, error) {
	if s.backend.Auditor == nil {
		return nil, missing("the audit")
	}
	return s.backend.Auditor, nil
}

// Audit lets the daemon attack its own host, hands each result to progress as
// it comes, and returns the whole report. progress may be nil. It blocks for
// minutes; when ctx ends, the daemon stops the audit and removes what it made.
func (c *Client) Audit(ctx context.Context, progress func(AuditResult)) (AuditReport, error) {
	resp, err := c.do(ctx, request{method: http.MethodPost, path: "/v1/audit", query: url.Values{}})
	if err != nil {
		return AuditReport{}, err
	}
	defer closeQuietly(resp.Body)
	lines := json.NewDecoder(io.LimitReader(resp.Body, maxReply))
	for {
		var line auditLine
		err := lines.Decode(&line)
		var malformed *json.SyntaxError
		switch {
		case errors.Is(err, io.EOF) && resp.Trailer.Get(errorTrailer) != "":
			return AuditReport{}, decodeProblem(http.StatusInternalServerError, []byte(resp.Trailer.Get(errorTrailer)))
		case errors.As(err, &malformed):
			return AuditReport{}, vps.Wrap(vps.CodeInternal, err, "the daemon's report of the audit is not understood; are client and daemon of the same version?")
		case errors.Is(err, io.EOF):
			return AuditReport{}, c.lost(ctx, io.ErrUnexpectedEOF)
		case err != nil:
			return AuditReport{}, c.lost(ctx, err)
		case line.Report != nil:
			return *line.Report, nil
		case line.Result != nil && progress != nil:
			progress(*line.Result)
		}
	}
}

// describeAudit documents the route of this file.
func describeAudit(doc *huma.OpenAPI) {
	registry := doc.Components.Schemas
	line := registry.Schema(reflect.TypeFor[auditLine](), true, "AuditLine")
	audit := operation("audit", http.MethodPost, "/v1/audit", "host", "Attack the host from a throw-away guest")
	audit.Description = fmt.Sprintf("Takes minutes. The answer is one JSON object per line: each result as it comes, and the report in the last one. "+
		"Attacks that got through are no failure of the request. A failure after the first byte is a problem document in the trailer %s. "+
		"An audit whose caller leaves is stopped.", errorTrailer)
	audit.Responses = answers("200", "The results, and the report.", typeLines, line)
	doc.AddOperation(&audit)
}
