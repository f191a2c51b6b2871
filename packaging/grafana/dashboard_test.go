// Package grafana checks the dashboard. It is a module of its own, so that what
// it takes to read dashboards and queries stays out of the program's.
package grafana

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	dashboardFile = "sublet.json"
	// A test of the daemon's metrics keeps their table as the code has them.
	metricsFile = "../../docs/metrics.md"
)

// panel is what we look at of a panel.
type panel struct {
	ID      int
	Title   string
	Type    string
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		Expr, LegendFormat string
		Datasource         struct{ UID string }
	}
}

func readDashboard(t *testing.T) (raw []byte, panels []panel) {
	t.Helper()
	raw, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return raw, d.Panels
}

// TestDashboardLoads reads the dashboard with the types that Grafana makes of
// its own schema. They know no field that it does not.
func TestDashboardLoads(t *testing.T) {
	t.Parallel()
	plugins := registerPlugins()
	raw, panels := readDashboard(t)
	if err := load(raw); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"gridPos"`, `"lineWidth"`, `"schemaVersion"`, `"colorMode"`, `"multi"`} {
		if load([]byte(strings.Replace(string(raw), part, `"nonsense"`, 1))) == nil {
			t.Errorf("it loads as well with nonsense for %s, so this test sees nothing", part)
		}
	}
	// What the schema cannot tell of.
	ids := map[int]bool{}
	for _, p := range panels {
		if p.Type != "row" && !slices.Contains(plugins, p.Type) {
			t.Errorf("%s: no schema is registered for panels of the type %s", p.Title, p.Type)
		}
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("the id %d is there twice", p.ID)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.W <= 0 || g.H <= 0 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s: does not fit in 24 columns: %+v", p.Title, g)
		}
	}
	for i, a := range panels {
		for _, b := range panels[:i] {
			if x, y := a.GridPos, b.GridPos; x.X < y.X+y.W && y.X < x.X+x.W && x.Y < y.Y+y.H && y.Y < x.Y+x.H {
				t.Errorf("%q lies over %q", a.Title, b.Title)
			}
		}
	}
}

// registerPlugins makes the schemas known of what the dashboard is made of, and
// returns the types of its panels. All that Grafana has take minutes to compile.
func registerPlugins() (panels []string) {
	runtime := cog.NewRuntime()
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	for _, p := range []variants.PanelcfgConfig{stat.VariantConfig(), table.VariantConfig(), timeseries.VariantConfig()} {
		runtime.RegisterPanelcfgVariant(p)
		panels = append(panels, p.Identifier)
	}
	return panels
}

func load(raw []byte) error {
	var d dashboard.Dashboard //nolint:staticcheck // of the version of the schema that every Grafana imports
	err := d.UnmarshalJSONStrict(raw)
	if faults, ok := err.(cog.BuildErrors); ok && len(faults) == 0 { // none is not nil there
		err = nil
	}
	if err == nil {
		err = d.Validate()
	}
	return err
}

// known are all metrics with their labels, as they are documented; instance and
// job are Prometheus's.
func known(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(metricsFile)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{}
	for _, row := range documented.FindAllStringSubmatch(string(text), -1) {
		labels := []string{"instance", "job"}
		for _, l := range quoted.FindAllStringSubmatch(row[2], -1) {
			labels = append(labels, l[1])
		}
		names[row[1]] = labels
	}
	return names
}

var (
	documented = regexp.MustCompile("(?m)^\\| `(sublet_\\w+)` \\| \\w+ \\| ([^|]*) \\|")
	quoted     = regexp.MustCompile("`(\\w+)`")

	variable = regexp.MustCompile(`\$\{?(\w+)`)
	label    = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// TestDashboardQueries: each query is PromQL, and asks for what there is.
func TestDashboardQueries(t *testing.T) {
	t.Parallel()
	metrics := known(t)
	asked := map[string]bool{}
	_, panels := readDashboard(t)
	for _, p := range panels {
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("%s: %d queries", p.Title, len(p.Targets))
		}
		for _, q := range p.Targets {
			for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
				if !slices.Contains([]string{"instance", "guest", "__rate_interval"}, v[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, v[1])
				}
			}
			if q.Datasource.UID != "${datasource}" {
				t.Errorf("%s asks %s", p.Title, q.Datasource.UID)
			}
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(strings.ReplaceAll(q.Expr, "$__rate_interval", "1m"))
			if err != nil {
				t.Errorf("%s: %v", p.Title, err)
				continue
			}
			for _, name := range checkQuery(t, p.Title, expr, metrics) {
				asked[name] = true
			}
			for _, l := range label.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !strings.Contains(q.Expr, l[1]) && !slices.ContainsFunc(selected(expr), func(n string) bool { return slices.Contains(metrics[n], l[1]) }) {
					t.Errorf("%s: no series has the label %s of the legend", p.Title, l[1])
				}
			}
		}
	}
	if len(asked) < 15 {
		t.Errorf("it asks for %d metrics only", len(asked))
	}
}

// checkQuery wants metrics and labels that exist, and returns the metrics.
func checkQuery(t *testing.T, title string, expr parser.Expr, metrics map[string][]string) (names []string) {
	t.Helper()
	parser.Inspect(expr, func(n parser.Node, path []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			names = append(names, n.Name)
			if metrics[n.Name] == nil {
				t.Errorf("%s: there is no metric %s", title, n.Name)
				return nil
			}
			if strings.HasSuffix(n.Name, "_total") && !rated(path) {
				t.Errorf("%s: the counter %s is used as it is", title, n.Name)
			}
			for _, m := range n.LabelMatchers {
				if m.Name != model.MetricNameLabel && !slices.Contains(metrics[n.Name], m.Name) {
					t.Errorf("%s: %s has no label %s", title, n.Name, m.Name)
				}
			}
		case *parser.AggregateExpr:
			for _, l := range n.Grouping {
				for _, name := range selected(n) {
					if !slices.Contains(metrics[name], l) {
						t.Errorf("%s: %s has no label %s to group by", title, name, l)
					}
				}
			}
		}
		return nil
	})
	return names
}

// rated tells whether a selector is within rate() or increase().
func rated(path []parser.Node) bool {
	return slices.ContainsFunc(path, func(n parser.Node) bool {
		call, ok := n.(*parser.Call)
		return ok && (call.Func.Name == "rate" || call.Func.Name == "increase")
	})
}

func selected(expr parser.Expr) (names []string) {
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			names = append(names, s.Name)
		}
		return nil
	})
	return names
}
