package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sublet/internal/edge/terminate/acmetest"
	"sublet/internal/hang"
	"sublet/test/lab"
)

// strangerAddress6 is the stranger's other address (RFC 3849).
const strangerAddress6 = "2001:db8:77::9"

// sites are two guests of two tenants with web servers of their own, and a world of
// callers outside.
type sites struct {
	*lab.Host
	t            *testing.T
	certificates map[string]*x509.Certificate // by guest
	called       map[string][]string          // by guest, lines that its web server is to write
	acme         *acmetest.Server             // that gives certificates
	roots        *x509.CertPool               // what those are checked with
}

// siteNames are the names that callers know, for each guest those of its certificate.
func siteNames() map[string][]string {
	return map[string][]string{
		"alice": {"blog.example.org", "www.alice.example.org", "a.b.alice.example.org", "imap.example.org"},
		"bob":   {"bob.example.org", "shop.example.org"},
		"":      {"pending.example.org", "unknown.example.org", "ended.example.org", "caddy.example.org"},
	}
}

// TestSites has real programs on both sides of the edge: nginx and Caddy in the guests,
// with certificates of their own, and outside curl, OpenSSL, Go, Chromium, wrk and an
// authority.
func TestSites(t *testing.T) {
	t.Parallel()
	image := webImage(t)
	acmetest.Build(t)
	h := lab.New(t)
	h.Start()
	s := &sites{Host: h, t: t, certificates: map[string]*x509.Certificate{}, called: map[string][]string{}}
	s.world()
	s.authority()
	h.Sublet("image", "import", image, "--name", "web/latest", "--capacity", "2GiB")
	h.Sublet("tenant", "add", "bob")
	for _, guest := range []string{"alice", "bob"} {
		h.Sublet("create", guest, "--tenant", map[string]string{"alice": "owner", "bob": "bob"}[guest], "--image", "web/latest", "--memory", "256MiB", "--ssh-key", h.Key+".pub")
	}
	h.Sublet("wait", "alice", "bob", "--for", "ssh", "--timeout", hang.After.String())
	s.serve("alice")
	s.serve("bob")
	h.Sublet("host", "set", "--edge-wake-timeout", hang.After.String())
	for _, command := range []string{
		"alice blog.example.org *.alice.example.org", "alice imap.example.org --listen 993",
		"bob bob.example.org --vouch --caller proxy-v2 --port 8443 --http-port 8080",
		"bob shop.example.org --vouch --wake", "bob pending.example.org",
	} {
		h.Sublet(append([]string{"domain", "add"}, strings.Fields(command)...)...)
	}
	h.Eventually("the edge serves", func() bool {
		_, err := h.Outside.Try("curl", "-sSk", "--fail-early", "https://imap.example.org:993/", "https://shop.example.org/")
		return err == nil
	})
	states := s.states()
	for name, want := range map[string]string{
		"*.alice.example.org": "live", "blog.example.org": "live", "imap.example.org": "live", "bob.example.org": "live", "shop.example.org": "live", "pending.example.org": "pending",
	} {
		if !strings.HasPrefix(states[name], want) {
			t.Errorf("%s is %q, not %s", name, states[name], want)
		}
	}

	s.curl()
	s.openSSL()
	s.goTLS()
	s.chromium()
	s.wrk()
	s.challenges()
	s.ended()
	s.webServersSaw()
	s.edgeSaw()
	s.download()
	s.handOver()
	s.wake()
	s.webServersSaw()
	s.caddy()
}

// webImage is the archive of a Debian with nginx, which starts with it, and Caddy,
// which does not.
func webImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.tar.gz")
	run(t, "tar", "--use-compress-program=gzip -1", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--exclude=./etc/systemd/system/multi-user.target.wants/caddy.service", "--create", "--file", path,
		"--directory", lab.Debian(t, "apt", "systemd-sysv,openssh-server,iproute2,nginx,openssl,caddy"), ".")
	return path
}

// world gives the host and the stranger outside addresses of both families, from
// which he calls, and the names of the sites.
func (s *sites) world() {
	s.Outside.Exec("ip", "-6", "addr", "add", routerAddress6+"/64", "dev", "eth0", "nodad")
	s.Outside.Exec("ip", "-6", "addr", "add", strangerAddress6+"/128", "dev", "lo", "nodad")
	s.NS.Exec("ip", "-6", "addr", "add", hostAddress6+"/64", "dev", "pub0", "nodad")
	s.NS.Exec("ip", "-6", "route", "add", "default", "via", routerAddress6)
	s.Outside.Exec("ip", "route", "add", lab.HostAddress+"/32", "dev", "eth0", "src", lab.StrangerAddress)
	s.Outside.Exec("ip", "-6", "route", "add", hostAddress6+"/128", "dev", "eth0", "src", strangerAddress6)
	hosts := "127.0.0.1 localhost\n"
	for _, names := range siteNames() {
		for _, address := range []string{lab.HostAddress, hostAddress6} {
			hosts += address + " " + strings.Join(names, " ") + "\n"
		}
	}
	path := filepath.Join(s.Dir, "hosts")
	writeFile(s.t, path, hosts)
	s.Outside.Exec("mount", "--bind", path, "/etc/hosts")
}

// big is how many bytes the guests' large file has, more than fits between the guest
// and a caller who does not read.
const big = 64 << 20

// sitesConfig is that of nginx. What GUEST stands for is its name. Behind port 9002
// is what reads all of a request before it is answered.
const sitesConfig = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	log_format seen "$remote_addr $server_port $host $request_method $request_uri $server_protocol $status";
	access_log /var/log/nginx/access.log seen;
	ssl_certificate /etc/nginx/site.crt;
	ssl_certificate_key /etc/nginx/site.key;
	set_real_ip_from ` + gateway + `;
	real_ip_header proxy_protocol;
	default_type text/plain;
	client_max_body_size 0;
	server {
		listen 80;
		listen [::]:80;
		listen 443 ssl http2;
		listen [::]:443 ssl http2;
		listen 993 ssl http2;
		listen [::]:993 ssl http2;
		listen 8080 proxy_protocol;
		listen [::]:8080 proxy_protocol;
		listen 8443 ssl http2 proxy_protocol;
		listen [::]:8443 ssl http2 proxy_protocol;
		location / { return 200 "GUEST is $host"; }
		location = /big { alias /srv/big; }
		location = /page { alias /srv/page.html; default_type text/html; }
		location = /take { proxy_pass http://127.0.0.1:9002; }
		location = /socket {
			proxy_pass http://127.0.0.1:9001;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection upgrade;
		}
		location /.well-known/acme-challenge/ { root /srv/acme; }
	}
	server {
		listen 127.0.0.1:9002;
		access_log off;
		location / { return 200 taken; }
	}
}
`

// sitesPage says what a browser hears on a WebSocket, and by which protocol it came.
// A frame that is not closed keeps the page from being loaded (HTML, 8.4.1).
const sitesPage = `<!doctype html><body><p id=out>nothing</p><script>
const frame = document.createElement("iframe");
document.body.append(frame);
frame.contentDocument.open();
const tell = text => { out.textContent = text; frame.contentDocument.close(); };
const way = performance.getEntriesByType("navigation")[0].nextHopProtocol;
const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket");
socket.onopen = () => socket.send("hello from " + location.host);
socket.onmessage = m => tell("by " + way + ", " + m.data);
socket.onerror = () => tell("the socket failed");
</script>
`

// sitesSocket is a server for WebSockets (RFC 6455), with messages of up to 99 bytes.
const sitesSocket = `use IO::Socket::INET;
my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 9001, Listen => 99, ReuseAddr => 1) or die $!;
while (1) {
	my $c = $l->accept or next;
	next if fork;
	my $key;
	while (($_ = <$c>) !~ /^\r?$/) { $key = $1 if m{^Sec-WebSocket-Key: ([A-Za-z0-9+/=]+)\r}i; }
	my $accept = qx(printf %s ${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11 | openssl dgst -sha1 -binary | base64);
	chomp $accept;
	print $c "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n\r\n";
	$c->flush;
	while (read($c, my $head, 6) == 6) {
		my ($kind, $length, $mask) = unpack "CCa4", $head;
		last if $kind != 0x81; # a whole text
		$length &= 127;
		read $c, my $text, $length;
		$text = "GUEST heard " . ($text ^ substr $mask x 32, 0, $length);
		print $c pack("CC", 0x81, length $text) . $text;
		$c->flush;
	}
	exit;
}
`

// serve starts a guest's web server.
func (s *sites) serve(guest string) {
	s.t.Helper()
	put := func(path, text string) string {
		return "cat >" + path + " <<'END'\n" + strings.ReplaceAll(text, "GUEST", guest) + "END\n"
	}
	names := "DNS:" + strings.Join(siteNames()[guest], ",DNS:")
	s.SSH(guest, "set -e\n"+put("/etc/nginx/nginx.conf", sitesConfig)+put("/srv/page.html", sitesPage)+put("/srv/socket.pl", sitesSocket)+
		put("/etc/systemd/system/socket.service", "[Service]\nExecStart=perl /srv/socket.pl\n[Install]\nWantedBy=multi-user.target\n")+`
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=`+guest+` -addext subjectAltName=`+names+` -keyout /etc/nginx/site.key -out /etc/nginx/site.crt 2>/dev/null
mkdir -p /srv/acme/.well-known/acme-challenge
head -c `+fmt.Sprint(big)+` /dev/urandom >/srv/big
systemctl enable --now socket
systemctl enable nginx
systemctl restart nginx`)
	text := s.SSH(guest, "cat /etc/nginx/site.crt")
	writeFile(s.t, s.trust(guest), text+"\n")
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		s.t.Fatalf("%s has no certificate: %s", guest, text)
	}
	var err error
	if s.certificates[guest], err = x509.ParseCertificate(block.Bytes); err != nil {
		s.t.Fatal(err)
	}
}

// trust is the file with a guest's certificate.
func (s *sites) trust(guest string) string { return filepath.Join(s.Dir, guest+".crt") }

// states tells of each domain its state, and the message after a space.
func (s *sites) states() map[string]string {
	s.t.Helper()
	var list struct {
		Domains []struct{ Name, State, Message string } `json:"domains"`
	}
	decode(s.t, s.Sublet("domain", "list", "-o", "json"), &list)
	states := map[string]string{}
	for _, d := range list.Domains {
		states[d.Name] = d.State + " " + d.Message
	}
	return states
}

// expect is for a line in the log of a guest's web server.
func (s *sites) expect(guest, line string) { s.called[guest] = append(s.called[guest], line) }

// webServersSaw waits until the web servers have written down all calls, with the
// addresses of those who called.
func (s *sites) webServersSaw() {
	s.t.Helper()
	s.t.Log("web servers know who called")
	for guest, lines := range s.called {
		var log []string
		var missing []string
		defer func() {
			if s.t.Failed() && len(missing) > 0 {
				s.t.Logf("%s's web server has not %q but\n%s", guest, missing, strings.Join(log[max(0, len(log)-50):], "\n"))
			}
		}()
		s.Eventually(guest+"'s web server has it all in its log", func() bool {
			log, missing = strings.Split(s.SSH(guest, "grep -v ' /load ' /var/log/nginx/access.log"), "\n"), nil
			for _, line := range lines {
				if !slices.Contains(log, line) {
					missing = append(missing, line)
				}
			}
			return len(missing) == 0
		})
	}
	clear(s.called)
}

// edgeSaw looks at what the tenants are told of their callers.
func (s *sites) edgeSaw() {
	s.t.Helper()
	s.t.Log("so does domain log")
	for guest, other := range map[string]string{"alice": "bob.example.org", "bob": "blog.example.org"} {
		var log string
		for _, want := range []string{
			lab.StrangerAddress + ` - - [`, strangerAddress6 + ` - - [`, `"CONNECT ` + siteNames()[guest][0] + ` TLS" 200 `, `"GET /plain-4 HTTP/1.1" 200 `, `"GET /prior HTTP/2.0" 200 `,
		} {
			s.Eventually("domain log has "+want, func() bool {
				log = s.Sublet("domain", "log", guest, "-n", "100000")
				return strings.Contains(log, want)
			})
		}
		if strings.Contains(log, other) {
			s.t.Errorf("what %s is told tells of %s", guest, other)
		}
	}
}
