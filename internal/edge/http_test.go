package edge_test

import (
	"testing"

	"sublet/internal/vps"
)

func TestHTTPGoesByHost(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", HTTPPort: serve(t, named("alice"), false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", HTTPPort: serve(t, named("bob"), true)})
	s.set()
	for name, client := range map[string]*struct{ c, proto, upstream string }{} {
		_, _ = name, client
	}
	one := s.client()
	if code, got := get(t, one, "http://a.example.org/x?y"); code != 200 || got != "alice HTTP/1.1 GET a.example.org /x?y" {
		t.Errorf("%d %q", code, got)
	}
	if code, got := get(t, one, "http://b.example.org/x%2f?"); code != 200 || got != "bob HTTP/1.1 GET b.example.org /x%2f?" {
		t.Errorf("%d %q", code, got)
	}
	two := s.client(h2c)
	if code, got := get(t, two, "http://a.example.org/x?y"); code != 200 || got != "alice HTTP/1.1 GET a.example.org /x?y" {
		t.Errorf("%d %q", code, got)
	}
	if code, got := get(t, two, "http://b.example.org/x"); code != 200 || got != "bob HTTP/2.0 GET b.example.org /x" {
		t.Errorf("%d %q", code, got)
	}
	if code, got := get(t, one, "http://c.example.org/x"); code != 421 || got != "No site of this name is served here.\n" {
		t.Errorf("%d %q", code, got)
	}
}
