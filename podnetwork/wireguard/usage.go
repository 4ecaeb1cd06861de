package wireguard

import (
	"time"

	"wayleave.dev/kernel/wireguard"
)

// Usage is by which device each peer sends, as the devices' counters of received bytes show it. A node whose agent does
// not run, or whose clock differs, still sends by the device of an earlier period: a key that is replaced then would
// cost its packets. The zero value knows nothing. It is for one goroutine.
type Usage struct {
	devices [Devices]map[wireguard.Key]received
	began   [Devices]time.Time
}

// received is what a peer has sent by a device.
type received struct {
	bytes uint64
	// at is when bytes was read, data when more than messages of WireGuard itself had come.
	at, data time.Time
}

// Look reads the counters of a device. It is called more often than every few seconds.
func (u *Usage) Look(device int, peers []wireguard.PeerState, now time.Time) {
	if u.began[device].IsZero() {
		u.began[device] = now
	}
	next := make(map[wireguard.Key]received, len(peers))
	for _, p := range peers {
		was, ok := u.devices[device][p.Public]
		is := received{bytes: p.Received, at: now, data: was.data}
		if ok && p.Received > was.bytes && !isIdle(p.Received-was.bytes, now.Sub(was.at)) {
			is.data = now
		}
		next[p.Public] = is
	}
	u.devices[device] = next
}

// Since is since when a device has received no packet, and the peer that sent the last one. The peer is the zero Key if
// none has sent since the first look.
func (u *Usage) Since(device int) (last time.Time, by wireguard.Key) {
	last = u.began[device]
	for key, r := range u.devices[device] {
		if r.data.After(last) {
			last, by = r.data, key
		}
	}
	return last, by
}

// Lengths of messages that a peer sends without a packet, and how often it repeats them at most (REKEY_TIMEOUT).
const (
	initiation  = 148
	response    = 92
	keepAlive   = 32
	repeatAfter = 5 * time.Second
	// longestLook bounds the work for counters that were not read for long: a peer that sent more than messages of such
	// a time can have sent a packet.
	longestLook = time.Minute
)

// isIdle says whether that many bytes can be messages of WireGuard itself. Encrypted packets have 64 bytes or more, in
// steps of 16.
func isIdle(bytes uint64, within time.Duration) bool {
	most := uint64(1 + min(max(within, 0), longestLook)/repeatAfter)
	for i := range most + 1 {
		for r := range most + 1 {
			rest := bytes - i*initiation - r*response
			if i*initiation+r*response <= bytes && rest%keepAlive == 0 && rest/keepAlive <= most {
				return true
			}
		}
	}
	return false
}
