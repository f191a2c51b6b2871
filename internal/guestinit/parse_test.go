package guestinit

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

func TestParseOptions(t *testing.T) {
	t.Parallel()
	usual := options{root: "/dev/ubda", seed: "/dev/ubdb", modules: "/dev/ubdc"}
	for line, want := range map[string]options{
		"":                                     usual,
		"mem=512M root=/dev/ubda rw init= x=y": usual,
		"root=/dev/xvda init=/bin/sh sublet.seed=/dev/xvdb sublet.modules=/dev/xvdc\n": {root: "/dev/xvda", init: "/bin/sh", seed: "/dev/xvdb", modules: "/dev/xvdc"},
		"root=/dev/a root=/dev/b":             {root: "/dev/b", seed: "/dev/ubdb", modules: "/dev/ubdc"},
		"rootflags=subvol=a,noatime":          {root: "/dev/ubda", rootFlags: "subvol=a,noatime", seed: "/dev/ubdb", modules: "/dev/ubdc"},
		`a="x root=/dev/z" "init=/my init"`:   {root: "/dev/ubda", init: "/my init", seed: "/dev/ubdb", modules: "/dev/ubdc"},
		"root=/dev/a -- root=/dev/b init=/no": {root: "/dev/a", seed: "/dev/ubdb", modules: "/dev/ubdc"},
	} {
		if diff := cmp.Diff(want, parseOptions(line), cmp.AllowUnexported(options{})); diff != "" {
			t.Errorf("%q:\n%s", line, diff)
		}
	}
}

func TestInitPrograms(t *testing.T) {
	t.Parallel()
	if got := (options{init: "/x"}).initPrograms(); len(got) != 1 || got[0] != "/x" {
		t.Errorf("got %q", got)
	}
	if got := (options{}).initPrograms(); got[0] != "/sbin/init" {
		t.Errorf("got %q", got)
	}
}

func TestSetBlock(t *testing.T) {
	t.Parallel()
	block := func(lines ...string) string {
		return blockBegin + "\n" + strings.Join(lines, "\n") + "\n" + blockEnd + "\n"
	}
	for name, tc := range map[string]struct {
		text  string
		lines []string
		want  string
	}{
		"nothing":       {"", nil, ""},
		"new":           {"", []string{"a"}, block("a")},
		"appended":      {"x", []string{"a"}, "x\n" + block("a")},
		"in its place":  {"x\n" + block("a", "b") + "y\n", []string{"c"}, "x\n" + block("c") + "y\n"},
		"removed":       {"x\n" + block("a") + "y\n", nil, "x\ny\n"},
		"twice":         {block("a") + "x\n" + block("b"), []string{"c"}, block("c") + "x\n"},
		"other wording": {"# sublet begin\na\n" + blockEnd + "\n", []string{"c"}, block("c")},
		"end lost":      {"x\n" + blockBegin + "\na\nmine\n", []string{"a"}, "x\na\nmine\n" + block("a")},
		"end lost once": {block("a") + blockBegin + "\nmine\n", []string{"b"}, block("b") + "mine\n"},
	} {
		got := setBlock(tc.text, tc.lines)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if again := setBlock(got, tc.lines); again != got {
			t.Errorf("%s: the second time gives %q", name, again)
		}
	}
}

func FuzzSetBlock(f *testing.F) {
	f.Add("x\n"+blockBegin+"\na\n"+blockEnd+"\ny", "key")
	f.Add(blockBegin+"\n"+blockBegin, "")
	f.Fuzz(func(t *testing.T, text, line string) {
		var lines []string
		if line = strings.ReplaceAll(line, "\n", ""); line != "" && !strings.HasPrefix(line, blockMark) && line != blockEnd {
			lines = []string{line}
		}
		got := setBlock(text, lines)
		if again := setBlock(got, lines); again != got {
			t.Errorf("%q became %q", got, again)
		}
	})
}

func TestSetAssignment(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                        "LANG=x\n",
		"# c\nLANG=a\nLC_ALL=b":   "# c\nLANG=x\nLC_ALL=b\n",
		"LANG=a\nLANG=b\n":        "LANG=x\n",
		"LANGUAGE=a\n# LANG=old,": "LANGUAGE=a\n# LANG=old,\nLANG=x\n",
	} {
		if diff := cmp.Diff(want, setAssignment(text, "LANG", "x")); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
}

func TestModuleOrder(t *testing.T) {
	t.Parallel()
	deps := "kernel/lib/crc-ccitt.ko:\nkernel/net/ipv6/sit.ko: kernel/net/tunnel4.ko kernel/net/ipv6/ipv6.ko kernel/lib/crc-ccitt.ko\n" +
		"kernel/net/ipv6/ipv6.ko: kernel/lib/crc-ccitt.ko\n"
	for name, want := range map[string][]string{
		"ipv6":      {"kernel/lib/crc-ccitt.ko", "kernel/net/ipv6/ipv6.ko"},
		"crc-ccitt": {"kernel/lib/crc-ccitt.ko"},
		"sit":       {"kernel/lib/crc-ccitt.ko", "kernel/net/ipv6/ipv6.ko", "kernel/net/tunnel4.ko", "kernel/net/ipv6/sit.ko"},
		"v6":        nil,
	} {
		if diff := cmp.Diff(want, moduleOrder(deps, name)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestExt4Size(t *testing.T) {
	t.Parallel()
	super := make([]byte, superblockSize)
	if _, _, err := ext4Size(super); err == nil {
		t.Error("zeros are a superblock")
	}
	binary.LittleEndian.PutUint16(super[superMagicAt:], superMagic)
	binary.LittleEndian.PutUint32(super[superBlocksLow:], 100)
	binary.LittleEndian.PutUint32(super[superBlocksHigh:], 1)
	binary.LittleEndian.PutUint32(super[superLogBlock:], 2)
	if blocks, size, err := ext4Size(super); err != nil || blocks != 100 || size != 4096 {
		t.Errorf("got %d blocks of %d, %v", blocks, size, err)
	}
	binary.LittleEndian.PutUint32(super[superIncompat:], incompat64Bit)
	if blocks, _, err := ext4Size(super); err != nil || blocks != 100+1<<32 {
		t.Errorf("64 bit: got %d, %v", blocks, err)
	}
	binary.LittleEndian.PutUint32(super[superLogBlock:], 60)
	if _, _, err := ext4Size(super); err == nil {
		t.Error("an absurd block size was taken")
	}
}

func TestGrowth(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		blocks     uint64
		want, disk vps.Bytes
		target     uint64
	}{
		{100, 4096 * 200, 4096 * 200, 200},
		{100, 4096 * 200, 4096 * 1000, 200},
		{100, 4096 * 200, 4096 * 150, 150},
		{100, 4096*100 + 4095, 4096 * 1000, 0},
		{100, 4096 * 50, 4096 * 1000, 0},
		{100, -1, 4096, 0},
	} {
		if got := growth(tc.blocks, 4096, min(tc.want, tc.disk)); got != tc.target {
			t.Errorf("%+v: got %d", tc, got)
		}
	}
}
