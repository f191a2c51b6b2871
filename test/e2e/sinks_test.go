package e2e

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/nstest"
)

// sinks takes webhooks and mail, and keeps what came. It answers the first
// webhook to each path with 500.
type sinks struct {
	secret map[string][]byte // by path; to be set before anything comes

	mu      sync.Mutex
	refused map[string]bool            // by path
	notices map[string]map[string]bool // their ids, by who, how and which step
	wrong   []string
}

// startSinks serves webhooks and mail at ports of an address in a network.
func startSinks(t *testing.T, in *nstest.NS, hooks, mail string) *sinks {
	t.Helper()
	s := &sinks{secret: map[string][]byte{}, refused: map[string]bool{}, notices: map[string]map[string]bool{}}
	listeners := map[string]net.Listener{}
	in.Do(func() {
		for _, address := range []string{hooks, mail} {
			l, err := net.Listen("tcp4", address)
			if err != nil {
				t.Error(err)
				return
			}
			listeners[address] = l
			t.Cleanup(func() { _ = l.Close() })
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	server := &http.Server{Handler: http.HandlerFunc(s.hook), ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(listeners[hooks]) }()
	go func() {
		for {
			conn, err := listeners[mail].Accept()
			if err != nil {
				return
			}
			go s.smtp(conn)
		}
	}()
	return s
}

func (s *sinks) keep(key, id string) {
	if s.notices[key] == nil {
		s.notices[key] = map[string]bool{}
	}
	s.notices[key][id] = true
}

// hook checks a webhook as the specification of Standard Webhooks says.
func (s *sinks) hook(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	var body struct {
		Type string `json:"type"`
		Data struct {
			Guest, Tenant string
			Details       struct{ Percent int }
		} `json:"data"`
	}
	id, at := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
	mac := hmac.New(sha256.New, s.secret[r.URL.Path])
	_, _ = mac.Write([]byte(id + "." + at + "." + string(content)))
	seconds, badTime := strconv.ParseInt(at, 10, 64)
	const patience = 5 * 60
	off := time.Now().Unix() - seconds
	switch {
	case err != nil || badTime != nil || off > patience || off < -patience || r.Header.Get("Webhook-Signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)):
		s.wrong = append(s.wrong, fmt.Sprintf("%s is not signed as it should be: %v %s", r.URL.Path, r.Header, content))
	case json.Unmarshal(content, &body) != nil || body.Type != "quota" || body.Data.Guest != "alice" || body.Data.Tenant != "bob":
		s.wrong = append(s.wrong, fmt.Sprintf("%s gets %s", r.URL.Path, content))
	case !s.refused[r.URL.Path]:
		s.refused[r.URL.Path] = true
		w.WriteHeader(http.StatusInternalServerError)
	default:
		s.keep(fmt.Sprintf("webhook %s %d%%", r.URL.Path, body.Data.Details.Percent), id)
	}
}

var (
	messageID = regexp.MustCompile(`(?mi)^Message-ID: *(\S+)`)
	stepTold  = regexp.MustCompile(`(\d+%) of the quota of the guest alice`)
)

// smtp takes mail from one connection (RFC 5321).
func (s *sinks) smtp(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // whoever sent it has gone
	in := bufio.NewScanner(conn)
	say := func(line string) { _, _ = io.WriteString(conn, line+"\r\n") }
	say("220 lab ESMTP")
	var to string
	for in.Scan() {
		switch line := in.Text(); {
		case strings.HasPrefix(line, "RCPT TO:"):
			to = strings.Trim(strings.Fields(line[len("RCPT TO:"):])[0], "<>")
			say("250 fine")
		case line == "DATA":
			say("354 go on")
			var content strings.Builder
			for in.Scan() && in.Text() != "." {
				content.WriteString(in.Text() + "\n")
			}
			s.mail(to, content.String())
			say("250 taken")
		case line == "QUIT":
			say("221 bye")
			return
		default:
			say("250 fine")
		}
	}
}

func (s *sinks) mail(to, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := messageID.FindStringSubmatch(content)
	step := stepTold.FindStringSubmatch(strings.ReplaceAll(content, "=\n", ""))
	if id == nil || step == nil {
		s.wrong = append(s.wrong, to+" gets "+content)
		return
	}
	s.keep("mail "+to+" "+step[1], id[1])
}

// came tells how many came, by who, how and which step, and what was wrong.
func (s *sinks) came() (counts map[string]int, wrong []string, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts = map[string]int{}
	for key, ids := range s.notices {
		counts[key] = len(ids)
	}
	return counts, s.wrong, len(s.refused)
}
