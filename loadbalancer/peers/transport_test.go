package peers

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"wayleave.dev/internal/testnet"
)

// hostile sends as a machine of the address, which may be a node's.
type hostile struct {
	t    *testing.T
	w    *cluster
	addr string
	key  []byte
}

func (h hostile) dial(to int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.addr)}, Timeout: time.Second}
	return d.Dial("tcp", netip.AddrPortFrom(h.w.peers[to].Addrs[0], h.w.port).String())
}

// seal encrypts as memberlist does, with what is authenticated beside.
func (h hostile) seal(plain, data []byte) []byte {
	block, err := aes.NewCipher(h.key)
	if err != nil {
		h.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		h.t.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	_, _ = crand.Read(nonce)
	return gcm.Seal(append([]byte{sealed}, nonce...), nonce, plain, data)
}

// message is a whole one for a connection.
func (h hostile) message(plain []byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{encryptedMessage}, uint32(1+nonceSize+len(plain)+tagSize))
	b := append(bytes.Clone(labelHead), head...)
	return append(b, h.seal(plain, append(bytes.Clone(head), label...))...)
}

// datagram sends one.
func (h hostile) datagram(to int, plain []byte) {
	h.t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(h.addr)},
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.w.peers[to].Addrs[0], h.w.port)))
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(append(bytes.Clone(labelHead), h.seal(plain, []byte(label))...)); err != nil {
		h.t.Fatal(err)
	}
}

func packed(t *testing.T, kind byte, v any) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{kind})
	if err := codec.NewEncoder(b, &codec.MsgpackHandle{}).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bomb is a message that unpacks to more than a thousand times its size.
func bomb(t *testing.T) []byte {
	var b bytes.Buffer
	z := lzw.NewWriter(&b, lzw.LSB, 8)
	if _, err := z.Write(make([]byte, 1<<21)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(t, 9, struct {
		Algo int
		Buf  []byte
	}{0, b.Bytes()})
}

// took is how much memory was taken while fn ran, whether or not it was given back.
func took(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// These tests measure the memory of their process: they run alone.

// stays says that a connection is not reset at once.
func stays(c net.Conn, err error) bool {
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	var timeout net.Error
	_, err = c.Read(make([]byte, 1))
	return err == nil || errors.As(err, &timeout) && timeout.Timeout()
}

// A connection of a machine that is no node is reset before a byte of it is read, and its datagrams are dropped by the
// kernel. Nodes see each other meanwhile.
func TestAStrangerGetsNoConnection(t *testing.T) {
	w := newCluster(t, 2)
	a, b := w.start(0, key(1)), w.start(1, key(1))
	defer w.stop(a, false)
	defer w.stop(b, false)
	a.SetPeers(w.peers)
	b.SetPeers(w.peers)
	w.sees(a, 10*time.Second, "node2")
	for _, from := range []string{"127.0.0.66", "127.9.9.9"} {
		h := hostile{t, w, from, key(1)}
		if stays(h.dial(0)) {
			t.Errorf("%s was let in", from)
		}
		before := a.wire.refused.Load()
		for range 100 {
			h.datagram(0, []byte{255})
		}
		if n := a.wire.refused.Load() - before; n > 0 {
			t.Errorf("%d datagrams of %s came to the process", n, from)
		}
	}
	// One that was a node has no connection any more.
	a.SetPeers(w.peers[:1])
	if stays((hostile{t, w, "127.0.0.2", key(1)}).dial(0)) {
		t.Error("a node that was taken out was let in")
	}
	a.SetPeers(w.peers)
	w.sees(a, 10*time.Second, "node2")
}

// A node that sends without end, or announces more than nodes say, takes no memory, and only its own connections
// go. Its bytes are no message that a key opens.
func TestANodeThatFloodsIsBounded(t *testing.T) {
	w := newCluster(t, 3)
	a := w.start(0, key(1))
	defer w.stop(a, false)
	a.SetPeers(w.peers)
	h := hostile{t, w, "127.0.0.2", key(2)}
	junk := bytes.Repeat([]byte{1}, 1<<20)
	grew := took(func() {
		for i := range 200 {
			c, err := h.dial(0)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			defer c.Close()
			size := []uint32{20 << 20, 60 << 10, 1<<32 - 1}[i%3]
			_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = c.Write(append(bytes.Clone(labelHead),
				binary.BigEndian.AppendUint32([]byte{encryptedMessage}, size)...))
			_, _ = c.Write(junk[:1<<20>>(i%5*2)])
		}
		if open := a.wire.tcp.Counters().Open; open > streamsPerNode {
			t.Errorf("one node holds %d connections, want %d", open, streamsPerNode)
		}
	})
	if most := uint64(200 * 3 * a.wire.maxMessage()); grew > most {
		t.Errorf("200 connections took %d bytes, want %d at most", grew, most)
	}
	b := w.start(2, key(1))
	defer w.stop(b, false)
	b.SetPeers(w.peers)
	w.sees(b, 10*time.Second, "node1")
	testnet.Eventually(t, 10*time.Second, func() error {
		if held := a.wire.held.Load(); held != 0 {
			return fmt.Errorf("%d bytes are held", held)
		}
		return nil
	})
}

// Whoever is root on a node has the key, and can send what memberlist would take memory for, or fail at.
func TestANodeWithTheKeyIsBounded(t *testing.T) {
	w := newCluster(t, 3)
	a := w.start(0, key(1))
	defer w.stop(a, false)
	a.SetPeers(w.peers)
	h := hostile{t, w, "127.0.0.2", key(1)}
	streams := map[string][]byte{
		"a million nodes": packed(t, pushPullMessage, map[string]any{"Nodes": 1 << 20, "UserStateLen": 0,
			"Join": true}),
		"fewer than none": packed(t, pushPullMessage, map[string]any{"Nodes": -1, "UserStateLen": 0, "Join": true}),
		"bytes for us": packed(t, pushPullMessage, map[string]any{"Nodes": 0, "UserStateLen": 20 << 20,
			"Join": true}),
		"a message": packed(t, 8, map[string]any{"UserMsgLen": 20 << 20}),
		"packed":    bomb(t),
		"nothing":   {},
	}
	for name, plain := range streams {
		grew := took(func() {
			for range 3 {
				c, err := h.dial(0)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write(h.message(plain))
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
		})
		if grew > 8<<20 {
			t.Errorf("%s: three connections took %d bytes", name, grew)
		}
	}
	compound := func(parts ...[]byte) []byte {
		b := []byte{compoundMessage, byte(len(parts))}
		for _, p := range parts {
			b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
		}
		return append(b, bytes.Join(parts, nil)...)
	}
	small := bomb(t)[:1200] // cut short, it unpacks as far as it goes
	for name, plain := range map[string][]byte{"packed": small, "packed in a compound": compound(small),
		"compound in compound": compound(compound(small))} {
		if err := checkMessage(plain, true); err == nil {
			t.Errorf("datagram: %s: is let through", name)
		}
		before := a.Refused()
		h.datagram(0, plain)
		testnet.Eventually(t, 5*time.Second, func() error {
			if a.Refused() == before {
				return fmt.Errorf("datagram: %s: is not refused", name)
			}
			return nil
		})
	}
	b := w.start(2, key(1))
	defer w.stop(b, false)
	b.SetPeers(w.peers)
	w.sees(b, 10*time.Second, "node1")
}

// What a node says may name any address. Only nodes, at the port of heartbeats, are sent to.
func TestHeartbeatsAreSentToNodesOnly(t *testing.T) {
	w := newCluster(t, 2)
	a := w.start(0, key(1))
	defer w.stop(a, false)
	a.SetPeers(w.peers)
	for to, ok := range map[string]bool{
		netip.AddrPortFrom(w.peers[1].Addrs[0], w.port).String():   true,
		netip.AddrPortFrom(w.peers[1].Addrs[0], w.port+1).String(): false,
		fmt.Sprintf("127.0.0.77:%d", w.port):                       false,
		"127.0.0.1:53":                                             false,
		"node2:53":                                                 false,
	} {
		if _, err := a.wire.WriteTo([]byte{1}, to); (err == nil) != ok {
			t.Errorf("datagram to %s: %v", to, err)
		}
		c, err := a.wire.DialTimeout(to, 100*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		if !ok && err == nil {
			t.Errorf("connection to %s", to)
		}
	}
}

// Bytes that a key opens are any bytes: memberlist must not fail at those that are let through.
func TestNoBytesOfANodeEndTheProcess(t *testing.T) {
	w := newCluster(t, 2)
	a := w.start(0, key(1))
	defer w.stop(a, false)
	a.SetPeers(w.peers)
	h := hostile{t, w, "127.0.0.2", key(1)}
	random := rand.New(rand.NewPCG(7, 946))
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(h.addr)},
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.peers[0].Addrs[0], w.port)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seeds := [][]byte{
		packed(t, aliveMessage, map[string]any{"Node": "node3", "Addr": []byte{127, 0, 0, 3}, "Port": w.port,
			"Meta": Meta{}.bytes(), "Vsn": []byte{1, 5, 2, 0, 0, 0}, "Incarnation": 1}),
		packed(t, deadMessage, map[string]any{"Node": "node1", "From": "node3", "Incarnation": 1}),
		packed(t, suspectMessage, map[string]any{"Node": "node1", "From": "node3", "Incarnation": 9}),
		packed(t, pingMessage, map[string]any{"SeqNo": 1, "Node": "node1", "SourceAddr": []byte{1}, "SourcePort": 1}),
		packed(t, indirectPingMessage, map[string]any{"SeqNo": 1, "Node": "node1", "Target": []byte{1, 2, 3},
			"Nack": true}),
	}
	for i := range 3000 {
		plain := bytes.Clone(seeds[random.IntN(len(seeds))])
		for range random.IntN(4) {
			plain[random.IntN(len(plain))] = byte(random.Uint32())
		}
		plain = plain[:1+random.IntN(len(plain))]
		if _, err := c.Write(append(bytes.Clone(labelHead), h.seal(plain, []byte(label))...)); err != nil {
			t.Fatal(i, err)
		}
	}
	// They have been read when one that comes after them was refused.
	before := a.Refused()
	testnet.Eventually(t, 10*time.Second, func() error {
		h.datagram(0, []byte{255})
		if a.Refused() == before {
			return fmt.Errorf("not read yet")
		}
		return nil
	})
}
