package disk

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// report is what lvs 2.03.16 of Debian 12 printed, shortened.
const report = `{"report": [{"lv": [
 {"vg_name":"tank", "lv_name":"pool", "lv_size":"167772160", "lv_attr":"twi-aotz--", "lv_tags":"", "pool_lv":"", "data_percent":"0.00"},
 {"vg_name":"tank", "lv_name":"sublet-g1-root-abc", "lv_size":"25165824", "lv_attr":"Vwi-aotz--", "lv_tags":"sublet,sublet.%", "pool_lv":"pool", "data_percent":"50.00"},
 {"vg_name":"tank", "lv_name":"sublet-g2-root-abc", "lv_size":"25165824", "lv_attr":"-wi-a-----", "lv_tags":"sublet,sublet.%", "pool_lv":"", "data_percent":""},
 {"vg_name":"tank", "lv_name":"others", "lv_size":"8388608", "lv_attr":"-wi-a-----", "lv_tags":"sublet,sublet.%", "pool_lv":"", "data_percent":""},
 {"vg_name":"tank", "lv_name":"sublet-g3-root-abc", "lv_size":"8388608", "lv_attr":"-wi-a-----", "lv_tags":"sublet,sublet.0000", "pool_lv":"", "data_percent":""}
]}], "log": []}`

// scripted is a lvm(8) that answers with a report and keeps what it was asked.
func scripted(t *testing.T) (*lvm, *[]string) {
	t.Helper()
	b := newLVM("/state/volumes")
	var asked []string
	b.run = func(_ context.Context, args ...string) ([]byte, error) {
		asked = append(asked, strings.Join(args, " "))
		return []byte(strings.ReplaceAll(report, "sublet.%", b.tag)), nil
	}
	return b, &asked
}

func TestLVMReport(t *testing.T) {
	t.Parallel()
	b, asked := scripted(t)
	all, err := b.list(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("ours are %+v, %v", all, err)
	}
	if all[0].used() != 12*vps.MiB || all[1].used() != 24*vps.MiB || all[0].size != 24*vps.MiB {
		t.Errorf("they take %s and %s", all[0].used(), all[1].used())
	}
	for range 3 {
		if _, err := b.find(t.Context(), part{Group: "tank", Volume: "sublet-g1-root-abc"}); err != nil {
			t.Error(err)
		}
	}
	_, err = b.find(t.Context(), part{Group: "tank", Volume: "others"})
	if vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("somebody else's: %v", err)
	}
	want := "lvs --reportformat json --units b --nosuffix --options vg_name,lv_name,lv_size,lv_attr,lv_tags,pool_lv,data_percent @" + b.tag
	if diff := cmp.Diff([]string{want}, *asked); diff != "" {
		t.Errorf("it was asked (-want +got):\n%s", diff)
	}
	b.till = time.Time{}
	if err := b.remove(t.Context(), "", part{Group: "tank", Volume: "others"}); err != nil {
		t.Error(err)
	}
	if strings.Contains(strings.Join(*asked, "\n"), "lvremove") {
		t.Error("somebody else's volume was removed")
	}
	for _, bad := range []string{``, `{`, `{"report":[{"lv":[{"lv_size":"x"}]}]}`, `{"report":[{"lv":[{"lv_size":"-1"}]}]}`, `{"report":[{"lv":[{"lv_size":"1","data_percent":"x"}]}]}`} {
		if _, err := parseLVS([]byte(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), nil)
	for storage, want := range map[string]string{"": "file", "file": "file", "lvm:tank": "lvm:tank", "lvm:tank/pool": "lvm:tank/pool"} {
		var p part
		if _, err := s.place(storage, &p); err != nil || p.storage() != want {
			t.Errorf("%s is %s, %v", storage, p.storage(), err)
		}
	}
	for _, storage := range []string{"lvm:", "lvm:/pool", "lvm:tank/", "lvm:a b", "lvm:-x", "lvm:a/b/c", "lvm:..", "lvm:a/--yes", "nfs:x", "/dev/sda"} {
		if _, err := s.place(storage, &part{}); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%q: %v", storage, err)
		}
	}
}

func TestLVMErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("exit status 5")
	for words, code := range map[string]vps.Code{
		`  Volume group "tank" has insufficient free space (10 extents): 2048 required.`: vps.CodeDenied,
		"  Insufficient suitable allocatable extents for logical volume":                 vps.CodeDenied,
		"  Volume group \"none\" not found\n  Cannot process volume group none":          vps.CodeNotFound,
		"  Failed to find logical volume \"tank/none\"":                                  vps.CodeNotFound,
		"  Something else": vps.CodeInternal,
	} {
		if err := lvmError(cause, words); vps.ErrorCode(err) != code || !errors.Is(err, cause) {
			t.Errorf("%q: %v", words, err)
		}
	}
}

// TestLVMGone has a host whose volume group is not there any more: nothing is
// made in the place of what may come back.
func TestLVMGone(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), nil)
	s.lvm.run = func(_ context.Context, args ...string) ([]byte, error) {
		if args[0] != "lvs" {
			t.Errorf("lvm %v", args)
		}
		return []byte(`{"report":[{"lv":[]}]}`), nil
	}
	r := &record{Version: recordVersion, GuestID: "g1", part: part{Method: methodThick, Size: vps.MiB, ImageID: "i", Group: "tank", Volume: "sublet-g1-root-x"}}
	if err := os.Mkdir(s.folder("g1"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := r.write(s.folder("g1")); err != nil {
		t.Fatal(err)
	}
	img := makeImage(t, t.TempDir(), vps.GiB)
	_, err := s.Create(t.Context(), "g1", img, vps.VolumeSpec{Storage: "lvm:tank", Size: vps.GiB, UID: testUID})
	wantCode(t, err, vps.CodeConflict, "g1", "tank/sublet-g1-root-x", "missing")
	_, err = s.Check(t.Context(), "g1", img, testUID)
	wantCode(t, err, vps.CodeConflict)
	if err := s.Delete(t.Context(), "g1"); err != nil {
		t.Error(err)
	}
}

func FuzzParseLVS(f *testing.F) {
	f.Add([]byte(report))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseLVS(b)
		for _, l := range all {
			if err == nil && l.size < 0 {
				t.Errorf("%+v", l)
			}
		}
	})
}
