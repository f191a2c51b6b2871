package api

import (
	"encoding/json"
	"testing"

	"sublet/internal/vps"
)

// TestUpdateACME: what is named is changed, each field to its own, and no other.
func TestUpdateACME(t *testing.T) {
	t.Parallel()
	want := vps.ACMESettings{
		Directory: "https://ca/dir", CAFile: "/ca", Email: "a@b.example", AgreeTerms: true, EABKeyID: "kid", EABKeyFile: "/eab",
		DNSServer: "ns", DNSKeyName: "key", DNSAlgorithm: "hmac-sha512", DNSKeyFile: "/tsig",
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var u UpdateHost
	if err := json.Unmarshal([]byte(`{"acme":`+string(text)+`}`), &u); err != nil {
		t.Fatal(err)
	}
	s := vps.DefaultSettings()
	if u.Apply(&s); s.Edge.ACME != want {
		t.Errorf("all: %+v", s.Edge.ACME)
	}
	if (UpdateHost{ACME: UpdateACME{AgreeTerms: new(false)}}).Apply(&s); s.Edge.ACME.AgreeTerms || s.Edge.ACME.Email != want.Email {
		t.Errorf("one: %+v", s.Edge.ACME)
	}
}
