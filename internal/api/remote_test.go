package api

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"sublet/internal/vps"
)

func TestRemoteAddresses(t *testing.T) {
	t.Parallel()
	for address, says := range map[string]string{
		"vps1.example.org:8443":       "",
		"192.0.2.1:1":                 "",
		"[2001:db8::5]:65535":         "",
		"[fe80::1%eth0]:8443":         "",
		"":                            "write HOST:PORT",
		"vps1":                        "write HOST:PORT",
		":8443":                       "write HOST:PORT",
		"::1:8443":                    "write HOST:PORT",
		"a b:1":                       "write HOST:PORT",
		"me@vps1:1":                   "write HOST:PORT",
		"vps1/x:1":                    "write HOST:PORT",
		"a:b:1":                       "write HOST:PORT",
		"vps1:":                       "is not a port",
		"vps1:0":                      "is not a port",
		"vps1:-1":                     "is not a port",
		"vps1:65536":                  "is not a port",
		"vps1:https":                  "is not a port",
		"vps1:8443/":                  "is not a port",
		"https://vps1:8443/":          "for example vps1:8443 (it is always TLS)",
		"https://":                    "for example vps1.example.org:8443",
		"unix:///run/sublet/api.sock": "is a URL",
	} {
		err := validAddress(address)
		if says == "" && err != nil || says != "" && (vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", address, err, says)
		}
	}
	for token, says := range map[string]string{
		strings.Repeat("a", 64) + "\n": "", " ": "asks for a token", "a b": "has a blank", "a\x01": "another character", "é": "another character",
	} {
		_, err := NewRemoteClient(Remote{Address: "vps1:1", Token: token})
		if says == "" && err != nil || says != "" && (vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(err.Error(), says)) {
			t.Errorf("the token %q: %v, want %q", token, err, says)
		}
	}
}

// TestLostRemote tells apart why a daemon elsewhere did not answer: whether
// anything can have been changed there depends on it.
func TestLostRemote(t *testing.T) {
	t.Parallel()
	c, err := NewRemoteClient(Remote{Address: "vps1:8443", Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, tt := range []struct {
		err  error
		says string
	}{
		{dial(&net.DNSError{Err: "no such host", Name: "vps1", IsNotFound: true}), "the name in vps1:8443 is not known"},
		{dial(&net.DNSError{Err: "i/o timeout", Name: "vps1", IsTimeout: true}), "no name server answers"},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "nobody listens on vps1:8443"},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "cannot be reached"},
		{dial(os.NewSyscallError("connect", syscall.EACCES)), "cannot be reached"},
		{context.DeadlineExceeded, "cannot be reached"},
		{&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "whether anything was changed is not known"},
		{errors.New("unexpected EOF"), "whether anything was changed is not known"},
	} {
		// As net/http hands it on.
		got := c.lost(t.Context(), &url.Error{Op: "Post", URL: "http://vps1:8443/", Err: tt.err})
		if vps.ErrorCode(got) != vps.CodeUnavailable || !strings.Contains(vps.ErrorMessage(got), tt.says) {
			t.Errorf("%v: %v, want %q", tt.err, got, tt.says)
		}
	}
}
