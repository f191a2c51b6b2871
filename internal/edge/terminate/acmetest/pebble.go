// Package acmetest gives tests a certificate authority: Pebble, a real ACME server.
package acmetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/servertest"
)

// EABKey is the key, in base64, of the account EABKeyID, which an authority knows.
const (
	EABKeyID = "kid-1"
	EABKey   = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
)

// The ports that an authority listens on: for ACME, and for what is asked of Pebble.
const (
	acmePort = "14000"
	rootPort = "15000"
)

// Options say how an authority behaves.
type Options struct {
	// Dir is where its files are. Those of an earlier one are used again: then its
	// own certificate is the same.
	Dir string
	// Address is the IP that it listens on, on ports 14000 and 15000.
	Address string
	// DNS is the name server, as HOST:PORT, that it asks for names. It looks for them
	// on their ports 80 and 443.
	DNS string
	// Validity is that of certificates; 0 is 90 days.
	Validity time.Duration
	// Bound has accounts be bound to one that is known (EAB).
	Bound bool
	// Mild is for clients of old: no good nonce is refused, and no date is told for when
	// to ask again, as the authority does by chance else.
	Mild bool
}

// Server is a running authority. When it is stopped it forgets all accounts.
type Server struct {
	*servertest.Server
	// Directory is its URL, and Roots, in PEM, is what its own certificate is checked
	// with. Those that it gives are of another root, which RootURL answers with.
	Directory, Roots, RootURL string

	tb testing.TB
	o  Options
}

// program builds Pebble, once for all tests. Its module is one of the tools, which
// the program under test does not depend on.
//
//nolint:gochecknoglobals // one build for all tests of a binary
var program = sync.OnceValues(func() (string, error) {
	ctx := context.Background() // for whichever test comes first, and all others
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	tools := filepath.Join(filepath.Dir(string(mod)), "tools", "go.mod")
	path, err := exec.CommandContext(ctx, "go", "tool", "-modfile="+tools, "-n", "pebble").Output()
	if err != nil {
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, ee.Stderr)
		}
		return "", fmt.Errorf("build Pebble: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
})

// Build makes the program, which Start does else: before a test leaves the machine's
// own network.
func Build(tb testing.TB) {
	tb.Helper()
	if _, err := program(); err != nil {
		tb.Fatal(err)
	}
}

// Start runs an authority until the test ends, and returns when it answers. run starts
// its command, in a network of the caller's own; nil means here.
func Start(tb testing.TB, run func(*exec.Cmd) error, o Options) *Server {
	tb.Helper()
	Build(tb)
	path, _ := program()
	if o.Validity == 0 {
		o.Validity = 90 * 24 * time.Hour
	}
	s := &Server{
		Directory: "https://" + net.JoinHostPort(o.Address, acmePort) + "/dir", RootURL: "https://" + net.JoinHostPort(o.Address, rootPort) + "/roots/0",
		tb: tb, o: o,
	}
	s.Roots = s.identity()
	cmd := exec.CommandContext(tb.Context(), path, "-config", s.configure(), "-dnsserver", o.DNS)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	if o.Mild {
		cmd.Env = append(cmd.Env, "PEBBLE_WFE_NONCEREJECT=0")
	}
	s.Server = servertest.Start(tb, run, cmd, "ACME directory available")
	return s
}

// configure writes the configuration, and returns its path.
func (s *Server) configure() string {
	s.tb.Helper()
	again := 1 // seconds
	if s.o.Mild {
		again = 0 // nothing is told
	}
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": net.JoinHostPort(s.o.Address, acmePort), "managementListenAddress": net.JoinHostPort(s.o.Address, rootPort),
		"certificate": s.path("crt"), "privateKey": s.path("key"),
		"httpPort": 80, "tlsPort": 443, "ocspResponderURL": "",
		"externalAccountBindingRequired": s.o.Bound, "externalAccountMACKeys": map[string]string{EABKeyID: EABKey},
		"retryAfter": map[string]int{"authz": again, "order": again},
		"profiles":   map[string]any{"default": map[string]any{"description": "the only one", "validityPeriod": int(s.o.Validity / time.Second)}},
	}})
	if err != nil {
		s.tb.Fatal(err)
	}
	return s.write("json", text)
}

func (s *Server) path(kind string) string { return filepath.Join(s.o.Dir, "pebble."+kind) }

func (s *Server) write(kind string, text []byte) string {
	s.tb.Helper()
	if err := os.WriteFile(s.path(kind), text, 0o600); err != nil {
		s.tb.Fatal(err)
	}
	return s.path(kind)
}

// identity returns the authority's own certificate, in PEM. It makes it when there is
// none.
func (s *Server) identity() string {
	s.tb.Helper()
	text, err := os.ReadFile(s.path("crt"))
	if err == nil {
		return string(text)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.tb.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.tb.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Pebble"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.ParseIP(s.o.Address)}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		s.tb.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.tb.Fatal(err)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.write("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}))
	s.write("crt", text)
	return string(text)
}
