package vps

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"time"
)

// PageLink is a link to a page about traffic. Who has its address sees the
// page: the address ends in a key, of which the host keeps a hash only.
type PageLink struct {
	ID int64 `json:"id"`
	// Tenant is whose guests the page is about; empty for the owner's page about
	// the whole host.
	Tenant string `json:"tenant"`
	// Note is a text of the owner's, which the page does not show.
	Note    string    `json:"note"`
	Created time.Time `json:"created"`
	// TenantCreated is when that tenant was made: a later one with the same name
	// is another one, and the link is none to its page.
	TenantCreated time.Time `json:"-"`
}

// MaxPageLinks bounds the links of a host, and MaxPageNote the bytes of a note.
const (
	MaxPageLinks = 10_000
	MaxPageNote  = 1000
)

// PagePath is the path of pages; a key follows.
const PagePath = "/t/"

// PageKeyLength is the length of a key in characters.
const PageKeyLength = 26

// NewPageKey makes the key of a link: 130 random bits in 26 letters and digits
// that mean the same in any alphabet of addresses.
func NewPageKey() string { return strings.ToLower(rand.Text()) }

// HashPageKey is what is kept of a key, and what it is looked up by: SHA-256.
// A key has too many bits to be guessed from it.
func HashPageKey(key string) [sha256.Size]byte { return sha256.Sum256([]byte(key)) }

// Opens tells whether the link opens a page of this host: its tenant is still
// there, and is the one that it was made for.
func (l *PageLink) Opens(h *Host) bool {
	if l.Tenant == "" {
		return true
	}
	t := h.Tenant(l.Tenant)
	return t != nil && t.Created.Equal(l.TenantCreated)
}

// Validate checks what the owner gave; it returns an Error with CodeInvalid.
func (l *PageLink) Validate() error {
	if l.Tenant != "" {
		if err := ValidName("tenant", l.Tenant); err != nil {
			return err
		}
	}
	if len(l.Note) > MaxPageNote {
		return Invalid("note", "%d bytes are too many; use at most %d", len(l.Note), MaxPageNote)
	}
	return nil
}
