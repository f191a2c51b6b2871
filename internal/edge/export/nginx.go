package export

import (
	"fmt"
	"net/http"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// nginx writes the configuration of nginx 1.22 or later: what stands in
// nginx.org/en/docs for the modules ngx_stream_ssl_preread, ngx_stream_realip,
// ngx_stream_map, ngx_http_map and ngx_http_proxy.
//
// nginx can send the header of the PROXY protocol or not from a port, and expect one
// or not; both cannot depend on who calls or whom. Where they have to, connections go
// through further servers of the same nginx, by unix sockets: each takes off, or puts
// on, one header.
//
//	without trusted proxies:   port → guests
//	and guests that are told:  port —header→ guests that are told
//	                                —header→ quiet → other guests
//	with trusted proxies:      port —header→ callers → guests
//	                                —header→ proxies —the proxy's→ callers → guests
type nginx struct {
	text

	plan    *plan
	options Options
}

func writeNginx(p *plan, o Options) ([]File, error) {
	for _, t := range p.targets {
		if len(p.trusted) > 0 && t.mode != vps.CallerHidden {
			return nil, vps.Errorf(vps.CodeConflict,
				"nginx cannot hand on what trusted proxies (settings.edge.trusted_proxies) say of callers in the PROXY protocol, which the guest %s of %s is told by; export for HAProxy, or let the domain have `--caller hidden`",
				t.guest, some(append(p.told[vps.CallerProxyV1], p.told[vps.CallerProxyV2]...)))
		}
	}
	w := &nginx{plan: p, options: o}
	w.head(
		"nginx 1.22 or later with its stream module: what sublet's edge does, as it was when this was written. It is the whole of /etc/nginx/nginx.conf.",
		"Check it with `nginx -t -c FILE`.",
		"The same: ports; names exactly, then the longest suffix, then the default guest, then a refusal (alert unrecognized_name, page 421); "+
			"PROXY protocol from trusted proxies alone; deadlines; a caller's connections; pages for guests that do not answer.",
		nginxOthers(p))
	w.begin()
	w.stream()
	w.web()
	return []File{{"nginx.conf", w.String()}}, nil
}

func nginxOthers(p *plan) []string {
	others := []string{
		"A guest that starts or stops needs no other configuration, but a domain, a guest's address or a setting that changes does: export again, and reload nginx.",
		"Callers by TLS whose guest does not answer are hung up on, without an alert.",
		"Each request of HTTP is a connection of its own to the guest. HTTP/2 without TLS, TRACE, and trailers of requests are not passed on.",
		"A guest's limit of connections holds for each of its ports, and how many begin in a second is bound for callers by HTTP alone. Of HTTP only connections with a request on its way are counted.",
		"Nothing is written to guests' access logs, and counted for domains. Add `access_log` for a log of nginx's own.",
	}
	if names := p.told[vps.CallerProxyV2]; len(names) > 0 {
		others = append(others, "Guests are told who calls in version 1 of the PROXY protocol, also where version 2 is asked for; nearly all that read version 2 read both. It is so for "+some(names)+".")
	}
	return append(others, p.others()...)
}

// socket is where servers of the same nginx call each other.
func socket(name string) string { return fmt.Sprintf("unix:/run/sublet-nginx-%s.sock", name) }

func (w *nginx) begin() {
	w.add("# Debian has the stream module in a file of its own.")
	w.add("include /etc/nginx/modules-enabled/*.conf;")
	w.add("worker_processes auto;")
	w.add("worker_rlimit_nofile 65536;")
	w.add("pid /run/nginx.pid;")
	w.add("events {")
	w.add("    worker_connections 30000;")
	w.add("}")
}

// common writes what both blocks begin with.
func (w *nginx) common(http bool) {
	w.add("    map_hash_max_size 131072;")
	w.add("    map_hash_bucket_size 512;")
	w.add("    # Callers are counted by IPv4 address or /64 of IPv6.")
	w.add("    map $binary_remote_addr $sublet_caller {")
	w.add("        default $binary_remote_addr;")
	w.add(`        "~(?s)^(?<sublet_network>.{8}).{8}$" $sublet_network;`)
	w.add("    }")
	w.add("    limit_conn_zone $sublet_caller zone=sublet_callers_%s:16m;", block(http))
	w.add("    limit_conn_log_level info;")
	w.add("    proxy_connect_timeout 5000ms;")
	size := fmt.Sprintf(" %dk", 1024+8*len(w.plan.targets))
	for _, t := range w.plan.targets {
		if t.http != http {
			continue
		}
		w.add("    upstream %s {", t.name)
		w.add("        zone sublet_%s%s;", block(http), size)
		size = ""
		for i, to := range t.to {
			backup := ""
			if i > 0 {
				backup = " backup"
			}
			w.add("        server %s max_conns=%d max_fails=0%s;", to, t.limits.Connections, backup)
		}
		w.add("    }")
	}
}

func block(http bool) string {
	if http {
		return "http"
	}
	return "stream"
}

// leads writes a map of names to guests' ports. "!" is no name.
func (w *nginx) leads(from, to string, p *port) {
	fallback := nobody
	if p.fallback != nil {
		fallback = p.fallback.name
	}
	w.add("    map %s %s {", from, to)
	w.add("        hostnames;")
	w.add("        default %s;", fallback)
	w.add(`        "!" %s;`, nobody)
	for _, l := range p.exact {
		w.add("        %s %s;", key(l.name), l.to.name)
	}
	for _, l := range p.suffixes {
		w.add("        *.%s %s;", l.name, l.to.name)
	}
	w.add("    }")
}

// nobody is where names lead that nobody has.
const nobody = "refused"

// key is a name in a map, where some words mean something else.
func key(name string) string {
	switch name {
	case "default", "hostnames", "include", "volatile":
		return `\` + name
	}
	return name
}

// relay writes an upstream that is a server of the same nginx.
func (w *nginx) relay(name string) {
	w.add("    upstream %s {", name)
	w.add("        server %s;", socket(name))
	w.add("    }")
}

// listen writes where callers come to.
func (w *nginx) listen(p *port) {
	w.add("        listen %d;", p.Number)
	if !w.options.IPv4Only {
		w.add("        listen [::]:%d ipv6only=on;", p.Number)
	}
}

// hears writes a server's socket for another one, which says who calls.
func (w *nginx) hears(name string) {
	w.add("        listen %s proxy_protocol;", socket(name))
	w.add("        set_real_ip_from unix:;")
}

func (w *nginx) stream() {
	s := &w.plan.settings
	w.add("")
	w.add("stream {")
	w.common(false)
	w.add("    proxy_timeout %dms;", milliseconds(s.IdleTimeout))
	w.add("    preread_timeout %dms;", milliseconds(s.HandshakeTimeout))
	w.add("    proxy_protocol_timeout %dms;", milliseconds(s.HandshakeTimeout))
	w.add("    preread_buffer_size 17k; # a ClientHello of 16 KiB")
	w.add("    # The name as it was said, nothing for none, and ! for what is no TLS or no name.")
	w.add(`    map "$ssl_preread_protocol $ssl_preread_server_name" $sublet_name {`)
	w.add(`        default "!";`)
	w.add(`        "~^\S+ $" "";`)
	w.add(`        "~*^\S+ (?<sublet_sni>%s)$" $sublet_sni;`, hostPattern)
	w.add("    }")
	w.add("    upstream %s {", nobody)
	w.add("        server %s;", socket(nobody))
	w.add("    }")
	if len(w.plan.trusted) > 0 {
		w.add("    # Whose connections begin with a header of the PROXY protocol.")
		w.add("    geo $sublet_from {")
		w.add("        default callers;")
		for _, t := range w.plan.trusted {
			w.add("        %s proxies;", t)
		}
		w.add("    }")
	}
	for i := range w.plan.ports {
		p := &w.plan.ports[i]
		if len(w.plan.trusted) > 0 {
			w.sort(p)
		}
		if p.Kind == edge.KindTLS {
			w.tls(p)
		}
	}
	w.add("}")
}

// sort writes the servers that take trusted proxies' headers off, and no one else's.
func (w *nginx) sort(p *port) {
	callers, proxies := fmt.Sprintf("callers_%d", p.Number), fmt.Sprintf("proxies_%d", p.Number)
	w.add("")
	w.relay(callers)
	w.relay(proxies)
	w.add("    server {")
	w.listen(p)
	w.add("        proxy_protocol on;")
	w.add("        proxy_pass ${sublet_from}_%d;", p.Number)
	w.add("    }")
	w.add("    server {")
	w.add("        listen %s proxy_protocol;", socket(proxies))
	w.add("        proxy_pass %s;", callers)
	w.add("    }")
}

// tls writes the servers that read names.
func (w *nginx) tls(p *port) {
	to, quiet := fmt.Sprintf("$sublet_to_%d", p.Number), fmt.Sprintf("quiet_%d", p.Number)
	var told []*target
	for _, t := range w.plan.targets {
		if !t.http && t.mode != vps.CallerHidden && p.leadsTo(t) {
			told = append(told, t)
		}
	}
	w.add("")
	w.leads("$sublet_name", to, p)
	w.add("    server {")
	if len(w.plan.trusted) > 0 {
		w.hears(fmt.Sprintf("callers_%d", p.Number))
	} else {
		w.listen(p)
	}
	w.add("        limit_conn sublet_callers_stream %d;", w.plan.settings.CallerConnections)
	w.add("        ssl_preread on;")
	if len(told) == 0 {
		w.add("        proxy_pass %s;", to)
		w.add("    }")
		return
	}
	w.add("        proxy_protocol on;")
	w.add("        proxy_pass %s_told;", to)
	w.add("    }")
	w.add("    # Guests that are told who calls, and those that are not.")
	w.add("    map %s %s_told {", to, to)
	w.add("        default %s;", quiet)
	for _, t := range told {
		w.add("        %s %s;", t.name, t.name)
	}
	w.add("    }")
	w.relay(quiet)
	w.add("    server {")
	w.hears(quiet)
	w.add("        ssl_preread on;")
	w.add("        proxy_pass %s;", to)
	w.add("    }")
}

// leadsTo tells whether some name leads there.
func (p *port) leadsTo(t *target) bool {
	for _, leads := range [][]lead{p.exact, p.suffixes} {
		for _, l := range leads {
			if l.to == t {
				return true
			}
		}
	}
	return p.fallback == t
}

// web writes the block of HTTP.
func (w *nginx) web() {
	w.add("")
	w.add("http {")
	w.common(true)
	w.webSettings()
	w.add("    # Callers by TLS for names that nobody has: alert unrecognized_name.")
	w.add("    server {")
	w.add("        listen %s ssl;", socket(nobody))
	w.add("        ssl_reject_handshake on;")
	w.add("    }")
	first := true
	for i := range w.plan.ports {
		p := &w.plan.ports[i]
		if p.Kind != edge.KindHTTP {
			continue
		}
		if first { // all ports of HTTP lead to the same
			first = false
			w.webMaps(p)
		}
		w.webServer(p)
	}
	w.add("}")
}

func (w *nginx) webSettings() {
	s := &w.plan.settings
	idle := milliseconds(s.IdleTimeout)
	for _, line := range []string{
		"default_type \"text/plain; charset=utf-8\"", "access_log off", "server_tokens off",
		"underscores_in_headers on", "ignore_invalid_headers off", "merge_slashes off", "if_modified_since off",
		"large_client_header_buffers 4 16k", "client_max_body_size 0",
		"proxy_http_version 1.1", "proxy_buffering off", "proxy_request_buffering off", "proxy_redirect off",
		"proxy_buffer_size 32k", "proxy_buffers 4 32k",
		"proxy_pass_header Server", "proxy_pass_header Date",
		"proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset",
		"limit_conn_status 429", "limit_req_status 429", "limit_req_log_level info",
	} {
		w.add("    %s;", line)
	}
	w.add("    client_header_timeout %dms;", milliseconds(s.HandshakeTimeout))
	w.add("    keepalive_timeout %dms;", w.plan.keepAlive())
	for _, what := range []string{"client_body_timeout", "send_timeout", "proxy_read_timeout", "proxy_send_timeout"} {
		w.add("    %s %dms;", what, idle)
	}
	w.add("    # A connection begins with its first request.")
	w.add("    map $connection_requests $sublet_new {")
	w.add(`        default "";`)
	w.add("        1 $sublet_caller;")
	w.add("    }")
	w.add("    limit_req_zone $sublet_new zone=sublet_rate:16m rate=%dr/s;", s.CallerRate)
}

// webMaps write what depends on the request.
func (w *nginx) webMaps(p *port) {
	choose := func(from, to, other string, cases ...string) {
		w.add("    map %s %s {", from, to)
		w.add("        default %s;", other)
		for i := 0; i+1 < len(cases); i += 2 {
			w.add("        %s %s;", cases[i], cases[i+1])
		}
		w.add("    }")
	}
	choose("$host", "$sublet_name", `"!"`, `""`, `""`, `"~^`+hostPattern+`$"`, "$host", `"~^\[[0-9a-f:.]+\]$"`, "$host")
	w.leads("$sublet_name", "$sublet_to", p)
	w.add("    # The Host of a request in the absolute form is the one there; one of HTTP/1.0 may have none.")
	choose("$http_host", "$sublet_said", "$http_host", `""`, "localhost")
	choose("$request", "$sublet_host", "$sublet_said", `"~^\S+ [A-Za-z][A-Za-z0-9+.-]*://(?<sublet_authority>[^/?#\s]+)"`, "$sublet_authority")
	choose("$http_upgrade", "$sublet_upgrade", "$http_upgrade", "~*^h2c$", `""`)
	choose("$sublet_upgrade", "$sublet_connection", "upgrade", `""`, "close")
	w.add("    # Guests that are not told who calls have it in headers, which nobody else sets then.")
	choose("$remote_addr", "$sublet_who", "$remote_addr", "~^unix:", "unknown")
	choose("$sublet_to", "$sublet_hidden", `""`, `"~_hidden$"`, "1")
	for _, h := range []struct{ header, variable, value string }{
		{"$http_forwarded", "$sublet_forwarded", `""`},
		{"$http_x_forwarded_for", "$sublet_forwarded_for", "$sublet_who"},
		{"$http_x_forwarded_host", "$sublet_forwarded_host", "$sublet_host"},
		{"$http_x_forwarded_proto", "$sublet_forwarded_proto", "http"},
	} {
		choose("$sublet_hidden", h.variable, h.header, "1", h.value)
	}
	w.add("    # The others are told by a line before each request: nginx has no option for the header of")
	w.add("    # the PROXY protocol with HTTP, but each connection to a guest is for one request, which")
	w.add("    # begins with the method.")
	choose("$remote_addr", "$sublet_family", "TCP4", "~:", "TCP6")
	choose("$sublet_to", "$sublet_method", "$request_method",
		`"~_proxy-v[12]$"`, `"PROXY $sublet_family $remote_addr $server_addr $remote_port $server_port\r\n$request_method"`)
	w.add("    # Whether a guest was reached.")
	choose("$upstream_connect_time", "$sublet_reached", `""`, "~[0-9]", "1")
}

func (w *nginx) webServer(p *port) {
	said := func(code int) string { return fmt.Sprintf(`return %d "%s\n";`, code, edge.PageText(code)) }
	w.add("    server {")
	if len(w.plan.trusted) > 0 {
		w.hears(fmt.Sprintf("callers_%d", p.Number))
		w.add("        real_ip_header proxy_protocol;")
	} else {
		w.listen(p)
	}
	w.add("        error_page 429 = @many;")
	w.add("        error_page 502 504 = @away;")
	w.add("        location / {")
	w.add(`            if ($sublet_name = "!") { %s }`, said(http.StatusBadRequest))
	w.add("            if ($sublet_to = %s) { %s }", nobody, said(http.StatusMisdirectedRequest))
	w.add("            limit_conn sublet_callers_http %d;", w.plan.settings.CallerConnections)
	w.add("            limit_req zone=sublet_rate burst=%d nodelay;", w.plan.settings.CallerRate)
	w.add("            proxy_method $sublet_method;")
	for _, h := range [][2]string{
		{"Host", "$sublet_host"},
		{"Upgrade", "$sublet_upgrade"},
		{"Connection", "$sublet_connection"},
		{"Forwarded", "$sublet_forwarded"},
		{"X-Forwarded-For", "$sublet_forwarded_for"},
		{"X-Forwarded-Host", "$sublet_forwarded_host"},
		{"X-Forwarded-Proto", "$sublet_forwarded_proto"},
	} {
		w.add("            proxy_set_header %s %s;", h[0], h[1])
	}
	w.add("            proxy_pass http://$sublet_to;")
	w.add("        }")
	w.add("        location @many {")
	w.add("            add_header Retry-After 1 always;")
	w.add("            %s", said(http.StatusTooManyRequests))
	w.add("        }")
	w.add("        location @away {")
	w.add("            add_header Retry-After 5 always;")
	w.add("            if ($sublet_reached) { %s }", said(http.StatusBadGateway))
	w.add("            %s", said(http.StatusServiceUnavailable))
	w.add("        }")
	w.add("    }")
}
