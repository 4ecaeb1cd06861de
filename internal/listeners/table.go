// Package listeners compares the listening sockets of a node with the table of docs/security.md: a socket without a row
// is an error, and so is a row without a socket.
package listeners

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Row is a line of the table.
type Row struct {
	// Kind is tcp, udp, packet, raw or unix.
	Kind string
	// Host is "*" for all addresses, "loopback", or a word for an address of the node; for packet and raw sockets it is
	// the protocol, for unix sockets the path.
	Host string
	// Ports are the first and the last one, for tcp and udp.
	Ports [2]uint16
	// Cells are the columns as written, including the first one.
	Cells []string
}

// String returns the first column.
func (r Row) String() string { return r.Cells[0] }

// columns of the table.
const columns = 7

// Parse parses the table under the heading "## Listeners" of a page. Each row has columns: listener, process, user, who
// may connect, what is held before admission, time-outs, the test that floods it.
func Parse(page string) ([]Row, error) {
	_, section, ok := strings.Cut(page, "\n## Listeners\n")
	if !ok {
		return nil, fmt.Errorf("no heading Listeners")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []Row
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != columns || slices.Contains(cells, "") {
			return nil, fmt.Errorf("%q: %d columns are filled; %d are needed", strings.TrimSpace(line),
				len(cells), columns)
		}
		row, err := parseRow(cells)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("the table of listeners is empty")
	}
	return rows, nil
}

// parseRow parses "`tcp *:10256`", "`tcp *:30000-32767`", "`packet arp`", "`unix /path`".
func parseRow(cells []string) (Row, error) {
	text := strings.Trim(cells[0], "`")
	kind, where, _ := strings.Cut(text, " ")
	row := Row{Kind: kind, Host: where, Cells: cells}
	switch kind {
	case "packet", "raw", "unix":
		return row, nil
	case "tcp", "udp":
	default:
		return row, fmt.Errorf("%q: the kind is %q; tcp, udp, packet, raw and unix are allowed", text, kind)
	}
	host, ports, ok := strings.Cut(where, ":")
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	for i, p := range []string{first, last} {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || !ok {
			return row, fmt.Errorf("%q: want HOST:PORT or HOST:FIRST-LAST", text)
		}
		row.Ports[i] = uint16(n)
	}
	row.Host = host
	return row, nil
}

// Allows reports whether the row describes the socket.
func (r Row) Allows(s Socket) bool {
	if r.Kind != s.Kind {
		return false
	}
	switch r.Kind {
	case "packet", "raw", "unix":
		return r.Host == s.Name
	}
	if s.Addr.Port() < r.Ports[0] || s.Addr.Port() > r.Ports[1] {
		return false
	}
	switch a := s.Addr.Addr(); r.Host {
	case "*":
		return true
	case "loopback":
		return a.IsLoopback()
	default:
		return !a.IsUnspecified() && !a.IsLoopback()
	}
}

// Compare returns the sockets without a row, and the rows without a socket.
func Compare(rows []Row, sockets []Socket) (unknown []Socket, missing []Row) {
	used := make([]bool, len(rows))
	for _, s := range sockets {
		known := false
		for i, r := range rows {
			if r.Allows(s) {
				used[i], known = true, true
			}
		}
		if !known {
			unknown = append(unknown, s)
		}
	}
	for i, r := range rows {
		if !used[i] {
			missing = append(missing, r)
		}
	}
	return unknown, missing
}

// Socket is one that receives from others.
type Socket struct {
	// Kind is as in Row.
	Kind string
	// Addr is that of tcp and udp sockets; Name is the protocol of packet and raw sockets, and the path of unix
	// sockets.
	Addr netip.AddrPort
	Name string
	// Inode identifies the descriptors of the socket, see Own. It is empty if the kernel did not print it.
	Inode string
}

// String returns the socket in the form of the table's first column.
func (s Socket) String() string {
	if s.Addr.IsValid() {
		return s.Kind + " " + s.Addr.String()
	}
	return s.Kind + " " + s.Name
}

// ParseSocket parses the result of String.
func ParseSocket(text string) (Socket, error) {
	kind, rest, _ := strings.Cut(text, " ")
	s := Socket{Kind: kind}
	switch kind {
	case "packet", "raw", "unix":
		s.Name = rest
		return s, nil
	case "tcp", "udp":
		var err error
		if s.Addr, err = netip.ParseAddrPort(rest); err != nil {
			return s, fmt.Errorf("socket %q: %w", text, err)
		}
		return s, nil
	}
	return s, fmt.Errorf("socket %q: the kind is %q; tcp, udp, packet, raw and unix are allowed", text, kind)
}
