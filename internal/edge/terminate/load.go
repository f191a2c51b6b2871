package terminate

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// maxFile bounds what is read of a file that settings name.
const maxFile = 1 << 20

// Load reads the files that settings name, for the edge's process, which could
// not. It is for the daemon; a file that cannot be used is told as Fault.
func Load(s vps.ACMESettings) edge.ACME {
	a := edge.ACME{ACMESettings: s}
	var err error
	read := func(what, path string, secret bool) string {
		if path == "" || err != nil {
			return ""
		}
		var text string
		text, err = readFile(what, path, secret)
		return text
	}
	a.Roots = read("the certificates of the authority's own", s.CAFile, false)
	a.EABKey = read("the key of the account at the authority", s.EABKeyFile, true)
	a.DNSKey = read("the key for updates of the DNS", s.DNSKeyFile, true)
	if err == nil {
		err = check(&a)
	}
	if err != nil {
		return edge.ACME{ACMESettings: s, Fault: err.Error()}
	}
	return a
}

func check(a *edge.ACME) error {
	if a.Roots != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(a.Roots)) {
		return fmt.Errorf("there is no certificate in PEM in %s; it is to have those that the authority's own is checked with", a.CAFile)
	}
	if _, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(a.EABKey, "=")); err != nil {
		return fmt.Errorf("%s does not have a key in base64url in one line, as the authority gives it", a.EABKeyFile)
	}
	if _, err := base64.StdEncoding.DecodeString(a.DNSKey); err != nil {
		return fmt.Errorf("%s does not have a key in base64 in one line, as tsig-keygen and keymgr write it", a.DNSKeyFile)
	}
	return nil
}

// readFile reads a text without the white space around it. Secrets must not be
// readable by others.
func readFile(what, path string, secret bool) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would make the daemon wait
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w", what, err)
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("%s cannot be read: %w", what, err)
	case !fi.Mode().IsRegular():
		return "", fmt.Errorf("%s cannot be read: %s is not a file", what, path)
	case secret && fi.Mode().Perm()&0o007 != 0:
		return "", fmt.Errorf("%s is readable by everybody; `chmod 600 %s`", what, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = errors.New("it is too large")
	}
	if err != nil {
		return "", fmt.Errorf("%s cannot be read from %s: %w", what, path, err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("%s is not in %s: the file is empty", what, path)
	}
	return text, nil
}
