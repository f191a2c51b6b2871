package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"sublet/internal/keeper"
	"sublet/internal/vps"
	"sublet/test/lab"
)

const (
	jailRounds  = 4 // with and without the jail, in each iteration
	jailWindows = 3 // of throughput, in each life of a guest
	// jailPrograms are started one after the other in the guest. Nothing asks
	// more of User Mode Linux: each is a new process of the host, with a mapping
	// for each of its pages, and the host's kernel is asked for all of them.
	jailPrograms = 300
)

// BenchmarkJail compares a guest in its jail to the same guest without: the
// same kernel with the same command line, disk, link and user. The jailed one
// is started as the daemon does it, by a keeper; the other by the benchmark
// itself, because nothing in the product leaves the jail out. So the keeper's
// own start is on the jail's account. Every life begins with the same disk.
func BenchmarkJail(b *testing.B) {
	g := newJailGuest(b)
	type side struct {
		start                 func() (end func())
		ssh, stream, programs *figure
	}
	newSide := func(name, metric string, start func() func()) *side {
		return &side{
			start,
			&figure{name: "start to SSH, " + name, unit: "s", metric: metric + "-ssh-s"},
			&figure{name: "TCP guest to outside, " + name, unit: "Gbit/s", metric: metric + "-Gbit/s"},
			&figure{name: fmt.Sprintf("%d programs in the guest, %s", jailPrograms, name), unit: "s", metric: metric + "-programs-s"},
		}
	}
	jailed, bare := newSide("jailed", "jailed", g.startJailed), newSide("bare", "bare", g.startBare)
	turn := 0
	for b.Loop() {
		for range jailRounds {
			// Who comes first takes turns, against a drift of the machine.
			order := []*side{jailed, bare}
			if turn++; turn%2 == 0 {
				slices.Reverse(order)
			}
			for _, s := range order {
				g.restore()
				asked := time.Now()
				end := s.start()
				g.greeted()
				s.ssh.add(time.Since(asked).Seconds())
				s.programs.add(g.programs())
				for range jailWindows {
					s.stream.add(g.throughput())
				}
				end()
			}
		}
	}
	ratio := func(name, metric string, a, c *figure) *figure {
		f := &figure{name: name + ", jailed / bare", unit: "%", metric: metric}
		f.add(100 * a.median() / c.median())
		low, high := ratioInterval(a, c)
		b.Logf("%s: between %.1f and %.1f %% by the samples' own noise", f.name, low, high)
		return f
	}
	// 5 % is what the jail may cost.
	ssh, stream, programs := ratio("start to SSH", "ssh-ratio-%", jailed.ssh, bare.ssh),
		ratio("TCP", "tcp-ratio-%", jailed.stream, bare.stream), ratio("programs", "programs-ratio-%", jailed.programs, bare.programs)
	ssh.atMost, stream.atLeast, programs.atMost = 105, 95, 105
	report(b, jailed.ssh, bare.ssh, ssh, jailed.stream, bare.stream, stream, jailed.programs, bare.programs, programs)
}

// jailGuest is a guest of a daemon that does not run any more, with the
// network that the daemon made.
type jailGuest struct {
	b      *testing.B
	h      *lab.Host
	config keeper.Config
	// address is the guest's, stream where the outside finds the program that
	// sends; memory is the room for the guest's memory when it has no jail.
	address, stream, memory string
}

func newJailGuest(b *testing.B) *jailGuest {
	b.Helper()
	h := lab.New(b)
	h.UseImage()
	h.Start()
	const name, program = "alice", "/usr/local/bin/stream"
	h.Sublet("create", name, "--memory", "512MiB", "--ssh-key", h.Key+".pub", "--wait", "ssh", "--timeout", "3m")
	shown := h.Show(name)
	port := strconv.Itoa(shown.Spec.Ports.First + 1)
	g := &jailGuest{b: b, h: h, address: shown.Spec.Address, stream: net.JoinHostPort(lab.HostAddress, port), memory: filepath.Join(h.Dir, "memory")}
	copyStream(b, h, g.address, program)
	// What only a first boot does is over when it goes down.
	h.SSH(name, "systemctl is-system-running --wait || true")
	h.SSH(name, "printf '[Service]\\nExecStart="+program+" :"+port+"\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/stream.service && systemctl --quiet enable stream")
	h.Sublet("stop", name)
	text, err := os.ReadFile(filepath.Join(h.RunDir, "guests", name, "config.json"))
	check(b, err)
	check(b, json.Unmarshal(text, &g.config))
	h.Stop()
	for _, disk := range g.config.Disks {
		command(b, "cp", "-p", "--sparse=always", disk, disk+".kept")
	}

	// A neighbour that is being looked for is asked once a second only.
	address, err := netip.ParseAddr(g.address)
	check(b, err)
	h.NS.Exec("ip", "neigh", "replace", g.address, "lladdr", vps.MACFor(address).String(), "dev", shown.Link, "nud", "permanent")
	// What the jail has of its own, in the lab's mount namespace: room for the
	// memory, the folder of the management socket, and the device of taps.
	uid := strconv.Itoa(int(g.config.UID))
	devices := filepath.Join(h.Dir, "devices")
	check(b, os.Mkdir(g.memory, 0o755))
	check(b, os.Mkdir(devices, 0o755))
	h.NS.Exec("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0700,uid=%s", int64(g.config.Memory), uid), "bench", g.memory)
	h.NS.Exec("mount", "-t", "tmpfs", "bench", devices)
	h.NS.Exec("mknod", "-m", "666", filepath.Join(devices, "tun"), "c", "10", "200")
	h.NS.Exec("mount", "--bind", filepath.Join(devices, "tun"), "/dev/net/tun")
	b.Cleanup(func() {
		for _, path := range []string{"/dev/net/tun", devices, g.memory} {
			check(b, syscall.Unmount(path, 0))
		}
	})
	for _, dir := range g.config.OwnDirs {
		path := filepath.Join(g.config.RunDir, dir)
		check(b, os.MkdirAll(path, 0o700))
		check(b, os.Chown(path, int(g.config.UID), int(g.config.UID)))
	}
	return g
}

// restore makes the guest's disks what they were after the first boot.
func (g *jailGuest) restore() {
	g.b.Helper()
	for _, disk := range g.config.Disks {
		command(g.b, "cp", "-p", "--sparse=always", disk+".kept", disk)
	}
}

// startJailed starts the guest as the daemon does. What it returns ends it, and
// returns when nothing of it runs any more.
func (g *jailGuest) startJailed() func() {
	g.b.Helper()
	in, err := keeper.Launcher{Command: g.config.Command}.Launch(g.b.Context(), g.config)
	check(g.b, err)
	return func() { check(g.b, keeper.Kill(g.b.Context(), in)) }
}

// startBare starts the guest's kernel by itself, as the guest's user.
func (g *jailGuest) startBare() func() {
	g.b.Helper()
	master, slave, err := pty.Open()
	check(g.b, err)
	// The jail has no random program break either, for the guest's sake.
	cmd := exec.CommandContext(g.b.Context(), "setarch", append([]string{"--addr-no-randomize"}, g.config.Argv...)...)
	cmd.Dir = g.config.RunDir
	for _, variable := range g.config.Env {
		cmd.Env = append(cmd.Env, strings.Replace(variable, "="+keeper.MemoryDir, "="+g.memory, 1))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: g.config.UID, Gid: g.config.UID}}
	check(g.b, cmd.Start())
	check(g.b, slave.Close())
	go io.Copy(io.Discard, master) //nolint:errcheck // ends with the terminal
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// Its helpers and its processes live on, and one holds its disks' locks.
		for g.endBare() > 0 {
		}
		_ = master.Close()
	}
}

// endBare kills all processes that work in the guest's run folder, as those of
// a guest without a jail do and nothing else, and tells how many there were.
func (g *jailGuest) endBare() int {
	g.b.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	check(g.b, err)
	found := 0
	for _, link := range links {
		if dir, err := os.Readlink(link); err != nil || dir != g.config.RunDir {
			continue // another's, or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		check(g.b, err)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			g.b.Fatal(err)
		}
		found++
	}
	return found
}

// greeted returns when the guest answers as an SSH server does.
func (g *jailGuest) greeted() {
	g.b.Helper()
	const patience, pause, most = 2 * time.Minute, 10 * time.Millisecond, 5 * time.Second
	dialer := net.Dialer{Timeout: 5 * pause} // what got no answer is sent again
	const hello = "SSH-"
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(pause) {
		conn, err := dialer.DialContext(g.b.Context(), "tcp4", net.JoinHostPort(g.address, "22"))
		if err != nil {
			continue
		}
		word := make([]byte, len(hello))
		check(g.b, conn.SetDeadline(time.Now().Add(most)))
		_, err = io.ReadFull(conn, word)
		_ = conn.Close()
		if err == nil && string(word) == hello {
			return
		}
	}
	g.b.Fatalf("the guest does not answer within %s", patience)
}

// programs starts programs in the guest, once it has nothing else to do, and
// returns how many seconds that took there.
func (g *jailGuest) programs() float64 {
	g.b.Helper()
	script := fmt.Sprintf(`systemctl is-system-running --wait >&2; a=$(date +%%s%%N); i=0
		while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done; echo $(($(date +%%s%%N)-a))`, jailPrograms)
	r := g.h.Command("ssh", "-q", "-i", g.h.Key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "root@"+g.address, script)
	took, err := strconv.ParseInt(strings.TrimSpace(r.Stdout), 10, 64)
	if err != nil {
		g.b.Fatalf("start programs in the guest: exit code %d, %v\n%s", r.Code, err, r.Stderr)
	}
	return time.Duration(took).Seconds()
}

// throughput is that of a connection from the outside, in Gbit/s, counted
// where the guest's bytes arrive.
func (g *jailGuest) throughput() float64 {
	g.b.Helper()
	speed := 0.0
	g.h.Outside.Do(func() { speed = fromGuest(g.b, g.stream) })
	return speed
}
