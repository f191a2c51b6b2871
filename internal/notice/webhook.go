package notice

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sublet/internal/vps"
)

// Bounds of one call of a webhook.
const (
	webhookTimeout = 20 * time.Second
	maxReply       = 64 << 10
	maxReplyHeader = 32 << 10
)

// body is what a webhook gets: the three members that the specification asks
// for, under "data" what every notice has, and under that its kind's own.
type body struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      bodyData  `json:"data"`
}

type bodyData struct {
	Host    string          `json:"host"`
	Guest   string          `json:"guest"`
	Tenant  string          `json:"tenant"`
	Message string          `json:"message"`
	Details json.RawMessage `json:"details,omitempty"`
}

// sign signs a body as the specification says under "Signature scheme".
func sign(secret []byte, id string, at time.Time, content []byte) string {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	_, _ = mac.Write(content)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// post calls a webhook once.
func (s *Sender) post(ctx context.Context, host *vps.Host, address string, w vps.WaitingNotice) error {
	content, err := json.Marshal(body{Type: w.Kind, Timestamp: w.Time, Data: bodyData{s.hostname, w.Guest, w.Tenant, w.Message, w.Data}})
	if err != nil {
		return err
	}
	created := time.Time{}
	if t := host.Tenant(w.Recipient); t != nil {
		created = t.Created
	}
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(content))
	if err != nil {
		return err
	}
	now := time.Now()
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "sublet")
	r.Header.Set("Webhook-Id", w.UID)
	r.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	r.Header.Set("Webhook-Signature", sign(s.key.secret(w.Recipient, created), w.UID, now, content))
	client, transport := s.client(host)
	defer transport.CloseIdleConnections()
	response, err := client.Do(r)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which may hold a secret
		}
		return explainCall(ctx, err)
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.CopyN(io.Discard, response.Body, maxReply) // what it says is of no interest
	return answered(response, now)
}

// client makes a client for one call. Proxies of the environment are not used:
// they would be asked for addresses in our place.
func (s *Sender) client(host *vps.Host) (*http.Client, *http.Transport) {
	dialer := publicDialer(host)
	if host.Settings.Notices.AllowPrivate {
		dialer = &net.Dialer{Timeout: dialTimeout}
	}
	transport := &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: maxReplyHeader,
		TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: s.handshake,
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, transport
}

// refused is an answer that is not a success.
type refused struct {
	status string
	// gone: it never wants to hear again (410). after: it asks for patience.
	gone  bool
	after time.Duration
}

func (r *refused) Error() string { return "the server answered " + r.status }

func answered(response *http.Response, now time.Time) error {
	code := response.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	r := &refused{status: strconv.Itoa(code) + " " + http.StatusText(code), gone: code == http.StatusGone, after: retryAfter(response.Header.Get("Retry-After"), now)}
	if code >= 300 && code < 400 {
		r.status += "; webhooks do not follow redirects, so name where it leads"
	}
	return r
}

// retryAfter reads a number of seconds or a date (RFC 9110, 10.2.3); 0 for
// nothing of use.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}
