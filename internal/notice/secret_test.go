package notice

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

func TestKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notice.key")
	key, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again, err := OpenKey(path); err != nil || again != key || key == (Key{}) {
		t.Errorf("read again it differs: %v", err)
	}
	other, err := OpenKey(path + "2")
	if err != nil || other == key {
		t.Errorf("two hosts have the same key: %v", err)
	}
	for _, bad := range []string{"", "abc", "zz" + strings.Repeat("0", 62), strings.Repeat("0", 62), strings.Repeat("0", 66)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := OpenKey(path); err == nil {
			t.Errorf("%q was taken for %x", bad, k)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != bad {
			t.Errorf("the damaged file was changed: %q, %v", now, err)
		}
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	host := vps.Host{Tenants: []vps.Tenant{{Name: "bob"}, {Name: "owner"}}}
	seen := map[string]string{}
	for who, k := range map[string]Key{"": {1}, "bob": {1}, "owner": {1}, "other host": {2}} {
		recipient := strings.TrimPrefix(who, "other host")
		secret, err := k.Secret(&host, recipient)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil || len(raw) < 24 || len(raw) > 64 || !strings.HasPrefix(secret, "whsec_") { // the specification's bounds
			t.Errorf("%q: %q, %v", who, secret, err)
		}
		if twin, twice := seen[secret]; twice {
			t.Errorf("%q and %q have the same secret", who, twin)
		}
		seen[secret] = who
	}
	host.Tenants[0].Created = time.Unix(1, 0)
	if secret, _ := (Key{1}).Secret(&host, "bob"); seen[secret] != "" {
		t.Error("who comes after bob has his secret")
	}
	if _, err := (Key{1}).Secret(&host, "carol"); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("nobody's secret: %v", err)
	}
}
