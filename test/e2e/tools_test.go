package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/nstest"
	"sublet/test/lab"
)

// event is what `sublet events -o json` says that tests look at.
type event struct {
	ID      int64  `json:"id"`
	Guest   string `json:"guest"`
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// eventsAfter returns the events with a number above id, the oldest first.
func eventsAfter(t *testing.T, h *lab.Host, id int64) []event {
	t.Helper()
	var list struct {
		Events []event `json:"events"`
	}
	decode(t, h.Sublet("events", "-n", "1000", "-o", "json"), &list)
	var after []event
	for _, e := range list.Events {
		if e.ID > id {
			after = append(after, e)
		}
	}
	return after
}

// lastEvent returns the number of the newest event, 0 for none.
func lastEvent(t *testing.T, h *lab.Host) int64 {
	t.Helper()
	all := eventsAfter(t, h, 0)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1].ID
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// traces returns everything that a host shows to have been changed: what is
// desired, the names of all files and folders, the links, routes and rules.
func traces(t *testing.T, h *lab.Host) string {
	t.Helper()
	var b strings.Builder
	if r := h.Try("export"); r.Code == 0 {
		fmt.Fprintf(&b, "== export\n%s", r.Stdout)
	}
	b.WriteString("== files\n")
	for _, dir := range []string{h.StateDir, h.RunDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if path == dir && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			// SQLite's log beside the state comes and goes as it likes.
			if d.Type().IsRegular() && strings.HasPrefix(d.Name(), "state.db") {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s %s\n", info.Mode(), path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"nft list ruleset", "ip -o link", "ip -o -4 addr", "ip -4 route show table all"} {
		words := strings.Fields(command)
		fmt.Fprintf(&b, "== %s\n%s\n", command, carrier.ReplaceAllString(h.NS.Exec(words[0], words[1:]...), ""))
	}
	return b.String()
}

// carrier is what the kernel says of a tap that nobody has open, some time
// after it was made.
var carrier = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP| state [A-Z]+| linkdown`)

// leavesAlone checks that do changes nothing on the host.
func leavesAlone(t *testing.T, h *lab.Host, what string, do func()) {
	t.Helper()
	before := traces(t, h)
	do()
	if diff := cmp.Diff(before, traces(t, h)); diff != "" {
		t.Errorf("%s changed something (-before +after):\n%s", what, diff)
	}
}

// caller calls a port and returns the line that answers, or "" when nobody
// does within two seconds.
type caller func(protocol, address string, port int) string

// from calls from a network.
func from(n *nstest.NS) caller {
	return func(protocol, address string, port int) string {
		out, err := n.Try("bash", "-c", callCommand(protocol, address, port))
		if err != nil {
			return ""
		}
		return out
	}
}

// fromGuest calls from inside a guest.
func fromGuest(h *lab.Host, guest string) caller {
	return func(protocol, address string, port int) string {
		r := h.TrySSH(guest, callCommand(protocol, address, port))
		if r.Code == 255 { // ssh(1): no command was run
			h.SSH(guest, "true")
		}
		return strings.TrimSpace(r.Stdout)
	}
}

// callCommand is for bash, whose redirections open sockets by themselves.
func callCommand(protocol, address string, port int) string {
	return fmt.Sprintf(`timeout 2 bash -c 'exec 3<>/dev/%s/%s/%d && echo hello >&3 && head -n1 <&3' 2>/dev/null`, protocol, address, port)
}

// answerer is a program for the guest that answers on all the ports it is
// given, TCP and UDP, with a line that says where the call came from and on
// which port: "tcp 203.0.113.9 20005". Every Debian has perl-base.
const answerer = `use strict; use IO::Select; use IO::Socket::INET;
my ($select, %of) = IO::Select->new;
for my $port (@ARGV) {
	my $tcp = IO::Socket::INET->new(LocalPort => $port, Proto => "tcp", Listen => 16, ReuseAddr => 1) or warn "tcp $port: $!";
	my $udp = IO::Socket::INET->new(LocalPort => $port, Proto => "udp") or warn "udp $port: $!";
	for my $socket (grep { defined } $tcp, $udp) { $select->add($socket); }
	$of{fileno $tcp} = ["tcp", $port] if $tcp;
	$of{fileno $udp} = ["udp", $port] if $udp;
}
while (1) {
	for my $socket ($select->can_read) {
		my ($protocol, $port) = @{$of{fileno $socket}};
		if ($protocol eq "tcp") {
			my $caller = $socket->accept or next;
			my $line = <$caller>;
			print $caller "tcp ", $caller->peerhost, " $port\n";
			close $caller;
		} else {
			my $text;
			defined $socket->recv($text, 1024) or next;
			$socket->send("udp " . $socket->peerhost . " $port\n");
		}
	}
}
`

// listenInGuest starts the answerer in a guest, until the guest ends.
func listenInGuest(t *testing.T, h *lab.Host, guest string, ports ...int) {
	t.Helper()
	words := strings.Trim(fmt.Sprint(ports), "[]")
	h.SSH(guest, "cat > /root/answerer.pl <<'END'\n"+answerer+"END\n")
	h.SSH(guest, "systemd-run --quiet perl /root/answerer.pl "+words)
	h.Eventually("the answerer listens in "+guest, func() bool {
		return fromGuest(h, guest)("tcp", "127.0.0.1", ports[len(ports)-1]) != ""
	})
}

// listen starts the answerer in a network of the test, until the test ends.
func listen(t *testing.T, h *lab.Host, in *nstest.NS, port int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "answerer.pl")
	writeFile(t, path, answerer)
	stop := background(t, in, "perl", path, fmt.Sprint(port))
	t.Cleanup(stop)
	h.Eventually("the answerer listens", func() bool { return from(in)("tcp", "127.0.0.1", port) != "" })
}

// quiet waits until a daemon has nothing left to do, the files that go with
// its kernel included.
func quiet(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Eventually("the plan is empty", h.Settled)
	h.Eventually("the kernel's files are made", func() bool {
		made, err := filepath.Glob(filepath.Join(h.StateDir, "kernels", "uml-*.json"))
		return err == nil && len(made) > 0
	})
}
