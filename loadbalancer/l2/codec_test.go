package l2

import (
	"bytes"
	"net/netip"
	"testing"
)

var (
	mac1, mac2 = MAC{2, 0, 0, 0, 0, 1}, MAC{2, 0, 0, 0, 0, 2}
	v4, v4b    = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	v6, v6b    = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::2")
)

// changed is a copy of a frame with one byte set.
func changed(frame []byte, at int, to byte) []byte {
	c := bytes.Clone(frame)
	c[at] = to
	return c
}

// summed is a copy of a neighbour discovery frame with its checksum made right.
func summed(frame []byte) []byte {
	c := bytes.Clone(frame)
	ip := c[etherHeader:]
	ip[ipv6Header+2], ip[ipv6Header+3] = 0, 0
	sum := checksum(ip[8:40], ip[ipv6Header:ipv6Header+int(ip[5])])
	ip[ipv6Header+2], ip[ipv6Header+3] = byte(sum>>8), byte(sum)
	return c
}

func TestARPIsReadAndWritten(t *testing.T) {
	request := appendARP(nil, arpRequest, mac1, broadcast, v4b, v4, MAC{})
	q, ok := ParseARP(request)
	if want := (ARP{Request: true, SenderMAC: mac1, SenderIP: v4b, TargetIP: v4}); !ok || q != want {
		t.Fatalf("%+v, want %+v", q, want)
	}
	reply := arpAnswer(nil, q, mac2)
	a, ok := ParseARP(reply)
	if want := (ARP{SenderMAC: mac2, SenderIP: v4, TargetIP: v4b}); !ok || a != want {
		t.Errorf("%+v, want %+v", a, want)
	}
	if MAC(reply[:6]) != mac1 || MAC(reply[6:12]) != mac2 || len(reply) != 60 {
		t.Errorf("the answer % x goes to the wrong place or is not 60 bytes", reply)
	}
	for name, bad := range map[string][]byte{
		"short":              request[:41],
		"of another type":    changed(request, 13, 0x07),
		"for no Ethernet":    changed(request, 15, 6),
		"for no IPv4":        changed(request, 16, 0x86),
		"longer MACs":        changed(request, 18, 8),
		"longer addresses":   changed(request, 19, 16),
		"another operation":  changed(request, 21, 3),
		"a group as sender":  changed(request, 22, 1),
		"nothing at all":     nil,
		"no MAC as a sender": append(append(bytes.Clone(request[:22]), 0, 0, 0, 0, 0, 0), request[28:]...),
	} {
		if a, ok := ParseARP(bad); ok {
			t.Errorf("%s: read as %+v", name, a)
		}
	}
}

func TestNDPIsReadAndWritten(t *testing.T) {
	question := ndpQuestion(nil, v6b, v6, mac1)
	q, ok := ParseNDP(question)
	if want := (NDP{Solicitation: true, Source: v6b, Destination: netip.MustParseAddr("ff02::1:ff00:1"), Target: v6,
		MAC: mac1}); !ok || q != want {
		t.Fatalf("%+v, want %+v", q, want)
	}
	a, ok := ParseNDP(ndpAnswer(nil, q, mac2))
	if want := (NDP{Source: v6, Destination: v6b, Target: v6, MAC: mac2, Solicited: true}); !ok || a != want {
		t.Errorf("%+v, want %+v", a, want)
	}
	// Duplicate address detection names no MAC, and is answered to all nodes.
	detection := appendNDP(nil, solicitation, 0, mac1, MAC{0x33, 0x33, 0xff, 0, 0, 1}, netip.IPv6Unspecified(),
		solicitedNode(v6), v6, optionSource)[:etherHeader+ipv6Header+ndpSize]
	detection[19] = ndpSize
	detection = summed(detection)
	d, ok := ParseNDP(detection)
	if !ok || !d.Source.IsUnspecified() || d.MAC != mac1 {
		t.Fatalf("%+v", d)
	}
	answer := ndpAnswer(nil, d, mac2)
	a, ok = ParseNDP(answer)
	if want := (NDP{Source: v6, Destination: everyNode, Target: v6, MAC: mac2}); !ok || a != want ||
		MAC(answer[:6]) != allNodes {
		t.Errorf("%+v, want %+v", a, want)
	}
	longOption := appendNDP(nil, solicitation, 0, mac1, allNodes, v6b, solicitedNode(v6), v6, optionSource)
	option := etherHeader + ipv6Header + ndpSize
	for name, bad := range map[string][]byte{
		"short":                  question[:77],
		"cut":                    question[:len(question)-1],
		"of another type":        changed(question, 12, 8),
		"no IPv6":                changed(question, 14, 0x40),
		"a size past the end":    changed(question, 19, 255),
		"too small a size":       changed(question, 19, 8),
		"no ICMPv6":              changed(question, 20, 17),
		"passed by a router":     changed(question, 21, 254),
		"a wrong checksum":       changed(question, 57, question[57]+1),
		"a code":                 summed(changed(question, 55, 1)),
		"a router's":             summed(changed(question, 54, 133)),
		"a group as target":      summed(changed(question, 62, 0xff)),
		"a group as source":      summed(changed(question, 22, 0xff)),
		"an option of no length": summed(changed(longOption, option+1, 0)),
		"an option past the end": summed(changed(longOption, option+1, 2)),
		"solicited for all": appendNDP(nil, advertisement, flagSolicited, mac1, allNodes, v6, everyNode, v6,
			optionTarget),
		"an answer of nobody": appendNDP(nil, advertisement, 0, mac1, allNodes, netip.IPv6Unspecified(), everyNode,
			v6, optionTarget),
		"detection with a MAC": appendNDP(nil, solicitation, 0, mac1, allNodes, netip.IPv6Unspecified(),
			solicitedNode(v6), v6, optionSource),
		"detection of one": summed(changed(detection, 39+14, 9)),
		"a group's MAC":    summed(changed(question, option+2, 1)),
		"nothing at all":   nil,
	} {
		if n, ok := ParseNDP(bad); ok {
			t.Errorf("%s: read as %+v", name, n)
		}
	}
}

// Reading and answering take no memory, so a flood takes none.
func TestReadingAllocatesNothing(t *testing.T) {
	arp, ndp := appendARP(nil, arpRequest, mac1, broadcast, v4b, v4, MAC{}), ndpQuestion(nil, v6b, v6, mac1)
	table := &table{vips: map[netip.Addr]entry{v4: {true, []string{"eth0"}}, v6: {true, []string{"eth0"}}}}
	link := Link{Name: "eth0", Index: 1, MAC: mac2}
	r := NewResponder(nil, nil)
	b := make([]byte, 0, 128)
	n := testing.AllocsPerRun(100, func() {
		if len(r.arp(table, link, arp, b)) == 0 || len(r.ndp(table, link, ndp, b)) == 0 {
			t.Error("not answered")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzARP(f *testing.F) {
	f.Add(appendARP(nil, arpRequest, mac1, broadcast, v4b, v4, MAC{}))
	f.Add(appendARP(nil, arpReply, mac1, mac2, v4b, v4, mac2))
	f.Fuzz(func(t *testing.T, frame []byte) {
		q, ok := ParseARP(frame)
		if !ok {
			return
		}
		// What was read can be answered, and the answer be read.
		a, ok := ParseARP(arpAnswer(nil, q, mac2))
		if !ok || a.Request || a.SenderIP != q.TargetIP || a.TargetIP != q.SenderIP || a.SenderMAC != mac2 {
			t.Errorf("%+v is answered by %+v", q, a)
		}
	})
}

func FuzzNDP(f *testing.F) {
	f.Add(ndpQuestion(nil, v6b, v6, mac1))
	f.Add(ndpAnnouncement(nil, v6, mac1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		// The checksum would keep the fuzzer out.
		if len(frame) >= etherHeader+ipv6Header+ndpSize && int(frame[18])<<8+
			int(frame[19]) <= len(frame)-etherHeader-ipv6Header && frame[18] == 0 && frame[19] >= ndpSize {
			frame = summed(frame)
		}
		q, ok := ParseNDP(frame)
		if !ok || !q.Solicitation {
			return
		}
		a, ok := ParseNDP(ndpAnswer(nil, q, mac2))
		if !ok || a.Solicitation || a.Target != q.Target || a.MAC != mac2 || a.Solicited == q.Source.IsUnspecified() {
			t.Errorf("%+v is answered by %+v", q, a)
		}
	})
}
