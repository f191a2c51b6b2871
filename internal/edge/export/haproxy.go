package export

import (
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// Words that differ between HAProxy's rules for TCP and for HTTP.
const (
	forTCP  = "tcp-request content"
	forHTTP = "http-request"
)

// maxWords is how many names stand in one line. HAProxy takes 64 words.
const maxWords = 40

// haproxy writes HAProxy's configuration (its Configuration Manual, version 2.6).
type haproxy struct {
	text

	plan    *plan
	options Options
	maps    []File
}

func writeHAProxy(p *plan, o Options) ([]File, error) {
	w := &haproxy{plan: p, options: o}
	w.head(
		"HAProxy 2.6 or later: what sublet's edge does, as it was when this was written.",
		"Check it with `haproxy -c -f FILE`. It says that connections of the bind line \"refused\" will fail: that is what they are for.",
		"The same: ports; names exactly, then the longest suffix, then the default guest, then a refusal (alert unrecognized_name, page 421); "+
			"the PROXY protocol both ways; deadlines; a caller's connections and how many begin in a second; pages for guests that do not answer.",
		haproxyOthers(p))
	w.begin()
	for i := range p.ports {
		if p.ports[i].Kind == edge.KindHTTP {
			w.http(&p.ports[i])
		} else {
			w.tls(&p.ports[i])
		}
	}
	w.refused()
	for _, t := range p.targets {
		w.target(t)
	}
	return append([]File{{"haproxy.cfg", w.String()}}, w.maps...), nil
}

// haproxyOthers are the differences that matter to this plan.
func haproxyOthers(p *plan) []string {
	others := []string{
		"A guest that starts or stops needs no other configuration, but a domain, a guest's address or a setting that changes does: export again, and reload HAProxy.",
		"Callers by TLS whose guest does not answer are hung up on, without an alert. So is HTTP on a port for TLS.",
		"A ClientHello in several records of TLS is taken for one without a name.",
		"Headers of a request may have 19 KiB, not 64. HTTP/2 without TLS goes on to the guest as HTTP/1.1.",
		"A guest's limits count each request of HTTP as a connection. Who is over a limit waits for no second: he is let in as soon as he is below it.",
		"Nothing is written to guests' access logs, and counted for domains. Add `log` lines for a log of HAProxy's own.",
	}
	return append(others, p.others()...)
}

// others are the differences that both routers have in common.
func (p *plan) others() []string {
	var others []string
	if names := p.told[vps.CallerTransparent]; len(names) > 0 {
		others = append(others, "Transparent mode: guests see the host and not the caller, and headers X-Forwarded-For, -Host and -Proto with HTTP, because the host leads guests' answers "+
			"to callers back to sublet's own edge alone. `sublet domain` with --caller proxy-v2 tells them. It is so for "+some(names)+".")
	}
	if len(p.wake) > 0 {
		others = append(others, "Nobody starts a guest that is called: "+some(p.wake)+".")
	}
	if p.quic {
		others = append(others, "QUIC (UDP port 443) is not led by name. Close the port, so that browsers take TCP at once.")
	}
	return others
}

func milliseconds(d vps.Duration) int64 { return time.Duration(d).Milliseconds() }

// keepAlive is how long a connection of HTTP may be without a request, as the edge
// has it.
func (p *plan) keepAlive() int64 {
	return min(milliseconds(p.settings.IdleTimeout), (3 * time.Minute).Milliseconds())
}

func (w *haproxy) begin() {
	s := &w.plan.settings
	idle := milliseconds(s.IdleTimeout)
	w.add("global")
	w.add("    user haproxy")
	w.add("    group haproxy")
	w.add("    # A ClientHello of 16 KiB has to fit.")
	w.add("    tune.bufsize 20480")
	w.add("")
	w.add("defaults")
	w.add("    timeout connect 5000ms")
	w.add("    timeout client %dms", idle)
	w.add("    timeout server %dms", idle)
	w.add("    timeout tunnel %dms", idle)
	w.add("    timeout http-request %dms", milliseconds(s.HandshakeTimeout))
	w.add("    timeout http-keep-alive %dms", w.plan.keepAlive())
	w.add("    # A caller's connections to a guest are no other caller's.")
	w.add("    http-reuse never")
	for _, code := range []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout} {
		text := code
		if code == http.StatusGatewayTimeout {
			text = http.StatusServiceUnavailable
		}
		w.add("    http-error status %d %s", code, page(text, "Retry-After", "5"))
	}
	w.add("")
	w.add("# What is counted: callers by IPv4 address or /64 of IPv6, guests by name.")
	w.add("backend callers")
	w.add("    stick-table type ipv6 size 256k expire 1m store conn_cur,conn_rate(1s)")
	w.add("backend guests")
	w.add("    stick-table type string len 64 size %d expire 1m store conn_cur,conn_rate(1s)", max(1024, 2*len(w.plan.targets)))
}

// page is an answer of a few words, as the edge has it.
func page(code int, header ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `content-type "text/plain; charset=utf-8" string "%s\n" hdr Cache-Control no-store`, edge.PageText(code))
	for i := 0; i+1 < len(header); i += 2 {
		fmt.Fprintf(&b, ` hdr "%s" "%s"`, header[i], header[i+1])
	}
	return b.String()
}

// callers are the rules that find out who calls, and whether he may.
func (w *haproxy) callers(p *port) {
	s := &w.plan.settings
	w.add("    bind 0.0.0.0:%d", p.Number)
	if !w.options.IPv4Only {
		w.add("    bind [::]:%d v6only", p.Number)
	}
	for some := range slices.Chunk(w.plan.trusted, maxWords) {
		w.add("    tcp-request connection expect-proxy layer4 if { src %s }", prefixes(some))
	}
	const key = "src,ipmask(32,64)"
	w.add("    tcp-request session set-var(sess.over) bool(true) if { %s,table_conn_cur(callers) ge %d }", key, s.CallerConnections)
	w.add("    tcp-request session set-var(sess.over) bool(true) if { %s,table_conn_rate(callers) ge %d }", key, s.CallerRate)
	w.add("    tcp-request session track-sc0 %s table callers unless { var(sess.over) -m bool }", key)
}

func prefixes(all []netip.Prefix) string {
	words := make([]string, len(all))
	for i, p := range all {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

// tls writes a port of TLS.
func (w *haproxy) tls(p *port) {
	w.add("")
	w.add("frontend tls_%d", p.Number)
	w.add("    mode tcp")
	w.callers(p)
	w.add("    tcp-request session reject if { var(sess.over) -m bool }")
	w.add("    tcp-request inspect-delay %dms", milliseconds(w.plan.settings.HandshakeTimeout))
	w.add("    tcp-request content reject unless { req.ssl_hello_type 1 }")
	w.add("    tcp-request content set-var(txn.name) req.ssl_sni,lower if { req.ssl_sni -m found }")
	w.add(`    tcp-request content set-var(txn.to) str(refused) if { var(txn.name) -m found } !{ var(txn.name) -m reg '^%s$' }`, hostPattern)
	w.add("    tcp-request content set-var(txn.name) var(txn.name),rtrim(.)")
	w.choose(forTCP, p)
	w.add("    use_backend %%[var(txn.to)] if { var(txn.to) -m found }")
	w.add("    default_backend refused")
}

// hostPattern is a host name in lower case as callers may write it, with a final dot
// or without one.
const hostPattern = `([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?`

// http writes a port of HTTP.
func (w *haproxy) http(p *port) {
	refuse := func(code int, condition string, header ...string) {
		w.add("    http-request return status %d %s if %s", code, page(code, append(header, "Connection", "close")...), condition)
	}
	w.add("")
	w.add("frontend http_%d", p.Number)
	w.add("    mode http")
	w.callers(p)
	refuse(http.StatusTooManyRequests, "{ var(sess.over) -m bool }", "Retry-After", "1")
	refuse(http.StatusMethodNotAllowed, "METH_CONNECT", "Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
	refuse(http.StatusBadRequest, "{ req.ver 1.1 } !{ req.hdr(host) -m found }")
	refuse(http.StatusBadRequest, fmt.Sprintf(`{ req.hdr(host) -m found } !{ req.hdr(host) -m reg -i '^(%s|\[[0-9a-f:.]+\])(:[0-9]{0,5})?$' }`, hostPattern))
	w.add("    http-request set-var(txn.name) req.hdr(host),host_only,lower,rtrim(.) if { req.hdr(host) -m found }")
	w.add("    # A request in the absolute form goes on as one in the usual form.")
	w.add("    http-request set-uri %%[pathq] if { url -m beg -i http:// https:// }")
	w.choose(forHTTP, p)
	w.add("    use_backend %%[var(txn.to)] if { var(txn.to) -m found }")
	w.add("    default_backend nobody")
}

// choose sets the variable txn.to by txn.name: to where that very name leads, else
// where the longest suffix does, else the default guest. It stays unset when nobody
// wants the call.
func (w *haproxy) choose(rule string, p *port) {
	const open = "!{ var(txn.to) -m found }"
	if w.options.Dir != "" {
		w.chooseByMap(rule, p)
	} else {
		w.chooseInline(rule, p)
	}
	if p.fallback != nil {
		w.add("    %s set-var(txn.to) str(%s) if %s", rule, p.fallback.name, open)
	}
}

// suffixOf is the sample that is the last labels of the name, and the condition that
// there are more.
func suffixOf(depth int) (sample, condition string) {
	return fmt.Sprintf("var(txn.name),field(-1,.,%d)", depth), fmt.Sprintf("!{ var(txn.to) -m found } { var(txn.name),field(-%d,.) -m found }", depth+1)
}

// chooseByMap looks names up in files, one for each number of labels.
func (w *haproxy) chooseByMap(rule string, p *port) {
	add := func(file string, leads []lead) string {
		var b strings.Builder
		for _, l := range leads {
			fmt.Fprintf(&b, "%s %s\n", l.name, l.to.name)
		}
		w.maps = append(w.maps, File{file, b.String()})
		return filepath.Join(w.options.Dir, file)
	}
	if len(p.exact) > 0 {
		w.add("    %s set-var(txn.to) var(txn.name),map_str(%s) if !{ var(txn.to) -m found }", rule, add(fmt.Sprintf("names-%d.map", p.Number), p.exact))
	}
	if len(p.suffixes) == 0 {
		return
	}
	path := add(fmt.Sprintf("suffixes-%d.map", p.Number), p.suffixes)
	for _, depth := range p.depths() {
		sample, condition := suffixOf(depth)
		w.add("    %s set-var(txn.to) %s,map_str(%s) if %s", rule, sample, path, condition)
	}
}

// chooseInline compares names with those in the lines of one file: each guest's port
// costs a look into a tree.
func (w *haproxy) chooseInline(rule string, p *port) {
	w.inline(rule, p.exact, "var(txn.name)", "!{ var(txn.to) -m found }")
	for _, depth := range p.depths() {
		sample, condition := suffixOf(depth)
		var leads []lead
		for _, l := range p.suffixes {
			if labels(l.name) == depth {
				leads = append(leads, l)
			}
		}
		w.inline(rule, leads, sample, condition)
	}
}

func (w *haproxy) inline(rule string, leads []lead, sample, condition string) {
	names := map[*target][]string{}
	var order []*target
	for _, l := range leads {
		if names[l.to] == nil {
			order = append(order, l.to)
		}
		names[l.to] = append(names[l.to], l.name)
	}
	for _, t := range order {
		for some := range slices.Chunk(names[t], maxWords) {
			w.add("    %s set-var(txn.to) str(%s) if %s { %s -m str -- %s }", rule, t.name, condition, sample, strings.Join(some, " "))
		}
	}
}

// refused writes where callers go whom nobody wants.
func (w *haproxy) refused() {
	w.add("")
	w.add("# Callers by TLS for names that nobody has: a server of TLS without a certificate says so")
	w.add("# with the alert unrecognized_name.")
	w.add("backend refused")
	w.add("    mode tcp")
	w.add("    server refused abns@sublet-refused")
	w.add("")
	w.add("frontend refusing")
	w.add("    mode tcp")
	w.add("    bind abns@sublet-refused name refused ssl strict-sni")
	w.add("    default_backend refused")
	w.add("")
	w.add("# Callers by HTTP for names that nobody has.")
	w.add("backend nobody")
	w.add("    mode http")
	const code = http.StatusMisdirectedRequest
	w.add("    http-request return status %d %s", code, page(code, "Connection", "close"))
}

// target writes a port of a guest.
func (w *haproxy) target(t *target) {
	w.add("")
	w.add("backend %s", t.name)
	rule, over := forTCP, "tcp-request content reject"
	if t.http {
		rule, over = forHTTP, fmt.Sprintf("http-request return status %d %s", http.StatusServiceUnavailable, page(http.StatusServiceUnavailable, "Retry-After", "1"))
		w.add("    mode http")
	} else {
		w.add("    mode tcp")
	}
	w.add("    %s if { str(%s),table_conn_cur(guests) ge %d }", over, t.guest, t.limits.Connections)
	w.add("    %s if { str(%s),table_conn_rate(guests) ge %d }", over, t.guest, t.limits.NewConnections)
	w.add("    %s track-sc1 str(%s) table guests", rule, t.guest)
	if t.http && t.mode == vps.CallerHidden {
		w.add("    http-request del-header Forwarded")
		w.add("    http-request set-header X-Forwarded-For %%[src]")
		w.add("    http-request set-header X-Forwarded-Host %%[req.hdr(host)]")
		w.add("    http-request set-header X-Forwarded-Proto http")
	}
	if len(t.to) > 1 {
		w.add("    balance first")
		w.add("    retries 1")
		w.add("    option redispatch 1")
	} else {
		w.add("    retries 0")
	}
	proxy := map[vps.CallerMode]string{vps.CallerProxyV1: " send-proxy", vps.CallerProxyV2: " send-proxy-v2"}[t.mode]
	for i, to := range t.to {
		w.add("    server guest%d %s%s", i+1, to, proxy)
	}
}
