package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

const patternTrafficImport = "POST /v1/traffic/import"

// Traffics tell and take in what traffic guests had. A guest may be one that
// is deleted; a name that nobody ever had is vps.CodeNotFound.
type Traffics interface {
	// Traffic returns history up to this moment, in order of guest, begin, class
	// and family.
	Traffic(ctx context.Context, q TrafficQuery) (TrafficHistory, error)
	// TrafficNow reads the kernel's counters of a guest, or for "" those of all
	// guests and of the public links.
	TrafficNow(ctx context.Context, guest string) (TrafficReading, error)
	// CheckTraffic compares guests with the public links since a time, as
	// vps.ParseSince reads it; empty is as long as the finest history lasts.
	CheckTraffic(ctx context.Context, since string) (vps.TrafficCheck, error)
	// ImportTraffic takes in what `vnstat --json` wrote: all of it, or after an
	// error nothing. Importing the same again changes nothing.
	ImportTraffic(ctx context.Context, o ImportTraffic, file io.Reader) (ImportedTraffic, error)
}

// TrafficQuery selects history.
type TrafficQuery struct {
	// Guest is whose; empty means all guests', also those that are gone.
	Guest string
	// Host selects the host's own counters of its public links instead.
	Host bool
	// Step is the step of the rows; empty means days.
	Step vps.TrafficStep
	// Since and Until bound the begin of rows, as vps.ParseSince reads them in
	// the host's zone: from Since on and before Until. Empty means no bound.
	Since, Until string
	// Last is how many steps are wanted, the newest ones, and Top how many with
	// the most traffic; 0 means all.
	Last, Top int
	// Sum adds up the guests: rows have no guest then.
	Sum bool
}

// TrafficHistory is an answer to a TrafficQuery.
type TrafficHistory struct {
	Schema int              `json:"schema_version"`
	Step   vps.TrafficStep  `json:"step"`
	Zone   string           `json:"zone" doc:"The host's time zone, in which days and months begin."`
	At     time.Time        `json:"at" doc:"Up to when traffic is counted: rows of the step that holds it still grow."`
	Behind string           `json:"behind,omitempty" doc:"Why traffic is not counted up to now, as when the disk is full; left out when it is. Nothing is lost by that."`
	Rows   []vps.TrafficRow `json:"traffic" doc:"Sorted by guest, begin, class and family."`
}

// TrafficReading is what the kernel has counted at one moment. The difference
// of two readings of one epoch gives a rate.
type TrafficReading struct {
	Schema   int              `json:"schema_version"`
	At       time.Time        `json:"at"`
	Epoch    string           `json:"epoch" doc:"Counters with another one began anew."`
	Counters []TrafficCounter `json:"counters"`
}

// TrafficCounter is one of the kernel's counters.
type TrafficCounter struct {
	Guest string `json:"guest" doc:"Empty for a public link."`
	Link  string `json:"link"`
	vps.TrafficKey
	vps.TrafficCount
}

// ImportTraffic says what is taken out of a file, and whose it is.
type ImportTraffic struct {
	// Guest gets it; empty means the guest to whose link each interface
	// belongs, and the host's own counter for public links.
	Guest string
	// Interface is the one that is wanted; empty means all that belong to
	// somebody, or with Guest the only one in the file, or that guest's link.
	Interface string
	DryRun    bool // change nothing, only tell
}

// ImportedTraffic is what an import took in, or with a dry run would.
type ImportedTraffic struct {
	Schema     int                 `json:"schema_version"`
	DryRun     bool                `json:"dry_run"`
	Interfaces []ImportedInterface `json:"interfaces"`
}

// ImportedInterface is what an import made of one interface of the file.
type ImportedInterface struct {
	Interface string `json:"interface" doc:"Its name in the file; public links are taken in as one, with their names in a row: eth0, eth1."`
	Guest     string `json:"guest" doc:"Whose history it went to; empty for the host's own counter."`
	// Skipped is empty when it was taken in.
	Skipped string                  `json:"skipped,omitempty" doc:"Why it was not taken in; left out when it was."`
	Rows    map[vps.TrafficStep]int `json:"rows" doc:"How many rows of each step it has."`
	// New and Replaced are parts of Rows; the others were there as they are.
	New      map[vps.TrafficStep]int `json:"new" doc:"How many of them are of a time that nothing was imported of before."`
	Replaced map[vps.TrafficStep]int `json:"replaced" doc:"How many take the place of another one that was imported before."`
	Since    time.Time               `json:"since,omitzero" doc:"Begin of the oldest row."`
	Until    time.Time               `json:"until,omitzero" doc:"When vnStat wrote last."`
	// Months is the sum of its months, Total of the longest step that it has.
	Months vps.TrafficCount `json:"months" doc:"What its months add up to, as the guest sees it."`
	Total  vps.TrafficCount `json:"total" doc:"What its rows of the longest step add up to, as the guest sees it."`
	// Lacks are the steps that the file does not have of it, and that are kept
	// for ever, when it has others.
	Lacks []vps.TrafficStep `json:"lacks,omitempty" doc:"Steps of which the file has nothing, so that views of them stay as they were: day, month."`
}

type (
	trafficInput struct {
		Guest string `query:"guest" doc:"Only this guest's, also one that is deleted; left out: all guests'."`
		Host  bool   `query:"host" doc:"The host's own counters of its public links, instead of guests."`
		Step  string `query:"step" enum:"5min,hour,day,month" default:"day" doc:"What each row covers."`
		Since string `query:"since" doc:"Only rows that begin then or later: a day or a month in the host's zone, a time, or how long ago, as in 2026-10-01, 36h and 7d."`
		Until string `query:"until" doc:"Only rows that begin before then."`
		Last  int    `query:"last" minimum:"0" maximum:"1000000" doc:"Only the newest steps, so many; 0: all."`
		Top   int    `query:"top" minimum:"0" maximum:"1000000" doc:"Only the steps with the most traffic, so many; 0: all."`
		Sum   bool   `query:"sum" doc:"Add up the guests."`
	}
	trafficNowInput struct {
		Guest string `query:"guest" doc:"Only this guest's; left out: all guests' and the public links'."`
	}
	trafficCheckInput struct {
		Since string `query:"since" doc:"Since when to compare, as 2026-10-01, 36h or 7d; left out: the last two days."`
	}
)

func (s *Server) registerTraffic() {
	const tag = "traffic"
	history := operation("show-traffic", http.MethodGet, "/v1/traffic", tag, "Show what traffic guests had")
	history.Description = "Five minutes are kept for 2 days, hours for 90 days, days and months for ever. A guest's traffic is counted by class: internet, host, between guests; dropped is in none of them."
	register(s, history, func(ctx context.Context, in *trafficInput) (*reply[TrafficHistory], error) {
		t, err := s.traffics(in.Guest)
		if err != nil {
			return nil, err
		}
		h, err := t.Traffic(ctx, TrafficQuery{Guest: in.Guest, Host: in.Host, Step: vps.TrafficStep(in.Step), Since: in.Since, Until: in.Until, Last: in.Last, Top: in.Top, Sum: in.Sum})
		h.Schema, h.Rows = SchemaVersion, notNil(h.Rows)
		return bodyOf(h, err)
	})
	now := operation("read-traffic", http.MethodGet, "/v1/traffic/now", tag, "Read the kernel's traffic counters")
	now.Description = "Two readings give a rate. Counters begin anew when the host boots."
	register(s, now, func(ctx context.Context, in *trafficNowInput) (*reply[TrafficReading], error) {
		t, err := s.traffics(in.Guest)
		if err != nil {
			return nil, err
		}
		r, err := t.TrafficNow(ctx, in.Guest)
		r.Schema, r.Counters = SchemaVersion, notNil(r.Counters)
		return bodyOf(r, err)
	})
	register(s, operation("check-traffic", http.MethodGet, "/v1/traffic/check", tag, "Compare guests' traffic with the public links"),
		func(ctx context.Context, in *trafficCheckInput) (*reply[vps.TrafficCheck], error) {
			t, err := s.traffics("")
			if err != nil {
				return nil, err
			}
			c, err := t.CheckTraffic(ctx, in.Since)
			c.Schema, c.Links, c.Lines, c.Notes = SchemaVersion, notNil(c.Links), notNil(c.Lines), notNil(c.Notes)
			return bodyOf(c, err)
		})
}

// traffics is the backend's part, once the guest's name is found to be one.
func (s *Server) traffics(guest string) (Traffics, error) {
	if guest != "" {
		if err := vps.ValidName("guest", guest); err != nil {
			return nil, err
		}
	}
	if s.backend.Traffics == nil {
		return nil, missing("traffic")
	}
	return s.backend.Traffics, nil
}

func (s *Server) serveTrafficImport(w http.ResponseWriter, r *http.Request) {
	var done ImportedTraffic
	taken := s.receive(w, r, func(ctx context.Context, body io.Reader) (err error) {
		done, err = s.importTraffic(ctx, r, body)
		return err
	})
	if !taken {
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	_ = json.NewEncoder(w).Encode(done) // a caller that left needs no answer
}

func (s *Server) importTraffic(ctx context.Context, r *http.Request, body io.Reader) (ImportedTraffic, error) {
	var none ImportedTraffic
	if err := onlyKnown(r, "guest", "interface", "dry_run"); err != nil {
		return none, err
	}
	dryRun, err := boolean(r, "dry_run")
	if err != nil {
		return none, err
	}
	o := ImportTraffic{Guest: r.URL.Query().Get("guest"), Interface: r.URL.Query().Get("interface"), DryRun: dryRun}
	t, err := s.traffics(o.Guest)
	if err != nil {
		return none, err
	}
	done, err := t.ImportTraffic(ctx, o, body)
	done.Schema, done.DryRun, done.Interfaces = SchemaVersion, dryRun, notNil(done.Interfaces)
	return done, err
}

// describeTraffic documents the import.
func describeTraffic(doc *huma.OpenAPI) {
	in := operation("import-traffic", http.MethodPost, "/v1/traffic/import", "traffic", "Take over the history of vnStat")
	in.Description = "The body is what `vnstat --json` writes, of version 1.13 to 2.x, at most 64 MiB. " +
		"What the link of a guest received was sent by the guest. Importing the same again changes nothing, and a file that is refused changes nothing."
	in.Parameters = []*huma.Param{
		query("guest", huma.TypeString, "Whose history it is; left out: by the names of the interfaces, which are those of guests' links and of public links."),
		query("interface", huma.TypeString, "Only this interface of the file."),
		query("dry_run", huma.TypeBoolean, "Change nothing, only tell what would be taken in."),
	}
	in.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{typeJSON: {Schema: &huma.Schema{Type: huma.TypeObject}}}}
	schema := doc.Components.Schemas.Schema(reflect.TypeFor[ImportedTraffic](), true, "")
	in.Responses = answers("200", "What was taken in.", typeJSON, schema)
	doc.AddOperation(&in)
}

// Traffic returns history.
func (c *Client) Traffic(ctx context.Context, q TrafficQuery) (TrafficHistory, error) {
	query := url.Values{}
	put := func(key, value string) {
		if value != "" {
			query.Set(key, value)
		}
	}
	put("guest", q.Guest)
	put("step", string(q.Step))
	put("since", q.Since)
	put("until", q.Until)
	for key, n := range map[string]int{"last": q.Last, "top": q.Top} {
		if n != 0 {
			query.Set(key, strconv.Itoa(n))
		}
	}
	for key, yes := range map[string]bool{"sum": q.Sum, "host": q.Host} {
		if yes {
			query.Set(key, "true")
		}
	}
	return get[TrafficHistory](ctx, c, "/v1/traffic", query)
}

// TrafficNow reads the counters of a guest, or of all guests and the public
// links for "".
func (c *Client) TrafficNow(ctx context.Context, guest string) (TrafficReading, error) {
	return get[TrafficReading](ctx, c, "/v1/traffic/now", guestQuery(guest))
}

// CheckTraffic compares guests with the public links since a time; "" is as
// long as the finest history lasts.
func (c *Client) CheckTraffic(ctx context.Context, since string) (vps.TrafficCheck, error) {
	var query url.Values
	if since != "" {
		query = url.Values{"since": {since}}
	}
	return get[vps.TrafficCheck](ctx, c, "/v1/traffic/check", query)
}

// ImportTraffic sends what `vnstat --json` wrote.
func (c *Client) ImportTraffic(ctx context.Context, o ImportTraffic, file io.Reader) (ImportedTraffic, error) {
	query := dryRunQuery(o.DryRun)
	if o.Guest != "" {
		query.Set("guest", o.Guest)
	}
	if o.Interface != "" {
		query.Set("interface", o.Interface)
	}
	body := &source{r: file}
	done, err := roundTrip[ImportedTraffic](ctx, c, request{method: http.MethodPost, path: "/v1/traffic/import", query: query, body: body, contentType: typeJSON})
	if body.err != nil {
		return ImportedTraffic{}, vps.Wrap(vps.CodeInvalid, body.err, "the file cannot be read: %v", body.err)
	}
	return done, err
}
