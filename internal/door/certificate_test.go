package door_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"sublet/internal/door"
	"sublet/internal/vps"
)

func TestCertificate(t *testing.T) {
	t.Parallel()
	made := filepath.Join(t.TempDir(), "door")
	if _, err := door.Open(door.Options{Dir: made}); err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(made, "cert.pem"), filepath.Join(made, "key.pem")
	c, err := door.OpenCertificate(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Get(nil)
	if err != nil || first == nil || first.Leaf.NotAfter.Before(time.Now()) {
		t.Fatalf("%v, %v", first, err)
	}
	// What is gone, or damaged, does not take the certificate away.
	if err := os.WriteFile(cert, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := c.Get(nil); err != nil || again != first {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := door.OpenCertificate(cert, key); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("a damaged certificate: %v", err)
	}
	if _, err := door.OpenCertificate(filepath.Join(made, "none"), key); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("no certificate: %v", err)
	}
}

func TestGuesses(t *testing.T) {
	t.Parallel()
	g := door.NewGuesses()
	var wait time.Duration
	for range 100 {
		wait = max(wait, g.Wait("203.0.113.9:1234"))
	}
	if wait != 5*time.Second || g.Wait("203.0.113.10:1234") > 0 {
		t.Error("guesses are not bounded by address")
	}
}
