package daemon

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/proof"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// TestExportDomains: what is live goes to other routers, whether the guest runs and
// whether the edge itself has the ports or not.
func TestExportDomains(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "state.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	p := &parts{
		log: log, db: db, state: desired.New(db, plenty{}), quotas: &enforcer{edited: make(chan struct{}, 1)},
		proofs: &prover{key: proof.Key{1}, db: db, log: log, now: time.Now},
	}
	b := backend{p}
	if _, err := b.state.PutTenant(t.Context(), "bob", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	create := func(name, tenant string, domains ...vps.Domain) {
		t.Helper()
		_, err := b.state.Create(t.Context(), name, func(g vps.GuestSpec) (vps.GuestSpec, error) {
			g.Tenant, g.Domains = tenant, domains
			return g, nil
		}, false)
		if err != nil {
			t.Fatal(err)
		}
	}
	create("shop", vps.DefaultTenant, vps.Domain{Name: "shop.example.org"}, vps.Domain{Name: "imap.example.org", Listen: 993})
	create("alice", "bob", vps.Domain{Name: "unproved.example.org"}, vps.Domain{Name: "vouched.example.org", Vouched: true})
	for _, disabled := range []bool{false, true} {
		if disabled {
			_, err := b.state.SetSettings(t.Context(), func(s *vps.Settings) { s.Edge.Disabled = true }, false)
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, router := range []string{api.RouterHAProxy, api.RouterNginx} {
			files, err := b.ExportDomains(t.Context(), router, "")
			if err != nil || len(files) != 1 {
				t.Fatalf("%s: %d files, %v", router, len(files), err)
			}
			for _, name := range []string{"shop.example.org", "imap.example.org", "vouched.example.org"} {
				if !strings.Contains(files[0].Text, name) {
					t.Errorf("%s: nothing is said of %s", router, name)
				}
			}
			if strings.Contains(files[0].Text, "unproved") {
				t.Errorf("%s: a name that is not proved is led", router)
			}
		}
	}
	files, err := b.ExportDomains(t.Context(), api.RouterHAProxy, "/etc/haproxy")
	if err != nil || len(files) != 4 || !strings.Contains(files[0].Text, "/etc/haproxy/names-443.map") {
		t.Errorf("%d files, %v", len(files), err)
	}
	if _, err := b.ExportDomains(t.Context(), "apache", ""); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("another router: %v", err)
	}
}
