package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/upstream"
)

// Asking is how questions to authentication servers leave the proxy.
type Asking struct {
	// Dial connects to an address of a server, from the address by which policies know the
	// proxy; nil is net.Dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resolve looks the name of a server up; nil is the node's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Own says whether an address is a listening socket of this proxy, which may be asked: a
	// server behind another path of the same host. May be nil.
	Own func(netip.AddrPort) bool
}

// Bounds of one question: addresses of a name that are tried, and the time for each.
const (
	maxAsked = 8
	askDial  = 5 * time.Second
)

// askedBackend is the key of a question's backend in its context.
type askedBackend struct{}

// asker has the connections to authentication servers. Its methods may be called
// concurrently.
type asker struct {
	once              sync.Once
	byName, byBackend *http.Transport
	how               Asking
}

// public asks servers by their names, whose certificates must be good.
func (p *Proxy) public() *http.Transport {
	p.asker.once.Do(p.startAsker)
	return p.asker.byName
}

// cluster asks endpoints of a backend. Their certificates are not checked, as those of
// other endpoints are not.
func (p *Proxy) cluster() *http.Transport {
	p.asker.once.Do(p.startAsker)
	return p.asker.byBackend
}

// SetReach says where questions may go from now on. Connections that are idle are closed:
// they may lead where none may be opened any more.
func (p *Proxy) SetReach(r *reach.Policy) {
	p.reach.Store(r)
	p.public().CloseIdleConnections()
	p.cluster().CloseIdleConnections()
}

func (p *Proxy) startAsker() {
	a := &p.asker
	if a.how = p.Asking; a.how.Dial == nil {
		a.how.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	if a.how.Resolve == nil {
		a.how.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	a.byName = &http.Transport{
		DialContext: p.askName, DisableCompression: true, MaxIdleConnsPerHost: 64, MaxIdleConns: 512, MaxConnsPerHost: 512,
		IdleConnTimeout: 50 * time.Second, TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	a.byBackend = a.byName.Clone()
	a.byBackend.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	a.byBackend.DialContext = p.askEndpoint
}

// askName connects to the first address of a name that may be asked and answers.
func (p *Proxy) askName(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	list, err := p.addressesOf(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range list[:min(len(list), maxAsked)] {
		to, err := netip.ParseAddrPort(net.JoinHostPort(a.Unmap().String(), port))
		if err != nil {
			return nil, err
		}
		conn, err := p.askAt(ctx, network, to)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%s: %w", host, errors.Join(append(errs, errors.New("no address answers"))...))
}

// addressesOf are those of a name. A number that is not an address as RFC 6943, 3.1.1 has
// it strictly, as 127.1 or 0x7f.0.0.1, is none: readers disagree about it.
func (p *Proxy) addressesOf(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	name := strings.TrimSuffix(host, ".")
	if last := name[strings.LastIndexByte(name, '.')+1:]; last == "" || '0' <= last[0] && last[0] <= '9' {
		return nil, fmt.Errorf("%q is neither a name nor an address", host)
	}
	list, err := p.asker.how.Resolve(ctx, host)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s has no address", host)
	}
	return list, err
}

// askEndpoint connects to an endpoint of the question's backend.
func (p *Proxy) askEndpoint(ctx context.Context, network, addr string) (net.Conn, error) {
	b, ok := ctx.Value(askedBackend{}).(*upstream.Backend)
	if !ok {
		return nil, errors.New("no backend in the request")
	}
	e := b.Pick(upstream.RandomTwo, nil)
	if e == nil {
		return nil, fmt.Errorf("%s: no endpoint", addr)
	}
	return p.askAt(ctx, network, e.Addr)
}

// askAt connects to an address if that may be asked. An address with a zone is one of a link
// of this node.
func (p *Proxy) askAt(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if own := p.asker.how.Own; own == nil || !own(to) {
		if err := p.reach.Load().Check(to.Addr()); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askDial)
	defer cancel()
	return p.asker.how.Dial(ctx, network, to.String())
}

// reachPolicy is the policy in force; before one is set it is the zero one.
type reachPolicy struct{ at atomic.Pointer[reach.Policy] }

// Load returns the policy.
func (r *reachPolicy) Load() *reach.Policy {
	if p := r.at.Load(); p != nil {
		return p
	}
	return strict
}

// Store replaces it.
func (r *reachPolicy) Store(p *reach.Policy) { r.at.Store(p) }

// strict refuses all that a policy can refuse without knowing the cluster.
var strict = &reach.Policy{}
