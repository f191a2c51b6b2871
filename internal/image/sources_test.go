package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func TestSources(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files          map[string]string
		image          string
		build, inGuest string
	}{
		"deb822, own release": {
			files: map[string]string{
				"sources.list.d/debian.sources": `# comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
`, "sources.list.d/node.sources": "Types: deb\nURIs: http://node.example\nSuites: nodistro\nComponents: main\n",
				"sources.list.d/old.list.save": "deb http://no.example/debian bookworm main\n",
			},
			image: "debian/12",
			build: `Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
		},
		"one line, own release, secrets": {
			files: map[string]string{"sources.list": `
deb [arch=amd64 signed-by=/etc/apt/keyrings/own.gpg] https://me:secret@mirror.example/debian/ bookworm main # fast
deb-src http://mirror.example/debian bookworm main
#deb http://off.example/debian bookworm main
deb
deb [trusted=yes] http://local.example/debian bookworm-updates main contrib
debug http://x bookworm main
`},
			image: "debian/12",
			build: `Types: deb
URIs: https://me:secret@mirror.example/debian/
Suites: bookworm
Components: main
Signed-By: /etc/apt/keyrings/own.gpg

Types: deb
URIs: http://local.example/debian
Suites: bookworm-updates
Components: main contrib
Trusted: yes
`,
			inGuest: `Types: deb
URIs: https://mirror.example/debian/
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://local.example/debian
Suites: bookworm-updates
Components: main contrib
Trusted: yes
`,
		},
		"other release": {
			files: map[string]string{"sources.list": "deb http://mirror.example/debian stable main non-free-firmware\n" +
				"deb http://mirror.example/debian bookworm main\n" +
				"deb http://mirror.example/debian bookworm-backports main\n" +
				"deb http://mirror.example/security buster/updates main\n"},
			image: "debian/11",
			build: `Types: deb
URIs: http://mirror.example/debian
Suites: bullseye
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bullseye-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o700); err != nil {
				t.Fatal(err)
			}
			for file, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			host, err := readSources(dir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := sourcesFor(host, releases()[tt.image])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.build, formatSources(got)); diff != "" {
				t.Error(diff)
			}
			if tt.inGuest == "" {
				tt.inGuest = tt.build
			}
			if diff := cmp.Diff(tt.inGuest, formatSources(forGuest(got, archiveKeyring))); diff != "" {
				t.Error(diff)
			}
			// What is written is read again as it was.
			if diff := cmp.Diff(tt.build, formatSources(parseDeb822(formatSources(got)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSourcesKeepInlineKey(t *testing.T) {
	t.Parallel()
	text := "Types: deb\nURIs: http://m.example/debian\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n"
	if diff := cmp.Diff(text, formatSources(forGuest(parseDeb822(text), archiveKeyring))); diff != "" {
		t.Error(diff)
	}
}

func TestNoMirror(t *testing.T) {
	t.Parallel()
	_, err := sourcesFor(parseList("deb http://archive.example/ubuntu noble main\n"), releases()["debian/12"])
	if vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(vps.ErrorMessage(err), "/etc/apt/sources.list.d") {
		t.Errorf("got %v", err)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://x y z", "Types: deb\nURIs: x\nSuites: y\n z\n")
	f.Fuzz(func(_ *testing.T, list, deb822 string) {
		formatSources(forGuest(append(parseList(list), parseDeb822(deb822)...), archiveKeyring))
	})
}

func TestCommands(t *testing.T) {
	t.Parallel()
	got := bootstrapArgs("/usr/bin/mmdebstrap", releases()["debian/13"], "/tmp/b/debian.sources", "/tmp/b/root", []string{`Acquire::http::Proxy "http://p:1"`})
	want := []string{
		"/usr/bin/mmdebstrap", "--verbose", "--mode=root", "--format=directory", "--variant=apt",
		"--include=bash-completion,ca-certificates,curl,dbus,e2fsprogs,iproute2,iptables,iputils-ping,kmod,less,locales,nano,nftables,openssh-server,procps,systemd-sysv,tzdata",
		"--skip=check/empty,essential/unlink,cleanup/apt/cache",
		`--customize-hook=chroot "$1" update-alternatives --set iptables /usr/sbin/iptables-legacy && chroot "$1" update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy`,
		`--aptopt=Acquire::http::Proxy "http://p:1"`,
		"trixie", "/tmp/b/root", "/tmp/b/debian.sources",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = mke2fsArgs("/usr/sbin/mke2fs", "/tmp/b/root", "/tmp/b/disk.img", 448*vps.MiB)
	want = []string{
		"/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-I", "256", "-b", "4096", "-i", "16384", "-J", "size=32",
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", "resize=268435456,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0",
		"-d", "/tmp/b/root", "/tmp/b/disk.img", "458752k",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var got []vps.Progress
	m := newMeter(func(p vps.Progress) { got = append(got, p) })
	m.packages = 1
	for line := range strings.Lines(`I: running apt-get update...
Get:1 http://m.example/debian bookworm InRelease [151 kB]
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Unpacking a (1) ...
Setting up a (1) ...
0 upgraded, 18 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://m.example/debian bookworm/main amd64 b amd64 1 [9 kB]
Unpacking b (1) ...
noise
`) {
		m.line(strings.TrimSpace(line))
	}
	m.at(phaseWrite, endBootstrap)
	m.at(phaseChecksum, 1)
	var phases []string
	last := 0.0
	for _, p := range got {
		phases = append(phases, p.Phase)
		if p.Fraction < last || p.Fraction > 1 {
			t.Errorf("went from %v to %v", last, p)
		}
		last = p.Fraction
	}
	if diff := cmp.Diff([]string{"download", "download", "unpack", "configure", "download", "unpack", "write", "checksum"}, phases); diff != "" {
		t.Error(diff)
	}
	if last != 1 {
		t.Errorf("ends at %v", last)
	}
}

func TestMirrors(t *testing.T) {
	t.Parallel()
	host := parseList("deb http://d.example/debian trixie main\ndeb http://s.example/debian-security trixie-security main\n")
	for image, want := range map[string]string{
		"ubuntu/24.04": "Types: deb\nURIs: http://m.example/a\nSuites: noble noble-updates noble-security\nComponents: main restricted universe multiverse\n" +
			"Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n",
		"debian/13": "Types: deb\nURIs: http://m.example/a\nSuites: trixie trixie-updates\nComponents: main contrib non-free non-free-firmware\n" +
			"Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" +
			"Types: deb\nURIs: http://s.example/debian-security\nSuites: trixie-security\nComponents: main\n",
	} {
		got, err := mirrorSources(host, releases()[image], "http://m.example/a")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, formatSources(got)); diff != "" {
			t.Errorf("%s: %s", image, diff)
		}
	}
	r := releases()["debian/12"]
	for mirror, ok := range map[string]bool{
		"": true, "http://m.example/debian": true, "https://[::1]/x": false, "http://m.example:8080/debian/": true, "ftp://m/x": false, "/srv/mirror": false,
		"http://m/x\nTrusted: yes": false, "http://u:p@m/x": false, "http://m/x main": false, "http://m/?q": false, "file:///x": false, "copy:/x": false,
	} {
		if err := checkMirror(r, mirror); (err == nil) != ok {
			t.Errorf("%q: %v", mirror, err)
		}
	}
	err := checkMirror(releases()["ubuntu/24.04"], "")
	wantCode(t, err, vps.CodeInvalid, "--mirror http://archive.ubuntu.com/ubuntu")
	got := bootstrapArgs("/usr/bin/mmdebstrap", releases()["ubuntu/22.04"], "/tmp/b/debian.sources", "/tmp/b/root", nil)
	if end := strings.Join(got[len(got)-3:], " "); end != "jammy /tmp/b/root /tmp/b/debian.sources" {
		t.Errorf("ends with %s", end)
	}
}
