package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeTraffic is a ledger that remembers what it was asked.
type fakeTraffic struct {
	f        *fake
	asked    TrafficQuery
	since    string
	imported ImportTraffic
	file     string
}

var trafficAt = time.Date(2026, 10, 20, 12, 0, 0, 0, time.UTC)

func (t *fakeTraffic) Traffic(_ context.Context, q TrafficQuery) (TrafficHistory, error) {
	t.asked = q
	if q.Guest == "nobody" {
		return TrafficHistory{}, noGuest(q.Guest)
	}
	h := TrafficHistory{Step: q.Step, Zone: "Asia/Shanghai", At: trafficAt}
	if q.Guest == "quiet" {
		return h, t.f.err
	}
	h.Rows = []vps.TrafficRow{{
		GuestID: "g-1", Guest: "alice", Start: trafficAt, Step: q.Step,
		TrafficKey:   vps.TrafficKey{Class: vps.TrafficInternet, Family: 4},
		TrafficCount: vps.TrafficCount{InBytes: 1 << 40, InPackets: 2, OutBytes: 3, OutPackets: 4},
	}}
	return h, t.f.err
}

func (t *fakeTraffic) TrafficNow(_ context.Context, guest string) (TrafficReading, error) {
	return TrafficReading{At: trafficAt, Epoch: "e1", Counters: []TrafficCounter{{Guest: guest, Link: "eth0", TrafficKey: vps.TrafficKey{Class: vps.TrafficUplink}}}}, t.f.err
}

func (t *fakeTraffic) CheckTraffic(_ context.Context, since string) (vps.TrafficCheck, error) {
	t.since = since
	return vps.TrafficCheck{Links: []string{"eth0"}, OK: true}, t.f.err
}

func (t *fakeTraffic) ImportTraffic(_ context.Context, o ImportTraffic, file io.Reader) (ImportedTraffic, error) {
	text, err := io.ReadAll(file)
	if err != nil {
		return ImportedTraffic{}, err
	}
	t.imported, t.file = o, string(text)
	return ImportedTraffic{Interfaces: []ImportedInterface{{Interface: "sl-alice", Guest: "alice", Rows: map[vps.TrafficStep]int{vps.StepDay: 3}}}}, t.f.err
}

// startTraffic starts a server whose ledger the test holds.
func startTraffic(t *testing.T) (*started, *fakeTraffic) {
	t.Helper()
	f := newFake()
	ledger := &fakeTraffic{f: f}
	b := f.backend()
	b.Traffics = ledger
	return startWith(t, f, &b), ledger
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	s, ledger := startTraffic(t)
	q := TrafficQuery{Guest: "alice", Step: vps.StepMonth, Since: "2026-10", Until: "7d", Last: 12, Top: 3, Sum: true, Host: true}
	h, err := s.Traffic(t.Context(), q)
	check(t, err)
	same(t, ledger.asked, q)
	if h.Schema != SchemaVersion || h.Zone != "Asia/Shanghai" || len(h.Rows) != 1 || h.Rows[0].InBytes != 1<<40 || h.Rows[0].Class != vps.TrafficInternet || h.Rows[0].Step != vps.StepMonth {
		t.Errorf("%+v", h)
	}
	_, err = s.Traffic(t.Context(), TrafficQuery{})
	check(t, err)
	same(t, ledger.asked, TrafficQuery{Step: vps.StepDay})
	if _, body := s.raw(t, http.MethodGet, "/v1/traffic?guest=quiet", "", ""); !strings.Contains(body, `"traffic":[]`) {
		t.Errorf("a guest without history: %s", body)
	}
	for path, want := range map[string]int{
		"/v1/traffic?guest=nobody":       http.StatusNotFound,
		"/v1/traffic?guest=No":           http.StatusUnprocessableEntity,
		"/v1/traffic?step=year":          http.StatusUnprocessableEntity,
		"/v1/traffic?last=-1":            http.StatusUnprocessableEntity,
		"/v1/traffic?top=many":           http.StatusUnprocessableEntity,
		"/v1/traffic?sice=7d":            http.StatusUnprocessableEntity,
		"/v1/traffic/now?guest=../../x":  http.StatusUnprocessableEntity,
		"/v1/traffic/check?guest=alice":  http.StatusUnprocessableEntity,
		"/v1/traffic/now?guest=alice":    http.StatusOK,
		"/v1/traffic/check?since=2026-1": http.StatusOK,
	} {
		if a, body := s.raw(t, http.MethodGet, path, "", ""); a.StatusCode != want {
			t.Errorf("%s: %d, want %d: %s", path, a.StatusCode, want, body)
		}
	}
}

func TestTrafficNowAndCheck(t *testing.T) {
	t.Parallel()
	s, ledger := startTraffic(t)
	r, err := s.TrafficNow(t.Context(), "alice")
	check(t, err)
	if r.Epoch != "e1" || !r.At.Equal(trafficAt) || len(r.Counters) != 1 || r.Counters[0].Guest != "alice" || r.Counters[0].Class != vps.TrafficUplink {
		t.Errorf("%+v", r)
	}
	c, err := s.CheckTraffic(t.Context(), "36h")
	check(t, err)
	if ledger.since != "36h" || !c.OK || c.Lines == nil || c.Notes == nil {
		t.Errorf("since %q: %+v", ledger.since, c)
	}
}

func TestImportTraffic(t *testing.T) {
	t.Parallel()
	s, ledger := startTraffic(t)
	// More than the body of other requests may have.
	file := strings.Repeat("x", MaxBody+1)
	done, err := s.ImportTraffic(t.Context(), ImportTraffic{Guest: "alice", Interface: "sl-alice", DryRun: true}, strings.NewReader(file))
	check(t, err)
	same(t, ledger.imported, ImportTraffic{Guest: "alice", Interface: "sl-alice", DryRun: true})
	if ledger.file != file || !done.DryRun || len(done.Interfaces) != 1 || done.Interfaces[0].Rows[vps.StepDay] != 3 {
		t.Errorf("%d bytes, %+v", len(ledger.file), done)
	}
	for _, path := range []string{"?guest=No", "?dry_run=maybe", "?zone=UTC"} {
		if a, body := s.raw(t, http.MethodPost, "/v1/traffic/import"+path, typeJSON, "{}"); a.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d: %s", path, a.StatusCode, body)
		}
	}
	s.fake.setErr(vps.Errorf(vps.CodeInvalid, "it is not vnStat's"))
	_, err = s.ImportTraffic(t.Context(), ImportTraffic{}, strings.NewReader("{}"))
	wantCode(t, err, vps.CodeInvalid)
}

func TestNoTraffic(t *testing.T) {
	t.Parallel()
	s := startWith(t, newFake(), &Backend{})
	_, err := s.Traffic(t.Context(), TrafficQuery{})
	wantCode(t, err, vps.CodeUnavailable)
	_, err = s.ImportTraffic(t.Context(), ImportTraffic{}, strings.NewReader("{}"))
	wantCode(t, err, vps.CodeUnavailable)
}
