package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"sublet/internal/proof/prooftest"
	"sublet/internal/servertest"
	"sublet/internal/vps"
	"sublet/test/lab"
)

// domainProof is what `domain verify -o json` says of one domain.
type domainProof struct {
	vps.Proof
	State vps.DomainState
	Steps vps.ProofSteps
}

// TestDomainProofs has a tenant prove that names are his, with a name server on the
// host's loopback and a web server outside, and the daemon be killed meanwhile.
func TestDomainProofs(t *testing.T) {
	t.Parallel()
	h := lab.New(t)
	h.UseImage()
	h.Start()
	file := filepath.Join(h.Dir, "host.yaml")
	writeFile(t, file, `version: 1
settings:
  public_address: `+lab.HostAddress+`
  edge: {resolvers: ["127.0.0.1:53"], allow_private: true}
tenants:
  - name: bob
guests:
  - name: alice
    tenant: bob
    power: stopped
    memory: 128MiB
    disk: 1GiB
    domains: [blog.example.org, "*.bob.example.org", shop.example.org, here.example.org]
  - name: mine
    power: stopped
    memory: 128MiB
    disk: 1GiB
    domains: [mine.example.org]
`)
	h.Sublet("apply", "-f", file)
	verify := func(code int, name string) domainProof {
		t.Helper()
		r := h.Try("domain", "verify", name, "-o", "json")
		var out struct{ Domains []domainProof }
		if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil || r.Code != code || len(out.Domains) != 1 {
			t.Fatalf("domain verify %s ends with %d, not %d: %v\n%s%s", name, r.Code, code, err, r.Stdout, r.Stderr)
		}
		return out.Domains[0]
	}
	dns := func(records ...string) *servertest.Server {
		t.Helper()
		return prooftest.Start(t, func(c *exec.Cmd) (err error) { h.NS.Do(func() { err = c.Start() }); return err }, "127.0.0.1", 53, records...)
	}

	t.Log("nobody answers")
	if p := verify(0, "mine.example.org"); p.State != vps.DomainLive {
		t.Errorf("the owner's own: %+v", p)
	}
	blog := verify(1, "blog.example.org")
	if blog.State != vps.DomainPending || !strings.Contains(blog.Message, "no name server knows") || blog.Steps.Record != "_sublet.blog.example.org" {
		t.Errorf("%+v", blog)
	}
	suffix, shop, here := verify(1, "*.bob.example.org"), verify(1, "shop.example.org"), verify(1, "here.example.org")

	t.Log("records and files are there")
	var web net.Listener
	var err error
	h.Outside.Do(func() { web, err = net.Listen("tcp", lab.StrangerAddress+":80") })
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Host == "shop.example.org" && r.URL.Path == "/.well-known/sublet-"+shop.Steps.Content {
			_, _ = out.Write([]byte(shop.Steps.Content))
			return
		}
		http.NotFound(out, r)
	})}
	go func() { _ = server.Serve(web) }()
	t.Cleanup(func() { _ = server.Close() })
	addresses := []string{
		"--host-record=blog.example.org," + lab.HostAddress, "--host-record=shop.example.org," + lab.StrangerAddress, "--host-record=here.example.org," + lab.HostAddress,
	}
	names := dns(append(addresses, "--txt-record="+blog.Steps.Record+","+blog.Steps.Value, "--txt-record="+suffix.Steps.Record+",v=spf1 -all", "--txt-record="+suffix.Steps.Record+","+suffix.Steps.Value)...)
	if p := verify(0, "blog.example.org"); p.State != vps.DomainLive || p.Method != vps.ProofDNS || p.Proved.IsZero() {
		t.Errorf("%+v", p)
	}
	if p := verify(0, "*.bob.example.org"); p.State != vps.DomainLive {
		t.Errorf("%+v", p)
	}
	if p := verify(0, "shop.example.org"); p.State != vps.DomainLive || p.Method != vps.ProofFile || asked.Load() == 0 {
		t.Errorf("%+v", p)
	}
	if p := verify(1, "here.example.org"); p.State != vps.DomainPending || !strings.Contains(p.Message, "which is this host") || p.Steps != here.Steps {
		t.Errorf("%+v", p)
	}
	if r := h.Try("domain", "verify", "blog.example.org", "here.example.org"); r.Code != 8 || !strings.Contains(r.Stderr, here.Steps.Value) {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if events := h.Sublet("events", "alice"); strings.Count(events, "is proved to be bob's, and live") != 3 {
		t.Errorf("events:\n%s", events)
	}

	t.Log("the daemon is killed, and nobody answers the next one")
	names.Stop()
	h.Kill()
	h.Start()
	if p := verify(0, "blog.example.org"); p.State != vps.DomainLive || !p.Failing.IsZero() || !strings.Contains(p.Message, "no name server knows") {
		t.Errorf("%+v", p)
	}

	t.Log("the records are taken away")
	dns(addresses...)
	if p := verify(0, "blog.example.org"); p.State != vps.DomainFailing || p.Failing.IsZero() {
		t.Errorf("%+v", p)
	}
	if r := h.Try("domain", "verify", "blog.example.org"); r.Code != 0 || !strings.Contains(r.Stderr, blog.Steps.Value) {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}

	t.Log("where calls end")
	r := h.Try("domain", "test", "blog.example.org", "-o", "json")
	var way struct{ Hops []vps.Hop }
	if err := json.Unmarshal([]byte(r.Stdout), &way); err != nil || r.Code != 1 {
		t.Fatalf("%d, %v: %s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	found := map[vps.HopName]vps.HopState{}
	for _, hop := range way.Hops {
		found[hop.Hop] = hop.State
	}
	for hop, want := range map[vps.HopName]vps.HopState{vps.HopSpec: vps.HopOK, vps.HopDNS: vps.HopOK, vps.HopFirewall: vps.HopOK, vps.HopGuest: vps.HopFailed, vps.HopCertificate: vps.HopUnknown} {
		if found[hop] != want {
			t.Errorf("%s is %s, not %s:\n%s", hop, found[hop], want, r.Stdout)
		}
	}
	h.NS.Exec("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 0; policy drop; }; add rule inet mine in tcp dport 80 accept; add rule inet mine in iif lo accept")
	if r := h.Try("domain", "test", "blog.example.org"); r.Code != 1 || !strings.Contains(r.Stdout, "drops what comes from outside for TCP port 443") || strings.Contains(r.Stdout, "for TCP port 80:") {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if r := h.Try("domain", "test", "shop.example.org"); !strings.Contains(r.Stdout, lab.StrangerAddress+", which is not this host: that is right behind a CDN") {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if r := h.Try("domain", "test", "nobody.example.org"); r.Code != 1 || !strings.Contains(r.Stdout, "no guest has the domain nobody.example.org") {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if r := h.Try("domain", "verify", "nobody.example.org"); r.Code != 3 {
		t.Errorf("%d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}
