package daemon

import (
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestCheckACME: files that cannot be used are told of when they are named, and do
// not stand in the way of other changes.
func TestCheckACME(t *testing.T) {
	t.Parallel()
	bad := vps.ACMESettings{CAFile: t.TempDir() + "/none"}
	if err := checkACME(vps.ACMESettings{}, bad); err == nil || !strings.Contains(err.Error(), "settings.edge.acme: the certificates of the authority's own cannot be read") {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := checkACME(bad, bad); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
	if err := checkACME(bad, vps.ACMESettings{AgreeTerms: true}); err != nil {
		t.Errorf("mended: %v", err)
	}
}
