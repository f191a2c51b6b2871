package guestinit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/seed"
)

// umlPlace is a guest under User Mode Linux with one extra disk.
func umlPlace() place {
	return place{
		console: "tty0", root: "/dev/ubda", kind: "ext4", card: "vec0", noSwapFiles: true,
		hasCard: func(name string) bool { return name == "lo" || name == "vec0" },
		device: func(spec string) string {
			return map[string]string{
				"/dev/ubda": "/dev/ubda", "UUID=root": "/dev/ubda", "/dev/ubdd": "/dev/ubdd", "LABEL=data": "/dev/ubdd",
				"/dev/disk/by-id/sublet-data": "/dev/ubdd", runDevices + "ubdd": "/dev/ubdd",
				runDevices + "ubda": "/dev/ubda",
			}[spec]
		},
	}
}

// xenPlace is a guest under Xen, whose root is XFS.
func xenPlace() place {
	p := umlPlace()
	p.console, p.root, p.kind, p.card, p.noSwapFiles = "hvc0", "/dev/xvda", "xfs", "eth0", false
	p.hasCard = func(name string) bool { return name == "lo" || name == "eth0" }
	p.device = func(spec string) string {
		if spec == "/dev/xvda" {
			return spec
		}
		return ""
	}
	return p
}

func TestMendFstab(t *testing.T) {
	t.Parallel()
	was := func(line, now string) string { return noteChanged + line + "\n" + now + "\n" }
	xen := xenPlace()
	btrfs := umlPlace()
	btrfs.kind = "btrfs"
	for name, tc := range map[string]struct {
		text, want string
		place      *place
		unheard    bool // nothing announces devices
	}{
		"empty":         {},
		"comments stay": {text: "# /etc/fstab\n\n  # x\n", want: "# /etc/fstab\n\n  # x\n"},
		"our own":       {text: "/dev/ubda / ext4 errors=remount-ro 0 0\n", want: "/dev/ubda / ext4 errors=remount-ro 0 0\n"},
		"old device": {
			text: "/dev/sda1  /  ext3  errors=remount-ro,noatime 0  1\n",
			want: was("/dev/sda1 / ext3 errors=remount-ro,noatime 0 1", "/dev/ubda\t/\text3\terrors=remount-ro,noatime\t0\t0"),
		},
		"xvda under UML": {text: "/dev/xvda / ext4 defaults\n", want: was("/dev/xvda / ext4 defaults", "/dev/ubda\t/\text4\tdefaults\t0\t0")},
		"ubda under Xen": {
			text: "/dev/ubda / ext4 defaults 0 1\n", place: &xen,
			want: was("/dev/ubda / ext4 defaults 0 1", "/dev/xvda\t/\txfs\tdefaults\t0\t0"),
		},
		"other filesystem": {
			text: "LABEL=ROOT / btrfs subvol=@,compress=zstd,noatime 0 0\n",
			want: was("LABEL=ROOT / btrfs subvol=@,compress=zstd,noatime 0 0", "/dev/ubda\t/\text4\tnoatime\t0\t0"),
		},
		"a UUID that is there":     {text: "UUID=root / ext4 defaults 0 0\n", want: "UUID=root / ext4 defaults 0 0\n"},
		"a UUID that is not there": {text: "UUID=beef / ext4 defaults 0 0\n", want: was("UUID=beef / ext4 defaults 0 0", "/dev/ubda\t/\text4\tdefaults\t0\t0")},
		"a logical volume":         {text: "/dev/mapper/vg-root / ext4 defaults 0 0\n", want: was("/dev/mapper/vg-root / ext4 defaults 0 0", "/dev/ubda\t/\text4\tdefaults\t0\t0")},
		"a network's root stays":   {text: "10.0.0.1:/root / auto defaults 0 0\n", want: "10.0.0.1:/root / auto defaults 0 0\n"},
		"subvolumes of the root": {
			text: "UUID=x / btrfs subvol=@ 0 0\nUUID=x /home btrfs subvol=@home 0 0\n", place: &btrfs,
			want: was("UUID=x / btrfs subvol=@ 0 0", "/dev/ubda\t/\tbtrfs\tsubvol=@\t0\t0") +
				was("UUID=x /home btrfs subvol=@home 0 0", "/dev/ubda\t/home\tbtrfs\tsubvol=@home\t0\t0"),
		},
		"missing": {
			text: "UUID=boot /boot ext2 defaults 0 2\n/dev/sdb1 none swap sw 0 0\n",
			want: was("UUID=boot /boot ext2 defaults 0 2", "UUID=boot\t/boot\text2\tdefaults,"+noWait+"\t0\t2") +
				was("/dev/sdb1 none swap sw 0 0", "/dev/sdb1\tnone\tswap\tsw,"+noWait+"\t0\t0"),
		},
		"missing, and said so": {
			text: "/dev/sr0 /mnt auto noauto 0 0\n/dev/sdb1 /x ext4 nofail 0 0\n",
			want: "/dev/sr0 /mnt auto noauto 0 0\n/dev/sdb1 /x ext4 nofail 0 0\n",
		},
		"no devices": {
			text: "proc /proc proc defaults 0 0\ntmpfs /tmp tmpfs size=1g 0 0\n/srv/a /b none bind 0 0\nh:/x /x nfs defaults 0 0\n",
			want: "proc /proc proc defaults 0 0\ntmpfs /tmp tmpfs size=1g 0 0\n/srv/a /b none bind 0 0\nh:/x /x nfs defaults 0 0\n",
		},
		"swap file": {
			text: "/swapfile none swap sw 0 0\n/swap/f swap swap defaults\n",
			want: noteSwapFile + "\n#/swapfile none swap sw 0 0\n" + noteSwapFile + "\n#/swap/f swap swap defaults\n",
		},
		"swap file under Xen": {text: "/swapfile none swap sw 0 0\n", want: "/swapfile none swap sw 0 0\n", place: &xen},
		"extra disk":          {text: "LABEL=data /srv ext4 nofail 0 2\n", want: "LABEL=data /srv ext4 nofail 0 2\n"},
		"extra disk that nobody announces": {
			text: "/dev/disk/by-id/sublet-data /srv ext4 nofail 0 2\n", unheard: true,
			want: was("/dev/disk/by-id/sublet-data /srv ext4 nofail 0 2", runDevices+"ubdd\t/srv\text4\tnofail\t0\t0"),
		},
		"not a line": {text: "/dev/sda1 /\nx\n", want: "/dev/sda1 /\nx\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := umlPlace()
			if tc.place != nil {
				p = *tc.place
			}
			got := mendFstab(tc.text, p, !tc.unheard)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if again := mendFstab(got, p, !tc.unheard); again != got {
				t.Errorf("the second time:\n%s", cmp.Diff(got, again))
			}
		})
	}
}

func TestRunDeviceNames(t *testing.T) {
	t.Parallel()
	got := runDeviceNames(runDevices + "ubdd /srv ext4 nofail 0 0\n" + runDevices + "../x /y ext4 nofail 0 0\n/dev/ubde /z ext4 nofail\n")
	if diff := cmp.Diff([]string{"ubdd"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestDevices makes filesystems with the real tools and finds them.
func TestDevices(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dev, sys := filepath.Join(dir, "dev"), filepath.Join(dir, "sys")
	id := func(n string) string { return strings.Replace("00000000-0000-4000-8000-0000000000NN", "NN", n, 1) }
	for name, args := range map[string][]string{
		"ubda": {"mke2fs", "-q", "-F", "-t", "ext4", "-U", id("01"), "-L", "root"},
		"ubdb": {"mke2fs", "-q", "-F", "-t", "ext4", "-U", id("02"), "-L", "seed"},
		"ubdd": {"mkfs.xfs", "-q", "-f", "-m", "uuid=" + id("03"), "-L", "twelve chars"},
		"ubde": {"mkfs.btrfs", "-q", "-f", "-U", id("04"), "-L", "more than sixteen characters"},
		"ubdf": {"mkswap", "-q", "-U", id("05"), "-L", "swap"},
	} {
		put(t, dir, map[string]string{"sys/class/block/" + name + "/size": "1\n", "dev/" + name: ""})
		file := filepath.Join(dev, name)
		if err := os.Truncate(file, 320<<20); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), args[0], append(args[1:], file)...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	put(t, dir, map[string]string{
		"sys/class/block/loop0/size": "0\n", "sys/class/block/short/size": "1\n", "dev/short": "x", "sys/class/block/gone/size": "1\n",
		"dev/link": "-> /etc",
	})
	if err := linkDisks(dev, []seed.Disk{{Name: "data", Device: "/dev/ubdd"}}); err != nil {
		t.Fatal(err)
	}
	if err := linkDisks(dev, []seed.Disk{{Name: "lost", Device: "/dev/ubdz"}}); err == nil {
		t.Error("a disk that is not there was linked")
	}
	d := &devices{dev: dev, sys: sys, skip: []string{"/dev/ubdb"}}
	for spec, want := range map[string]string{
		"UUID=" + id("01"): "/dev/ubda", `LABEL="root"`: "/dev/ubda", "UUID=" + id("02"): "", "LABEL=seed": "",
		"UUID=" + strings.ToUpper(id("03")): "/dev/ubdd", "LABEL=twelve chars": "/dev/ubdd",
		"LABEL=more than sixteen characters": "/dev/ubde", "/dev/disk/by-uuid/" + id("04"): "/dev/ubde",
		"UUID=" + id("05"): "/dev/ubdf", "/dev/disk/by-label/swap": "/dev/ubdf",
		"/dev/ubda": "/dev/ubda", "/dev/sda1": "", "/dev/disk/by-id/sublet-data": "/dev/ubdd", runDevices + "ubdd": "/dev/ubdd",
		"PARTUUID=x": "", "UUID=": "", "LABEL=": "", "proc": "", "/dev/link": "", "/dev/../sys": "",
	} {
		if got := d.find(spec); got != want {
			t.Errorf("%q: got %q, want %q", spec, got, want)
		}
	}
}
