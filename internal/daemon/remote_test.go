package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// TestRemote goes the way of a client elsewhere: through TLS and the token to
// the API, and nowhere without.
func TestRemote(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Config{StateDir: dir, RunDir: dir, Listen: "127.0.0.1:0"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	entrances, err := listen(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(api.Backend{}, api.ServerOptions{Version: "test"})
	work, _ := errgroup.WithContext(t.Context())
	for _, e := range entrances {
		work.Go(func() error { return server.Serve(t.Context(), e.Listener, e.gates...) })
	}
	t.Cleanup(func() {
		if err := work.Wait(); err != nil {
			t.Error(err)
		}
	})
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, "door", name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	address := entrances[1].Addr().String()
	for _, x := range []struct {
		what   string
		remote api.Remote
		want   vps.Code
	}{
		{"all is right", api.Remote{Address: address, Token: string(read("token")), Authority: read("cert.pem")}, ""},
		{"another token", api.Remote{Address: address, Token: "x", Authority: read("cert.pem")}, vps.CodeDenied},
		{"a certificate nobody vouches for", api.Remote{Address: address, Token: string(read("token"))}, vps.CodeDenied},
	} {
		client, err := api.NewRemoteClient(x.remote)
		if err != nil {
			t.Fatal(err)
		}
		v, err := client.Version(t.Context())
		if vps.ErrorCode(err) != x.want || (err == nil && v.Version != "test") {
			t.Errorf("%s: %+v, %v", x.what, v, err)
		}
		client.Close()
	}
	for _, bad := range []api.Remote{{Address: "host", Token: "x"}, {Address: address}, {Address: address, Token: "x", Authority: []byte("x")}} {
		if _, err := api.NewRemoteClient(bad); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
