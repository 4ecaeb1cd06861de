package process

import (
	"bytes"
	"testing"
)

// Only a UDP packet over IPv6 without a checksum gets one.
func TestNoUDPOverIPv6IsWithoutAChecksum(t *testing.T) {
	packet := func(version, next byte, sum ...byte) []byte {
		p := make([]byte, 60)
		p[0], p[nextHeader] = version<<4, next
		copy(p[udpSum:], sum)
		return p
	}
	for name, tc := range map[string]struct{ in, want []byte }{
		"none":     {packet(6, 17), packet(6, 17, 0xff, 0xff)},
		"one":      {packet(6, 17, 0, 7), packet(6, 17, 0, 7)},
		"TCP":      {packet(6, 6), packet(6, 6)},
		"IPv4":     {packet(4, 17), packet(4, 17)},
		"short":    {packet(6, 17)[:47], packet(6, 17)[:47]},
		"no bytes": {nil, nil},
	} {
		if fill(tc.in); !bytes.Equal(tc.in, tc.want) {
			t.Errorf("%s: %x, want %x", name, tc.in, tc.want)
		}
	}
}
