// Package door is the daemon's way in from the network: TLS and a token, or
// nothing. It is closed unless an address is given. It also bounds how often
// each caller may ask, on the unix socket too.
//
// The folder of a door holds cert.pem, key.pem and token, all made at first
// use and readable by the daemon's user only. Files given by the owner are
// used instead and never written.
package door

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"sublet/internal/vps"
)

// Options say where a door's keys are. Dir must be set.
type Options struct {
	// Dir is the folder for what is made here.
	Dir string
	// Cert and Key are PEM files of the owner's; both or none.
	Cert, Key string
	// Tokens is a file with a token on each line; empty means the one in Dir.
	// Lines that are empty or begin with # do not count. It is read again when
	// it changes, so that a line removed is a caller shut out.
	Tokens string
	// Log hears of callers who were turned away; nil discards.
	Log *slog.Logger
}

const (
	certName  = "cert.pem"
	keyName   = "key.pem"
	tokenName = "token"
	// minToken is the shortest token that is taken, in characters: 160 random
	// bits in hexadecimal, or more than enough of anything denser.
	minToken = 32
	// tokenBytes are the random bytes of a token made here.
	tokenBytes = 32
	// maxTokens bounds the file of tokens, in bytes.
	maxTokens = 64 << 10
	// maxConnections bounds the open connections of one door.
	maxConnections = 256
	// lifetime is how long a certificate made here is good: its owner copies
	// it to clients by hand, so it must not end soon.
	lifetime = 10 * 365 * 24 * time.Hour
)

// Door checks who comes in. It is safe for concurrent use.
type Door struct {
	o     Options
	log   *slog.Logger
	cert  tls.Certificate
	fails *Guesses // of those who had no token

	mu     sync.Mutex
	stamp  time.Time // of the file that hashes are from
	size   int64
	hashes [][sha256.Size]byte
}

// Open reads the keys, and makes those that are missing in Dir. What is there
// but cannot be used is an error, never replaced.
func Open(o Options) (*Door, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if (o.Cert == "") != (o.Key == "") {
		return nil, vps.Invalid("tls", "a certificate and its key belong together; give both files or none")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the folder %s for the keys of the API cannot be made", o.Dir)
	}
	d := &Door{log: o.Log, fails: NewGuesses()}
	if o.Cert == "" {
		o.Cert, o.Key = filepath.Join(o.Dir, certName), filepath.Join(o.Dir, keyName)
		if err := makeCertificate(o.Cert, o.Key); err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "no certificate for the API could be made in %s", o.Dir)
		}
	}
	if o.Tokens == "" {
		o.Tokens = filepath.Join(o.Dir, tokenName)
		if err := makeToken(o.Tokens); err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "no token for the API could be made in %s", o.Dir)
		}
	}
	d.o = o
	var err error
	if d.cert, err = tls.LoadX509KeyPair(o.Cert, o.Key); err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "the certificate %s with the key %s cannot be used for the API", o.Cert, o.Key)
	}
	if err := d.readTokens(); err != nil {
		return nil, err
	}
	return d, nil
}

// Listen opens a TCP port for TLS 1.3. ctx bounds the opening only.
func (d *Door) Listen(ctx context.Context, address string) (net.Listener, error) {
	var c net.ListenConfig
	plain, err := c.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "the API cannot listen on %q; write for example 0.0.0.0:8443 or [::]:8443, and choose a port that is free", address)
	}
	return tls.NewListener(netutil.LimitListener(plain, maxConnections), &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Consoles take the connection over, which HTTP/2 has no way for.
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &d.cert, nil
		},
	}), nil
}

// Guard lets those requests through to next that carry a token, and answers
// the others: 401, or 429 to an address that tried too often.
func (d *Door) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := address(r.RemoteAddr)
		if d.knows(r.Header.Get("Authorization")) {
			// Nothing behind the door has a use for it.
			r.Header.Del("Authorization")
			next.ServeHTTP(w, r)
			return
		}
		if wait := d.fails.Wait(r.RemoteAddr); wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())))
			problem(w, http.StatusTooManyRequests, vps.CodeDenied, "too many requests without a valid token; wait before the next one")
			return
		}
		d.log.WarnContext(r.Context(), "a caller without a valid token was turned away", "caller", caller)
		w.Header().Set("WWW-Authenticate", `Bearer realm="sublet"`)
		problem(w, http.StatusUnauthorized, vps.CodeDenied, "a valid token is needed; the owner finds it on the host in "+d.o.Tokens)
	})
}

// knows tells whether a header carries one of the tokens. All are compared, in
// constant time.
func (d *Door) knows(header string) bool {
	given, ok := strings.CutPrefix(header, "Bearer ")
	if err := d.readTokens(); err != nil {
		d.log.Error("tokens cannot be read", "error", err)
		return false
	}
	hash := sha256.Sum256([]byte(given))
	d.mu.Lock()
	defer d.mu.Unlock()
	found := 0
	for i := range d.hashes {
		found |= subtle.ConstantTimeCompare(hash[:], d.hashes[i][:])
	}
	return ok && found == 1
}

// readTokens reads the file again when it is another one than before. A file
// that is gone or damaged lets nobody in.
func (d *Door) readTokens() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := os.Stat(d.o.Tokens)
	if err == nil && info.ModTime().Equal(d.stamp) && info.Size() == d.size {
		return nil
	}
	d.hashes, d.stamp = nil, time.Time{}
	if err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "the file %s with the tokens of the API cannot be read", d.o.Tokens)
	}
	const others = 0o077
	if info.Mode()&others != 0 {
		return vps.Invalid("tokens", "others can read the tokens in %s; take that away with `chmod 600 %s`", d.o.Tokens, d.o.Tokens)
	}
	if info.Size() > maxTokens {
		return vps.Invalid("tokens", "%s is larger than %s, which no list of tokens is", d.o.Tokens, vps.Bytes(maxTokens))
	}
	text, err := os.ReadFile(d.o.Tokens)
	if err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "the file %s with the tokens of the API cannot be read", d.o.Tokens)
	}
	hashes, err := parseTokens(text)
	if err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "the tokens in %s cannot be used", d.o.Tokens)
	}
	d.hashes, d.stamp, d.size = hashes, info.ModTime(), info.Size()
	return nil
}

// parseTokens returns the digests of the tokens in a file.
func parseTokens(text []byte) ([][sha256.Size]byte, error) {
	var hashes [][sha256.Size]byte
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if len(line) < minToken {
			return nil, vps.Invalid("tokens", "the token in line %d has fewer than %d characters; make one with `openssl rand -hex 32`", n, minToken)
		}
		hashes = append(hashes, sha256.Sum256([]byte(line)))
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(hashes) == 0 {
		return nil, vps.Invalid("tokens", "there is none; make one with `openssl rand -hex 32`")
	}
	return hashes, nil
}

// makeToken writes a token to path unless there is a file.
func makeToken(path string) error {
	raw := make([]byte, tokenBytes)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return writeNew(path, []byte(base64.RawURLEncoding.EncodeToString(raw)+"\n"))
}

// makeCertificate writes a key and a certificate that the key itself signed,
// unless both are there. Clients are given the certificate as their authority.
func makeCertificate(certPath, keyPath string) error {
	if exists(certPath) && exists(keyPath) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "sublet on " + name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:        true, BasicConstraintsValid: true,
		// The host's addresses change; clients of a certificate that they were
		// given by hand check this name instead.
		DNSNames: []string{Name},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a certificate without it would be of no use.
	if err := replace(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	return replace(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Name is the name in certificates that are made here.
const Name = "sublet.internal"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// replace writes a file as a whole, readable by its owner only.
func replace(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeNew(path, content)
}

// writeNew writes a file in one step unless it is there: a kill in between
// leaves nothing, or the whole.
func writeNew(path string, content []byte) error {
	if exists(path) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("put %s in place: %w", path, err)
	}
	return nil
}
