//go:build linux

package nft

import "testing"

func TestLegacyConflict(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ listing, want string }{
		{"-P FORWARD ACCEPT\n", ""},
		{"-P FORWARD DROP\n", ownerIptables},
		{"-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", ownerDocker},
		{"-P FORWARD DROP\n-A FORWARD -j ufw-before-forward\n", ownerUfw},
		{"-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", ownerIptables},
		{"-P FORWARD DROP\n-A FORWARD -i sl-+ -j ACCEPT\n-A FORWARD -o sl-+ -j ACCEPT\n", ""},
		{"-P FORWARD DROP\n-A FORWARD -i sl-+ -j ACCEPT\n-A FORWARD -s 1.2.3.4/32 -j ACCEPT\n", ownerIptables},
	} {
		got := ""
		if found := legacyConflict(c.listing); found != nil {
			got = found.Owner
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.listing, got, c.want)
		}
	}
}
