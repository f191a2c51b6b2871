package door

import (
	"crypto/tls"
	"os"
	"sync"
	"time"

	"sublet/internal/vps"
)

// Certificate is a certificate of the owner's for TLS, read again when its
// files change: those of Let's Encrypt and the like last for weeks. It is safe
// for concurrent use.
type Certificate struct {
	cert, key string

	mu     sync.Mutex
	stamp  time.Time // of the newer file of the two that pair is from
	pair   *tls.Certificate
	looked time.Time
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Minute

// OpenCertificate reads a certificate and its key, both PEM.
func OpenCertificate(cert, key string) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key}
	if err := c.read(); err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "the certificate %s with the key %s cannot be used", cert, key)
	}
	c.looked = time.Now()
	return c, nil
}

// Get returns the certificate (tls.Config.GetCertificate). While files are
// being changed, or when they are damaged, it is the one from before.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= lookEvery || now.Before(c.looked) {
		c.looked = now
		_ = c.read() // the next look may find them whole
	}
	return c.pair, nil
}

func (c *Certificate) read() error {
	var newest time.Time
	for _, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	if c.pair != nil && newest.Equal(c.stamp) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return err
	}
	c.pair, c.stamp = &pair, newest
	return nil
}
