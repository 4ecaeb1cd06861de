package wireguard

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The configuration protocol of WireGuard in user space (wireguard.com/xplatform): lines of key=value, an empty line,
// and in the answer errno=NUMBER before it.

// text is the change as a request.
func (c *change) text() string {
	var b strings.Builder
	b.WriteString("set=1\n")
	if c.private != nil {
		fmt.Fprintf(&b, "private_key=%s\n", hex.EncodeToString(c.private[:]))
	}
	if c.port != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.port)
	}
	for _, key := range c.remove {
		fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
	}
	for _, p := range c.set {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.Public[:]))
		if p.known {
			b.WriteString("update_only=true\n")
		}
		if p.endpoint {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		if p.allowed {
			b.WriteString("replace_allowed_ips=true\n")
			for _, n := range p.Allowed {
				fmt.Fprintf(&b, "allowed_ip=%s\n", n)
			}
		}
		// Last: a keep-alive goes out at once, and needs the endpoint.
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(KeepAlive.Seconds()))
	}
	b.WriteString("\n")
	return b.String()
}

// cutErrno splits an answer into its lines and its error number.
func cutErrno(answer string) (body string, number int, ok bool) {
	i := strings.LastIndex(answer, "errno=")
	if i < 0 || i > 0 && answer[i-1] != '\n' {
		return "", 0, false
	}
	number, err := strconv.Atoi(strings.TrimSpace(answer[i+len("errno="):]))
	if number < 0 {
		number = -number
	}
	return answer[:i], number, err == nil
}

// parseState reads the answer to get=1. Unknown lines are skipped.
func parseState(body string) (*State, error) {
	s := &State{}
	var seconds, nanos int64
	var p *PeerState
	finish := func() {
		if p != nil && seconds+nanos > 0 {
			p.Handshake = time.Unix(seconds, nanos)
		}
		seconds, nanos = 0, 0
	}
	for line := range strings.SplitSeq(body, "\n") {
		key, value, _ := strings.Cut(line, "=")
		if key == "public_key" {
			finish()
			s.Peers = append(s.Peers, PeerState{})
			p = &s.Peers[len(s.Peers)-1]
		}
		var err error
		switch {
		case key == "private_key":
			err = parseHex(value, &s.Private)
		case key == "listen_port":
			err = parse(value, 16, func(n int64) { s.Port = uint16(n) })
		case p == nil:
		case key == "public_key":
			err = parseHex(value, &p.Public)
		case key == "endpoint":
			p.Endpoint, err = netip.ParseAddrPort(value)
		case key == "allowed_ip":
			var n netip.Prefix
			n, err = netip.ParsePrefix(value)
			p.Allowed = append(p.Allowed, n)
		case key == "last_handshake_time_sec":
			err = parse(value, 63, func(n int64) { seconds = n })
		case key == "last_handshake_time_nsec":
			err = parse(value, 63, func(n int64) { nanos = n })
		case key == "rx_bytes":
			err = parse(value, 63, func(n int64) { p.Received = uint64(n) })
		case key == "tx_bytes":
			err = parse(value, 63, func(n int64) { p.Sent = uint64(n) })
		}
		if err != nil {
			return nil, fmt.Errorf("answer of the process: %s: %w", key, err)
		}
	}
	finish()
	return s, nil
}

func parse(value string, bits int, set func(int64)) error {
	n, err := strconv.ParseUint(value, 10, bits)
	if err != nil {
		return fmt.Errorf("found %.20q; allowed: a number", value)
	}
	set(int64(n))
	return nil
}

func parseHex(value string, to *Key) error {
	raw, err := hex.DecodeString(value)
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("found %d characters; allowed: 64 hexadecimal digits", len(value))
	}
	*to = Key(raw)
	return nil
}
