//go:build linux

package cgroup

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const (
		v1 = `30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:12 - cgroup2 cgroup2 rw,nsdelegate
`
		v2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
		// A container that sees a part of the host's hierarchy.
		part = "29 23 0:26 /docker/abc /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw\n"
	)
	for name, test := range map[string]struct {
		mounts, own string
		want        hierarchies
	}{
		"version 1": {v1, "4:cpu,cpuacct:/user.slice\n3:memory:/\n1:name=systemd:/user.slice/x\n0::/user.slice/x\n", hierarchies{
			v2: mount{"/sys/fs/cgroup/unified", "user.slice/x"},
			v1: map[string]mount{
				"cpu": {"/sys/fs/cgroup/cpu,cpuacct", "user.slice"}, "cpuacct": {"/sys/fs/cgroup/cpu,cpuacct", "user.slice"},
				"memory": {"/sys/fs/cgroup/memory", "."}, "name=systemd": {"/sys/fs/cgroup/systemd", "user.slice/x"},
			},
		}},
		"version 2": {v2, "0::/sublet.slice/sublet-guest-a.service\n", hierarchies{
			v2: mount{"/sys/fs/cgroup", "sublet.slice/sublet-guest-a.service"}, v1: map[string]mount{},
		}},
		"a part":  {part, "0::/docker/abc/x\n", hierarchies{v2: mount{"/sys/fs/cgroup", "x"}, v1: map[string]mount{}}},
		"outside": {part, "0::/../other\n", hierarchies{v2: mount{"/sys/fs/cgroup", "."}, v1: map[string]mount{}}},
		"none":    {"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", hierarchies{v1: map[string]mount{}}},
		"garbage": {"a - b\n - \n1 2 3 4 - cgroup2\n", "x\n::\n", hierarchies{v1: map[string]mount{}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(&test.want, parse(test.mounts, test.own), cmp.AllowUnexported(hierarchies{}, mount{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
