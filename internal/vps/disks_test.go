package vps_test

import (
	"testing"

	"sublet/internal/vps"
)

func TestParseDataDisk(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"data=10GiB", "a=1MiB", "db-1=1TiB"} {
		d, err := vps.ParseDataDisk(text)
		if err != nil || d.String() != text {
			t.Errorf("ParseDataDisk(%q) = %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "data", "=1GiB", "data=", "data=1", "data=0", "Data=1GiB", "../x=1GiB", "root=1GiB", "data=-1GiB", "data=99TiB", "data=1GiB,x"} {
		if d, err := vps.ParseDataDisk(text); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("ParseDataDisk(%q) = %v, %v; want it refused", text, d, err)
		}
	}
}

func TestStorage(t *testing.T) {
	t.Parallel()
	s := vps.NewGuestSpec("alice")
	for _, place := range []string{vps.StorageFile, "lvm:vg0", "lvm:vg0/pool0", "lvm:a.b+c_d-e/x"} {
		s.Storage = place
		if err := s.Validate(); err != nil {
			t.Errorf("%q is refused: %v", place, err)
		}
	}
	for _, place := range []string{"", "lvm", "lvm:", "lvm:/", "lvm:a/", "lvm:a/b/c", "lvm:..", "lvm:a b", "lvm:a;b", "lvm:--config", "zfs:tank", "/dev/sda"} {
		s.Storage = place
		if err := s.Validate(); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%q: %v; want it refused", place, err)
		}
	}
}

func TestSettingsKernel(t *testing.T) {
	t.Parallel()
	s := vps.DefaultSettings()
	s.Kernel = "uml/6.12.74-1a2b3c4d5e6f"
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"6.12", "uml", "uml/", "uml/..", "uml/6/1", "../6.1", "uml/6.1 quiet", "uml/-x"} {
		s.Kernel = name
		if err := s.Validate(); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%q: %v; want it refused", name, err)
		}
	}
}

func TestDataDevice(t *testing.T) {
	t.Parallel()
	if got := vps.DataDevice("uml", 0) + vps.DataDevice("uml", 7) + vps.DataDevice("xen", 1); got != "/dev/ubdd/dev/ubdk/dev/xvde" {
		t.Error(got)
	}
}
