package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"sublet/internal/vps"
)

// Access is a line of an access log in JSON.
type Access struct {
	// Time is when the caller asked, in UTC.
	Time time.Time `json:"time"`
	// Caller and Port are the caller's address and port.
	Caller string `json:"caller"`
	Port   uint16 `json:"port"`
	// Kind is http, https when TLS ended at the edge, tls when it went through to
	// the guest, or quic, likewise.
	Kind string `json:"kind"`
	// Host is the name that the caller asked for, Domain the one that has it.
	Host   string `json:"host"`
	Domain string `json:"domain"`
	// Method, Target, Protocol, Status, Referer and Agent are those of HTTP.
	Method   string `json:"method,omitempty"`
	Target   string `json:"target,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Status   int    `json:"status,omitempty"`
	Referer  string `json:"referer,omitempty"`
	Agent    string `json:"agent,omitempty"`
	// In and Out are bytes that came of the caller and that went there: of HTTP those
	// of the contents, of other connections all.
	In  uint64 `json:"bytes_in"`
	Out uint64 `json:"bytes_out"`
	// Microseconds are how long it took.
	Microseconds int64 `json:"duration_us"`
	// Refused is why the caller did not come to the guest, in a word.
	Refused Reason `json:"refused,omitempty"`
	// End is how a connection ended that went through or was upgraded: done, idle,
	// caller-reset, guest-reset, caller-lost, guest-lost, closed.
	End string `json:"end,omitempty"`
}

// passed is what came of a connection that is not HTTP to the edge.
type passed struct {
	in, out uint64
	reason  Reason // why it did not come to the guest; "" when it did
	end     string
}

func (s *Server) logs() bool {
	return s.options.Logs != nil && s.table.Load().settings.AccessLog != vps.AccessOff
}

// logTLS writes a connection down, at its end.
func (s *Server) logTLS(r *route, call *session, name string, began time.Time, p *passed) {
	if !s.logs() {
		return
	}
	a := s.access(r, call.caller.from, name, began)
	a.In, a.Out, a.Refused, a.End = p.in, p.out, p.reason, p.end
	a.Kind = "tls"
	s.write(r, a)
}

// logHTTP writes a request down, when it was answered.
func (s *Server) logHTTP(x *exchange, r *http.Request) {
	if !s.logs() {
		return
	}
	a := s.access(x.route, x.client.call.caller.from, r.Host, x.began)
	a.Kind = "http"
	if x.client.call.port.Kind == KindTLS {
		a.Kind = "https"
	}
	a.Method, a.Target, a.Protocol, a.Status = clip(r.Method), clip(r.RequestURI), r.Proto, x.answer.status
	a.Referer, a.Agent = clip(r.Referer()), clip(r.UserAgent())
	a.Out, a.Refused = uint64(x.answer.bytes), x.why
	if x.body != nil {
		a.In = uint64(x.body.bytes.Load())
	}
	if a.Status == http.StatusSwitchingProtocols {
		a.In, a.Out = x.upstream.in.Load()-x.in, x.upstream.out.Load()-x.out
		a.End = x.client.call.ending.why().String()
	}
	s.write(x.route, a)
}

func (s *Server) access(r *route, from netip.AddrPort, host string, began time.Time) *Access {
	return &Access{
		Time: began.UTC(), Caller: from.Addr().String(), Port: from.Port(),
		Host: host, Domain: r.domain.String(), Microseconds: time.Since(began).Microseconds(),
	}
}

func (s *Server) write(r *route, a *Access) {
	if s.table.Load().settings.AccessLog == vps.AccessJSON {
		line, err := json.Marshal(a)
		if err == nil {
			s.options.Logs.Write(r.guest.ID, append(asciiJSON(line), '\n'))
		}
		return
	}
	s.options.Logs.Write(r.guest.ID, a.combined())
}

// combinedTime is the layout of times in the Combined Log Format.
const combinedTime = "02/Jan/2006:15:04:05 -0700"

// combined is the line in the Combined Log Format of Apache's HTTP server
// (httpd.apache.org/docs/2.4/logs.html): address, two fields that are never known
// here, time, request, status, bytes of the answer, Referer and User-Agent. A
// connection that went through in TLS or QUIC is a CONNECT to the name.
func (a *Access) combined() []byte {
	method, target, protocol, status := a.Method, a.Target, a.Protocol, a.Status
	if a.Method == "" {
		method, target, protocol, status = http.MethodConnect, a.Host, strings.ToUpper(a.Kind), http.StatusOK
		if a.Refused != "" {
			status = statusOf(a.Refused)
		}
	}
	b := make([]byte, 0, 256)
	b = append(b, a.Caller...)
	b = append(b, " - - ["...)
	b = a.Time.AppendFormat(b, combinedTime)
	b = append(b, `] "`...)
	b = appendEscaped(b, method)
	b = append(b, ' ')
	b = appendEscaped(b, target)
	b = append(b, ' ')
	b = appendEscaped(b, protocol)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	if a.Out == 0 {
		b = append(b, '-') // %b
	} else {
		b = strconv.AppendUint(b, a.Out, 10)
	}
	for _, field := range []string{a.Referer, a.Agent} {
		b = append(b, ` "`...)
		if field == "" {
			field = "-"
		}
		b = appendEscaped(b, field)
		b = append(b, '"')
	}
	return append(b, '\n')
}

// asciiJSON escapes what is left in a JSON text that is not printable ASCII (RFC
// 8259, section 7): a terminal may take some of it for orders.
func asciiJSON(text []byte) []byte {
	other := func(r rune) bool { return r >= 0x7f }
	if !bytes.ContainsFunc(text, other) {
		return text
	}
	b := make([]byte, 0, 2*len(text))
	for _, r := range string(text) {
		if !other(r) {
			b = append(b, byte(r))
			continue
		}
		if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		} else {
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// LineTime is when the call of a line of an access log began, in whichever format
// it is; false for what is no such line. Those of combined have whole seconds, so
// the call may have begun a little later.
func LineTime(line []byte) (time.Time, bool) {
	layout, ends := time.RFC3339Nano, `",`
	text, found := bytes.CutPrefix(line, []byte(`{"time":"`))
	if !found {
		var caller []byte
		if caller, text, found = bytes.Cut(line, []byte(" - - [")); !found {
			return time.Time{}, false
		}
		if _, err := netip.ParseAddr(string(caller)); err != nil {
			return time.Time{}, false
		}
		layout, ends = combinedTime, `] "`
	}
	if text, _, found = bytes.Cut(text, []byte(ends)); !found {
		return time.Time{}, false
	}
	t, err := time.Parse(layout, string(text))
	return t, err == nil
}

// clip bounds how much of one field a line has.
func clip(s string) string {
	const most = 4096 // bytes
	return s[:min(len(s), most)]
}

// appendEscaped adds what a caller sent as Apache's HTTP server does, so that nobody
// ends a field or a line: quotes and backslashes with a backslash before them, what
// is not printable ASCII in hexadecimal.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c >= 0x7f:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
