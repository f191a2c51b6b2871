package edge

import (
	"fmt"
	"net/http"
	"strconv"
)

// pages are what callers are told who do not come to a guest. They name nobody.
var pages = map[int]string{ //nolint:gochecknoglobals // a constant
	http.StatusBadRequest:          "This request could not be read. HTTP without TLS does not belong on a port for TLS.",
	http.StatusMethodNotAllowed:    "This server is no proxy for other hosts.",
	http.StatusMisdirectedRequest:  "No site of this name is served here.",
	http.StatusTooManyRequests:     "There are too many connections from your address. Try again in a moment.",
	http.StatusInternalServerError: "Something is wrong with this server.",
	http.StatusBadGateway:          "The site did not answer in a way that makes sense. Try again later.",
	http.StatusServiceUnavailable:  "The site does not answer at the moment. Try again later.",
}

// PageText is what callers are told with this status of HTTP, without an end of line;
// empty for what the edge does not answer.
func PageText(status int) string { return pages[status] }

// retryAfter is when a caller may try again, in seconds, 0 for what trying does not
// help.
func retryAfter(why Reason) int {
	switch why {
	case ReasonCallerConnections, ReasonCallerRate, ReasonGuestConnections, ReasonGuestRate, ReasonServer:
		return 1
	case ReasonStopped:
		return 30
	case ReasonWake, ReasonGuestRefused, ReasonGuestTimeout, ReasonGuestLost, ReasonGuestAnswer:
		return 5
	case ReasonProxyHeader, ReasonHandshake, ReasonName, ReasonRequest, ReasonCertificate,
		ReasonQUIC, ReasonQUICCrowded, ReasonQUICNobody, ReasonQUICHost:
	}
	return 0
}

// statusOf is what HTTP says for a reason.
func statusOf(why Reason) int {
	switch why {
	case ReasonCallerConnections, ReasonCallerRate:
		return http.StatusTooManyRequests
	case ReasonRequest:
		return http.StatusBadRequest
	case ReasonName:
		return http.StatusMisdirectedRequest
	case ReasonGuestAnswer:
		return http.StatusBadGateway
	case ReasonGuestConnections, ReasonGuestRate, ReasonServer, ReasonStopped, ReasonWake, ReasonGuestRefused, ReasonGuestTimeout, ReasonGuestLost:
	case ReasonProxyHeader, ReasonHandshake, ReasonCertificate, ReasonQUIC, ReasonQUICCrowded, ReasonQUICNobody, ReasonQUICHost: // not of HTTP
	}
	return http.StatusServiceUnavailable
}

// page answers a request that no guest answers.
func page(w http.ResponseWriter, code int, why Reason) {
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if s := retryAfter(why); s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	if code == http.StatusMisdirectedRequest || code == http.StatusBadRequest || code == http.StatusMethodNotAllowed {
		h.Set("Connection", "close") // whoever asks for nothing that is here has no more to ask
	}
	if code == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE") // and all others but CONNECT
	}
	body := pages[code] + "\n"
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
}

// rawPage is a page for who has said nothing that could be answered otherwise. The
// connection ends with it.
func rawPage(code int) []byte {
	body := pages[code] + "\n"
	retry := ""
	if code == http.StatusTooManyRequests {
		retry = fmt.Sprintf("Retry-After: %d\r\n", retryAfter(ReasonCallerRate))
	}
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		code, http.StatusText(code), retry, len(body), body)
}
