package listeners

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const page = "# P\n\n## Listeners\n\ntext\n\n| listener | process | user | who | held | time | test " +
	"|\n|---|---|---|---|---|---|---|\n" +
	"| `tcp *:10256` | a | b | c | d | e | f |\n| `tcp loopback:10249` | a | b | c | d | e | f |\n| `udp node:7946` " +
	"| a | b | c | d | e | f |\n" +
	"| `tcp *:30000-32767` | a | b | c | d | e | f |\n| `packet arp` | a | b | c | d | e | f |\n| `unix " +
	"/run/x.sock` | a | b | c | d | e | f |\n\n## Next\n"

func TestSocketsAreFoundInTheTable(t *testing.T) {
	rows, err := Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	head := "  sl  local_address rem_address   st\n"
	sockets, err := Sockets(map[string]string{
		"tcp": head + "   0: 0100007F:2809 00000000:0000 0A 0\n   1: 0100007F:1F90 00000000:0000 0A 0\n   2: " +
			"0100007F:C001 0100007F:1F90 01 0\n",
		"tcp6": head + "   0: 00000000000000000000000000000000:2810 00000000000000000000000000000000:0000 0A 0\n" +
			"   1: B80D0120000000000000000001000000:9C40 00000000000000000000000000000000:0000 0A 0\n",
		"udp":    head + "   0: 0100090A:1F0A 00000000:0000 07 0\n   1: 0100090A:1F0B 0100090A:1F0A 01 0\n",
		"packet": "sk RefCnt Type Proto\n0000 3 3 0806 2 1\n0000 3 3 0000 2 1\n0000 3 3 0003 2 1\n",
		"unix": "Num RefCount Protocol Flags Type St Inode Path\n0: 00000002 00000000 00010000 0001 01 1 " +
			"/run/x.sock\n0: 00000002 00000000 00000000 0001 03 1 /run/y.sock\n0: 00000002 00000000 " +
			"00010000 0001 01 1\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	unknown, missing := Compare(rows, sockets)
	var got []string
	for _, s := range unknown {
		got = append(got, s.String())
	}
	slices.Sort(got)
	if want := []string{"packet all", "tcp 127.0.0.1:8080", "tcp [2001:db8::1]:40000"}; !slices.Equal(got, want) {
		t.Errorf("unknown: %v, want %v", got, want)
	}
	if fmt.Sprint(missing) != "[`tcp *:30000-32767`]" {
		t.Errorf("missing: %v", missing)
	}
}

// Of all sockets of a namespace, those of the processes that are seen are found.
func TestOwnSocketsAreFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	count := func() (found int) {
		all, err := Read("/proc/self/net")
		if err != nil {
			t.Fatal(err)
		}
		own, err := Own("/proc", all)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range own {
			if s.String() == "tcp "+l.Addr().String() || s.String() == "unix "+u.Addr().String() {
				found++
			}
		}
		return found
	}
	if n := count(); n != 2 {
		t.Errorf("%d of 2 sockets were found", n)
	}
	_, _ = l.Close(), u.Close()
	if n := count(); n != 0 {
		t.Errorf("%d closed sockets were found", n)
	}
}

func TestATableThatIsNotWholeIsRefused(t *testing.T) {
	for _, bad := range []string{"# P\n", "# P\n\n## Listeners\n\n## Next\n", strings.Replace(page, "| f |", "|", 1),
		strings.Replace(page, "| c |", "|  |", 1),
		strings.Replace(page, "tcp *:10256", "sctp *:1", 1), strings.Replace(page, "*:10256", "10256", 1),
		strings.Replace(page, "10256", "70000", 1)} {
		if rows, err := Parse(bad); err == nil {
			t.Errorf("%q is read as %v", bad, rows)
		}
	}
}
