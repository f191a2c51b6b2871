package daemon

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	host := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: "ann", NetworkPeer: true}, {Name: "bob"}}}
	for i, spec := range []vps.GuestSpec{
		{Name: "a", Tenant: "ann", IPv6: netip.MustParsePrefix("fd53:4c00:d5::f00/120"), Limits: vps.NetworkLimits{Packets: 7}},
		{Name: "b", Tenant: "ann"},
		{Name: "c", Tenant: "bob"},
		{Name: "d", Tenant: "bob"},
	} {
		spec.Address = netip.AddrFrom4([4]byte{10, 213, 0, byte(2 + i)})
		host.Guests = append(host.Guests, vps.Guest{ID: spec.Name, Index: i + 1, Spec: spec})
	}
	want := api.GuestNetwork{
		Schema: api.SchemaVersion, Name: "a", Link: "sl-a", MAC: "02:53:4c:d5:00:02", Address: netip.MustParseAddr("10.213.0.2"),
		Gateway: netip.MustParseAddr("10.213.0.1"), IPv6: netip.MustParsePrefix("fd53:4c00:d5::f00/120"),
		Address6: netip.MustParseAddr("fd53:4c00:d5::f01"), Gateway6: vps.Gateway6, NetworkPeer: true, Peers: []string{"b"},
		Limits: api.GuestLimits{
			NetworkLimits: vps.NetworkLimits{Packets: 7, NewConnections: 500, Connections: 8192}, Inherited: []string{"new_connections", "connections"},
		},
	}
	if diff := cmp.Diff(want, networkOf(&host, host.Guest("a")), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := networkOf(&host, host.Guest("c")); n.NetworkPeer || len(n.Peers) > 0 || n.Address6.String() != "fd53:4c00:d5::4" {
		t.Errorf("a guest without peers: %+v", n)
	}
	host.Settings.Subnet6 = netip.Prefix{}
	if n := networkOf(&host, host.Guest("a")); n.IPv6.IsValid() || n.Address6.IsValid() || n.Gateway6.IsValid() {
		t.Errorf("without IPv6: %+v", n)
	}
}
