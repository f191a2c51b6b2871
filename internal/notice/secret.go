package notice

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// Key is what the secrets of all recipients are derived from.
type Key [sha256.Size]byte

// OpenKey reads the key in a file, and makes both when there is none. Whoever
// has the key can sign for the host, so only its owner may read it.
func OpenKey(path string) (Key, error) {
	key, err := durable.OpenKey(path)
	if err != nil {
		return Key{}, vps.Wrap(vps.CodeInternal, err, "the key of webhooks in %s can neither be read nor made; put a backup in its place, or remove it and give every receiver its new secret", path)
	}
	return key, nil
}

// secret is what webhooks to a recipient are signed with. It differs for each
// host and recipient, and for a tenant who comes after one of the same name.
func (k Key) secret(recipient string, created time.Time) []byte {
	mac := hmac.New(sha256.New, k[:])
	who := "owner"
	if recipient != "" {
		who = "tenant\x00" + recipient + "\x00" + created.UTC().Format(time.RFC3339Nano)
	}
	_, _ = mac.Write([]byte("sublet webhook\x00" + who))
	return mac.Sum(nil)
}

// Secret is the secret of a recipient's webhook, a tenant's or the owner's
// (empty), as receivers take it: "whsec_" and base64.
func (k Key) Secret(host *vps.Host, recipient string) (string, error) {
	created := time.Time{}
	if recipient != "" {
		t := host.Tenant(recipient)
		if t == nil {
			return "", vps.NoTenant(recipient)
		}
		created = t.Created
	}
	return "whsec_" + base64.StdEncoding.EncodeToString(k.secret(recipient, created)), nil
}
