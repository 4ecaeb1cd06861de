package dnstest

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/internal/odddns"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// StartOdd starts a server with an odd habit on the loopback of this machine.
func StartOdd(t *testing.T, h odddns.Habit) (*odddns.Server, model.Nameserver) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	testnet.Eventually(t, 10*time.Second, func() (err error) {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		if p, err = net.ListenPacket("udp", l.Addr().String()); err != nil {
			l.Close()
		}
		return err
	})
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := model.Nameserver{Addr: netip.MustParseAddrPort(l.Addr().String())}
	if h.NoTCP {
		l.Close()
		l = nil
	}
	s := odddns.Start(h, p, other, l)
	t.Cleanup(s.Close)
	return s, at
}
