package podnetwork

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/internal/testnet"
)

// counters are what the kernel counts of a namespace that says where a packet went: without a
// route, without a socket, into a full buffer, or late.
type counters map[string]int64

// lossy are the counters of /proc/net/snmp, snmp6, netstat and dev that grow when
// something is dropped.
var lossy = regexp.MustCompile(`Discard|NoRoutes|Errors?$|Drop|NoPorts|AddrErrors|Truncated|Unreachs|dropped|_errors`)

// readCounters reads a namespace.
func readCounters(ns *testnet.NS) counters {
	out := counters{}
	var keys []string
	for line := range strings.Lines(ns.Run("cat", "/proc/net/snmp", "/proc/net/netstat", "/proc/net/snmp6")) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && !strings.HasSuffix(fields[0], ":"): // snmp6
			out.add("", fields[0], fields[1])
		case len(fields) > 1 && len(fields) == len(keys) && fields[0] == keys[0]: // values below their names
			for i := 1; i < len(fields); i++ {
				out.add(fields[0], keys[i], fields[i])
			}
			keys = nil
		default:
			keys = fields
		}
	}
	for line := range strings.Lines(ns.Run("sh", "-c", "tail -n +3 /proc/net/dev")) {
		fields := strings.Fields(strings.Replace(line, ":", " ", 1))
		if len(fields) < 17 {
			continue
		}
		for key, column := range map[string]int{"rx_errors": 3, "rx_dropped": 4, "tx_errors": 11, "tx_dropped": 12} {
			out.add(fields[0]+" ", key, fields[column])
		}
	}
	return out
}

func (c counters) add(group, key, value string) {
	if !lossy.MatchString(key) {
		return
	}
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		c[group+key] = n
	}
}

// since are the counters that grew, as text.
func (c counters) since(before counters) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		if d := c[k] - before[k]; d > 0 {
			out = append(out, fmt.Sprintf("%s +%d", k, d))
		}
	}
	return strings.Join(out, ", ")
}
