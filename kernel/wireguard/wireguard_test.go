package wireguard

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// Keys that are not 32 bytes, or with which the secret would be known, are refused.
func TestParseKey(t *testing.T) {
	private, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public := private.Public()
	if got, err := ParseKey(public.String()); err != nil || got != public {
		t.Errorf("%v, %v", got, err)
	}
	low := Key{1}
	for _, bad := range []string{"", "x", base64.StdEncoding.EncodeToString(make([]byte, 31)),
		Key{}.String(), low.String(),
		public.String() + "\n", strings.Repeat("A", 1<<16)} {
		if k, err := ParseKey(bad); err == nil {
			t.Errorf("%.20q is key %v", bad, k)
		}
	}
}

func prefixes(is6 bool, n int) (out []netip.Prefix) {
	for range n {
		b := [16]byte{0: 10, 1: byte(rand.IntN(3)), 2: byte(rand.IntN(4)), 3: byte(rand.IntN(256))}
		if is6 {
			b = [16]byte{0: 0xfd, 7: byte(rand.IntN(4)), 8: byte(rand.IntN(2)), 15: byte(rand.IntN(256))}
			out = append(out, netip.PrefixFrom(netip.AddrFrom16(b), 40+rand.IntN(89)).Masked())
			continue
		}
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:4])), 8+rand.IntN(25)).Masked())
	}
	return out
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// The filter of the witness takes a packet exactly when its addresses are in the networks, for random networks and
// packets of both families. Networks that are merged hold the same addresses.
func TestTheWitnessCountsPacketsBetweenNetworks(t *testing.T) {
	hits := 0
	for range 300 {
		own := append(prefixes(false, rand.IntN(3)), prefixes(true, rand.IntN(3))...)
		peers := append(prefixes(false, rand.IntN(8)), prefixes(true, rand.IntN(8))...)
		mergedOwn, mergedPeers := merge(own), merge(peers)
		filter := program(mergedOwn, mergedPeers)
		if _, err := bpf.Assemble(filter); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			is6 := rand.IntN(2) == 0
			pick := func() netip.Addr {
				from := prefixes(is6, 1)
				if all := slices.Concat(own, peers); len(all) > 0 && rand.IntN(4) > 0 {
					if p := all[rand.IntN(len(all))]; p.Addr().Is6() == is6 {
						return p.Addr()
					}
				}
				return from[0].Addr()
			}
			src, dst := pick(), pick()
			want := contains(own, src) && contains(peers, dst) || contains(peers, src) && contains(own, dst)
			if contains(own, src) != contains(mergedOwn, src) || contains(peers, dst) != contains(mergedPeers, dst) {
				t.Fatalf("%v is not %v", mergedPeers, peers)
			}
			if got := run(t, filter, is6, src, dst); got != want {
				t.Fatalf("%s to %s: %t, want %t\nown %v\npeers %v", src, dst, got, want, own, peers)
			}
			if want {
				hits++
			}
		}
	}
	if hits < 100 {
		t.Errorf("only %d packets were between the networks", hits)
	}
}

// run runs a filter in the library's machine, which has no extensions: the family is told by a constant.
func run(t *testing.T, filter []bpf.Instruction, is6 bool, src, dst netip.Addr) bool {
	t.Helper()
	packet, proto := make([]byte, 20), uint32(unix.ETH_P_IP)
	at, off := src4, dst4
	if is6 {
		packet, proto, at, off = make([]byte, 40), unix.ETH_P_IPV6, src6, dst6
	}
	copy(packet[at:], src.AsSlice())
	copy(packet[off:], dst.AsSlice())
	filter = slices.Clone(filter)
	filter[0] = bpf.LoadConstant{Dst: bpf.RegA, Val: proto}
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// A kernel has WireGuard or says that it has not; nothing is left of the probe.
func TestProbe(t *testing.T) {
	ns := testnet.New(t, "node")
	k, err := NewKernel(ns.FD(), "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Probe(); err != nil && !errors.Is(err, ErrNotInKernel) {
			t.Error(err)
		}
	}
	if out := ns.Run("ip", "link"); strings.Contains(out, Prefix) {
		t.Errorf("left is %s", out)
	}
}

// Many networks of a usual cluster fit into a filter.
func TestTheWitnessOfAThousandNodes(t *testing.T) {
	var peers []netip.Prefix
	for i := range 1000 {
		b := binary.BigEndian.AppendUint32(nil, 0x0af40000+uint32(i)<<8)
		peers = append(peers, netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), 24))
	}
	filter, err := bpf.Assemble(program(merge(peers[:1]), merge(peers[1:])))
	if err != nil || len(filter) > maxFilter/4 {
		t.Errorf("%d instructions, %v", len(filter), err)
	}
}

// What a device lacks: only that is set. A peer that is heard keeps the endpoint from which it is heard.
func TestWhatADeviceLacks(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	nets := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	want := Config{Private: Key{9}, Port: 51871, Peers: []Peer{{Key{1}, at("192.0.2.1:51871"), nets}}}
	have := func() State {
		return State{Private: Key{9}, Port: 51871, Peers: []PeerState{{Peer: Peer{Key{1}, at("192.0.2.1:51871"),
			[]netip.Prefix{nets[1], nets[0]}}, Handshake: now.Add(-time.Minute)}}}
	}
	for name, tc := range map[string]struct {
		change func(*State)
		before Config
		want   string
	}{
		"nothing": {func(*State) {}, want, ""},
		"a key": {func(s *State) { s.Private = Key{8} }, want, "private_key=" +
			hex.EncodeToString(Key{9}.bytes())},
		"a port": {func(s *State) { s.Port = 1 }, want, "listen_port=51871"},
		"a peer": {func(s *State) { s.Peers = nil }, want,
			"endpoint=192.0.2.1:51871\nreplace_allowed_ips=true\n"},
		"heard from elsewhere": {func(s *State) { s.Peers[0].Endpoint = at("192.0.2.7:9") }, want, ""},
		"lost elsewhere": {func(s *State) {
			s.Peers[0].Endpoint, s.Peers[0].Handshake = at("192.0.2.7:9"), now.Add(-time.Hour)
		}, want, "update_only=true\nendpoint=192.0.2.1:51871\n"},
		"moved": {func(s *State) { s.Peers[0].Endpoint = at("192.0.2.7:9") },
			Config{Peers: []Peer{{Public: Key{1}, Endpoint: at("192.0.2.7:9")}}}, "endpoint=192.0.2.1:51871\n"},
		"a network": {func(s *State) { s.Peers[0].Allowed = nets[:1] }, want,
			"update_only=true\nreplace_allowed_ips=true\nallowed_ip=10.2.0.0/24\nallowed_ip=fd00::/64\n"},
		"a peer too many": {func(s *State) { s.Peers = append(s.Peers, PeerState{Peer: Peer{Public: Key{2}}}) }, want,
			"public_key=" + hex.EncodeToString(Key{2}.bytes()) + "\nremove=true\n"},
	} {
		s := have()
		tc.change(&s)
		d := differ(s, want, tc.before, now)
		text := ""
		if d != nil {
			text = d.text()
		}
		if (tc.want == "") != (text == "") || !strings.Contains(text, tc.want) {
			t.Errorf("%s: set is %q, want %q", name, text, tc.want)
		}
	}
}

// An answer of a process is read as it is written; a damaged one is an error.
func TestTheAnswerOfAProcess(t *testing.T) {
	one, two := hex.EncodeToString(Key{1}.bytes()), hex.EncodeToString(Key{2}.bytes())
	answer := "private_key=" + one + "\nlisten_port=51871\nfwmark=0\npublic_key=" + two +
		"\nprotocol_version=1\nendpoint=[2001:db8::1]:51871\nlast_handshake_time_sec=1800000000\n" +
		"last_handshake_time_nsec=5\ntx_bytes=7\nrx_bytes=8\nallowed_ip=10.2.0.0/24\npublic_key=" + one + "\n"
	body, number, ok := cutErrno(answer + "errno=0\n\n")
	s, err := parseState(body)
	if err != nil || !ok || number != 0 || s.Private != (Key{1}) || len(s.Peers) != 2 || s.Peers[0].Sent != 7 ||
		s.Peers[0].Received != 8 || !s.Peers[0].Handshake.Equal(time.Unix(1800000000, 5)) ||
		!s.Peers[1].Handshake.IsZero() || fmt.Sprint(s.Peers[0].Allowed) != "[10.2.0.0/24]" {
		t.Errorf("%+v, %d, %v", s, number, err)
	}
	if _, number, ok := cutErrno("errno=-98\n\n"); !ok || number != 98 {
		t.Errorf("an error: %d, %t", number, ok)
	}
	if _, _, ok := cutErrno("public_key=" + one); ok {
		t.Error("an answer that was cut is taken")
	}
	for _, bad := range []string{"private_key=zz", "listen_port=70000", "public_key=" + two + "\nendpoint=x",
		"public_key=" + two + "\nallowed_ip=10.0.0.0/99", "public_key=" + two + "\nrx_bytes=-1"} {
		if s, err := parseState(bad); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}
