package speaker

import (
	"bufio"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// record is what tcpdump saw from outside while the outside asked for addresses all the time.
type record struct {
	t       *testing.T
	mu      sync.Mutex
	answers map[netip.Addr][]answer
	stop    func()
}

type answer struct {
	at  time.Time
	mac string
}

// record asks for the addresses every 50 ms, and has tcpdump note the answers.
func (w *cluster) record(addrs ...netip.Addr) *record {
	w.t.Helper()
	r := &record{t: w.t, answers: map[netip.Addr][]answer{}}
	dump := exec.Command("tcpdump", "-i", "eth0", "-n", "-e", "-tt", "-l", "--immediate-mode",
		"arp[6:2] = 2 or (icmp6 and ip6[40] = 136)")
	out, err := dump.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	w.outside.Must(dump.Start)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r.note(lines.Text())
		}
	})
	quit := make(chan struct{})
	var asking sync.WaitGroup
	for _, a := range addrs {
		asking.Go(func() { w.ask(a, quit) })
	}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			close(quit)
			asking.Wait()
			_ = dump.Process.Kill()
			reading.Wait()
			_ = dump.Wait()
		})
	}
	w.t.Cleanup(r.stop)
	return r
}

// ask asks for an address until quit is closed. Whether it is answered, tcpdump tells.
func (w *cluster) ask(a netip.Addr, quit <-chan struct{}) {
	if a.Is6() {
		for {
			select {
			case <-quit:
				return
			default:
				_, _ = w.outside.Try("ndisc6", "-q", "-m", "-r", "1", "-w", "50", a.String(), "eth0")
			}
		}
	}
	arping := exec.Command("arping", "-q", "-c", "100000", "-W", "0.05", "-I", "eth0", a.String())
	if err := w.outside.Do(arping.Start); err != nil {
		w.t.Errorf("arping: %v", err)
		return
	}
	<-quit
	_ = arping.Process.Kill()
	_ = arping.Wait()
}

// note reads a line of tcpdump. Announcements, which go to all, are no answers.
func (r *record) note(line string) {
	f := strings.Fields(line)
	if len(f) < 4 || strings.Contains(line, "> ff:ff:ff:ff:ff:ff,") || strings.Contains(line, "> 33:33:") {
		return
	}
	var addr string
	if _, rest, ok := strings.Cut(line, "Reply "); ok {
		addr, _, _ = strings.Cut(rest, " ")
	} else if _, rest, ok := strings.Cut(line, "tgt is "); ok {
		addr, _, _ = strings.Cut(rest, ",")
	}
	a, err := netip.ParseAddr(addr)
	seconds, err2 := strconv.ParseFloat(f[0], 64)
	if err != nil || err2 != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[a] = append(r.answers[a], answer{time.UnixMicro(int64(seconds * 1e6)), f[1]})
}

// moments in which two answers count as given at once: the outside asks that often.
const moment = 300 * time.Millisecond

// doubles are the longest times for which more than one MAC answered for the address.
func (r *record) doubles(a netip.Addr) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.answers[a])
	slices.SortFunc(all, func(x, y answer) int { return x.at.Compare(y.at) })
	var longest time.Duration
	var from, last time.Time
	for i, x := range all {
		// Two answered at once when, soon after one answered, another one did, and then the
		// first again: a move from one to the other is none.
		for j := i + 1; j < len(all) && all[j].at.Sub(x.at) < moment; j++ {
			again := slices.ContainsFunc(all[j:], func(z answer) bool {
				return z.mac == x.mac &&
					z.at.Sub(all[j].at) < moment
			})
			if all[j].mac == x.mac || !again {
				continue
			}
			if from.IsZero() || x.at.Sub(last) > moment {
				from = x.at
			}
			last = all[j].at
			longest = max(longest, last.Sub(from))
			break
		}
	}
	return longest
}

// count is how many answers were seen.
func (r *record) count(a netip.Addr) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.answers[a])
}

// since is how long after a moment a node first answered.
func (r *record) since(a netip.Addr, from time.Time, not string) (time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.answers[a] {
		if x.at.After(from) && x.mac != not {
			return x.at.Sub(from), nil
		}
	}
	return 0, fmt.Errorf("%s was answered by nobody but %s", a, not)
}

// The judge itself: a move is no time at which two answered, an overlap is.
func TestTheJudgeSeesTwoAtOnce(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	at := func(ms int, mac string) answer { return answer{time.UnixMilli(int64(ms)), mac} }
	r := &record{answers: map[netip.Addr][]answer{}}
	for i := range 40 {
		r.answers[a] = append(r.answers[a], at(50*i, "a"), at(2000+50*i, "b"))
	}
	if d := r.doubles(a); d != 0 {
		t.Errorf("a move counts as two at once for %s", d)
	}
	for i := range 30 {
		r.answers[a] = append(r.answers[a], at(2010+50*i, "a"))
	}
	if d := r.doubles(a); d < 1400*time.Millisecond || d > 1900*time.Millisecond {
		t.Errorf("1.5 s of two at once are seen as %s", d)
	}
	r.answers[a] = nil
	for _, line := range []string{
		"1764081000.250000 02:00:00:00:00:01 > 02:00:00:00:00:64, ethertype ARP (0x0806), length 60: Reply " +
			"192.0.2.1 is-at 02:00:00:00:00:01, length 46",
		"1764081000.250000 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, ethertype ARP (0x0806), length 60: Reply " +
			"192.0.2.1 is-at 02:00:00:00:00:01, length 46",
	} {
		r.note(line)
	}
	if len(r.answers[a]) != 1 || r.answers[a][0].mac != "02:00:00:00:00:01" {
		t.Errorf("two lines of tcpdump are read as %v", r.answers[a])
	}
}
