package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Forwarding bounds.
const (
	// upstreamPatience is for one try at one upstream; clients wait 5 s in all.
	upstreamPatience = 1500 * time.Millisecond
	// upstreamQueries are under way at once at the most; more get SERVFAIL, so
	// that a dead upstream cannot eat the memory.
	upstreamQueries = 4096
)

// Forwarder asks upstream servers. Safe for concurrent use.
type Forwarder struct {
	upstreams atomic.Pointer[[]netip.AddrPort]
	slots     chan struct{}
	// failed counts tries that brought nothing.
	failed func()
}

// NewForwarder makes a Forwarder without upstreams; failed may be nil.
func NewForwarder(failed func()) *Forwarder {
	if failed == nil {
		failed = func() {}
	}
	return &Forwarder{slots: make(chan struct{}, upstreamQueries), failed: failed}
}

// Set replaces the upstreams, which are tried in this order.
func (f *Forwarder) Set(upstreams []netip.AddrPort) { f.upstreams.Store(&upstreams) }

// Forward resolves a query upstream.
func (f *Forwarder) Forward(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	list := f.upstreams.Load()
	if list == nil || len(*list) == 0 {
		return nil, errors.New("no upstream server is known")
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errors.New("too many queries are waiting for upstream servers")
	}
	ask := new(dns.Msg)
	ask.Id = dns.Id()
	ask.RecursionDesired = true
	ask.CheckingDisabled = q.CheckingDisabled
	ask.Question = q.Question
	ask.SetEdns0(maxUDP, false)
	if opt := q.IsEdns0(); opt != nil {
		ask.IsEdns0().SetDo(opt.Do())
	}
	var errs []error
	for _, upstream := range *list {
		got, err := exchange(ctx, ask, upstream)
		if err == nil {
			note(ctx, "upstream "+upstream.String())
			return got, nil
		}
		f.failed()
		errs = append(errs, fmt.Errorf("upstream %s: %w", upstream, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// exchange asks one upstream, by TCP when the answer does not fit a datagram.
func exchange(ctx context.Context, ask *dns.Msg, upstream netip.AddrPort) (*dns.Msg, error) {
	client := dns.Client{Net: "udp", Timeout: upstreamPatience, UDPSize: maxUDP}
	got, _, err := client.ExchangeContext(ctx, ask, upstream.String())
	if err == nil && got.Truncated {
		client.Net = "tcp"
		got, _, err = client.ExchangeContext(ctx, ask, upstream.String())
	}
	if err != nil {
		return nil, err
	}
	if len(got.Question) != 1 || !strings.EqualFold(got.Question[0].Name, ask.Question[0].Name) || got.Question[0].Qtype != ask.Question[0].Qtype {
		return nil, errors.New("it answered another question")
	}
	if got.Rcode == dns.RcodeServerFailure || got.Rcode == dns.RcodeRefused {
		return nil, fmt.Errorf("it answered %s", dns.RcodeToString[got.Rcode])
	}
	return got, nil
}

// Search reads the search list of a resolv.conf: the last line of that name counts.
func Search(file string) ([]string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("search list: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "search" {
			out = nil
			for _, s := range f[1:] {
				if s = strings.TrimSuffix(s, "."); s != "" {
					out = append(out, s)
				}
			}
		}
	}
	return out, nil
}

// Upstreams reads the name servers of a resolv.conf. own are addresses of ours,
// which are left out and named in the error: a query would run in circles.
func Upstreams(file string, own []netip.Addr) ([]netip.AddrPort, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("upstream servers: %w", err)
	}
	var out []netip.AddrPort
	var errs []error
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: nameserver: %w", file, err))
			continue
		}
		if contains(own, a) {
			errs = append(errs, fmt.Errorf("%s: nameserver %s is the cluster DNS itself and is left out: queries would run in circles", file, a))
			continue
		}
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	return out, errors.Join(errs...)
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}
