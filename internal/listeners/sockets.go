package listeners

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// files are those of /proc/net that Read reads.
var files = map[string]func(fields []string) (Socket, bool, error){
	"tcp": stream, "tcp6": stream, "udp": datagram, "udp6": datagram, "raw": raw, "raw6": raw, "packet": packet,
	"unix": unixSocket,
}

// Read lists the sockets of the network namespace of dir, a /proc/…/net: listening sockets, and datagram sockets that
// are not connected. Unix sockets without a path are left out.
func Read(dir string) ([]Socket, error) {
	texts := map[string]string{}
	for name := range files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return nil, err
		}
		texts[name] = string(b)
	}
	return Sockets(texts)
}

// Sockets parses the files tcp, tcp6, udp, udp6, raw, raw6, packet and unix of /proc/net.
func Sockets(texts map[string]string) ([]Socket, error) {
	var all []Socket
	for name, text := range texts {
		parse, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("/proc/net/%s: not known", name)
		}
		lines := strings.Split(text, "\n")
		for _, line := range lines[min(1, len(lines)):] {
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			s, listens, err := parse(fields)
			if err != nil {
				return nil, fmt.Errorf("/proc/net/%s: %q: %w", name, line, err)
			}
			if listens {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// column returns a field, or "" if there are fewer.
func column(fields []string, n int) string {
	if n < len(fields) {
		return fields[n]
	}
	return ""
}

// Own returns the inodes of the open sockets of all processes in proc, "/proc".
func Own(proc string, sockets []Socket) ([]Socket, error) {
	links, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return nil, err
	}
	open := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			open[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(sockets), func(s Socket) bool { return !open[s.Inode] }), nil
}

var errShort = errors.New("too few columns")

// inet parses "sl local remote state …".
func inet(kind string, fields []string, listens string) (Socket, bool, error) {
	if len(fields) < 4 {
		return Socket{}, false, errShort
	}
	addr, err := address(fields[1])
	return Socket{Kind: kind, Addr: addr, Inode: column(fields, 9)}, fields[3] == listens, err
}

// The states TCP_LISTEN and, for a datagram socket that is not connected, TCP_CLOSE.
func stream(f []string) (Socket, bool, error)   { return inet("tcp", f, "0A") }
func datagram(f []string) (Socket, bool, error) { return inet("udp", f, "07") }

// Raw sockets have their protocol in place of a port. A connected one receives only from one address.
func raw(f []string) (Socket, bool, error) {
	s, listens, err := inet("raw", f, "07")
	s.Name, s.Addr = protocol(s.Addr.Port()), netip.AddrPort{}
	return s, listens, err
}

func protocol(n uint16) string {
	switch n {
	case 1:
		return "icmp"
	case 58:
		return "icmpv6"
	case 255:
		return "send-only" // IPPROTO_RAW receives nothing
	}
	return strconv.Itoa(int(n))
}

// packet parses "sk ref type protocol …".
func packet(f []string) (Socket, bool, error) {
	if len(f) < 4 {
		return Socket{}, false, errShort
	}
	name := f[3]
	switch name {
	case "0003":
		name = "all"
	case "0806":
		name = "arp"
	case "86dd":
		name = "ipv6"
	}
	return Socket{Kind: "packet", Name: name, Inode: column(f, 8)}, name != "0000", nil
}

// unixSocket parses "num ref protocol flags type state inode path"; flag 0x10000 means that it accepts connections.
func unixSocket(f []string) (Socket, bool, error) {
	if len(f) < 7 {
		return Socket{}, false, errShort
	}
	if len(f) < 8 {
		return Socket{}, false, nil
	}
	flags, err := strconv.ParseUint(f[3], 16, 64)
	return Socket{Kind: "unix", Name: f[7], Inode: f[6]}, flags&0x10000 != 0, err
}

// address parses the kernel's text of an address, words in the machine's byte order, and a port.
func address(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(words)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
