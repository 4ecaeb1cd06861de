package conformance

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// sctp: a handmade INIT (kernels may lack SCTP sockets) arrives at an endpoint with its port, and the endpoint's answer
// comes from the frontend.
func sctp(t *testing.T, w *World) {
	svc := web(model.ServicePort{Name: "s", Protocol: model.SCTP, Port: 80, NodePort: nodePort})
	w.Set(svc, w.Pods[2])
	for _, c := range w.Clients() {
		for _, is6 := range []bool{false, true} {
			for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
				if c.Name == "outside" && to == vip(is6) {
					continue
				}
				t.Run(fmt.Sprintf("from %s to %s", c.Name, to), func(t *testing.T) {
					if err := sctpInit(c.NS, w.Pods[2].NS, to, is6); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// sctpInit sends an INIT and waits for an answer. The server's kernel sends an ABORT if it supports SCTP, otherwise an
// ICMP error, which is no answer; therefore the server answers by hand, too.
func sctpInit(client, server *testnet.NS, to netip.AddrPort, is6 bool) error {
	network := "ip4:132"
	if is6 {
		network = "ip6:132"
	}
	listen := func(ns *testnet.NS) (c net.PacketConn, err error) {
		err = ns.Do(func() error { c, err = net.ListenPacket(network, ""); return err })
		return c, err
	}
	s, err := listen(server)
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := listen(client)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline := time.Now().Add(patience)
	for _, x := range []net.PacketConn{s, c} {
		if err := x.SetDeadline(deadline); err != nil {
			return err
		}
	}
	const port = 40000
	if _, err := c.WriteTo(chunk(port, to.Port(), 0, 1), &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		return err
	}
	got, from, err := read(s, 8080, 0)
	if err != nil {
		return fmt.Errorf("the endpoint: %w", err)
	}
	// INIT ACK, with the tag of the INIT, which connection tracking checks.
	if _, err := s.WriteTo(chunk(8080, binary.BigEndian.Uint16(got), 7, 2), from); err != nil {
		return err
	}
	_, from, err = read(c, port, to.Port())
	if err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	if a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP); a.Unmap() != to.Addr() {
		return fmt.Errorf("the answer came from %s", a)
	}
	return nil
}

// read waits for a packet to a port; from is the source port, 0 for any.
func read(c net.PacketConn, dst, src uint16) ([]byte, net.Addr, error) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil, nil, err
		}
		if n >= 12 && binary.BigEndian.Uint16(buf[2:]) == dst && (src == 0 || binary.BigEndian.Uint16(buf) == src) {
			return buf[:n], from, nil
		}
	}
}

// chunk is a packet with an INIT (1) or INIT ACK (2), RFC 9260, section 3.3.2.
func chunk(src, dst uint16, tag uint32, kind byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, kind, 0, 0, 20)
	b = binary.BigEndian.AppendUint32(b, 7)     // initiate tag
	b = binary.BigEndian.AppendUint32(b, 1<<16) // window
	b = append(b, 0, 1, 0, 1)                   // streams
	b = binary.BigEndian.AppendUint32(b, 1)     // TSN
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}
