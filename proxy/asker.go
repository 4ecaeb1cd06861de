package proxy

import (
	"context"
	"crypto/tls"
	"encoding/hex"
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

// Asking configures subrequests to authentication servers.
type Asking struct {
	// Dial connects to a server's address, from the address by which policies identify the proxy; nil for net.Dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resolve resolves the name of a server; nil for the node's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Own reports whether an address is a listening socket of this proxy, which is permitted: a server behind another
	// path of the same host. May be nil.
	Own func(netip.AddrPort) bool
}

// Bounds of one subrequest: addresses of a name that are tried, the time for each, and for a handshake.
const (
	maxAsked = 8
	askDial  = 5 * time.Second
	askTLS   = 10 * time.Second
)

// asker holds the connections to authentication servers, and those for copies. Its methods may be called concurrently.
type asker struct {
	once              sync.Once
	questions, copies transports
	how               Asking
}

// transports connect to servers by their names, with verified certificates, and to endpoints of backends, whose
// certificates are not verified, like those of other endpoints.
type transports struct{ byName, byEndpoint *http.Transport }

// permit returns why no connection to an address may be opened; nil if it may.
type permit func(netip.AddrPort) error

// askers are the transports of subrequests and of copies. They share no connection: copies are restricted more.
func (p *Proxy) askers() (questions, copies transports) {
	p.asker.once.Do(p.startAsker)
	return p.asker.questions, p.asker.copies
}

// SetReach replaces the policy for subrequests and copies. Idle connections are closed, because the new policy may
// forbid them.
func (p *Proxy) SetReach(r *reach.Policy) {
	p.reach.Store(r)
	questions, copies := p.askers()
	for _, t := range []*http.Transport{questions.byName, questions.byEndpoint, copies.byName, copies.byEndpoint} {
		t.CloseIdleConnections()
	}
}

// askedAt is the key of askedEndpoint in the context of a request.
type askedAt struct{}

// askedEndpoint is the destination of a request: an address, and the name for a handshake.
type askedEndpoint struct {
	addr netip.AddrPort
	name string
}

// toEndpoint directs the request to an endpoint of a backend. A transport indexes idle connections by the host of the
// URL, which a client may influence; backend and endpoint replace it, so that a connection serves no other backend, and
// no removed endpoint.
func toEndpoint(req *http.Request, b *upstream.Backend) (*http.Request, error) {
	e := b.Pick(upstream.RandomTwo, nil)
	if e == nil {
		return nil, fmt.Errorf("backend %q has no endpoint", b.Key)
	}
	to := askedEndpoint{e.Addr, req.URL.Hostname()}
	if req.Host == "" {
		req.Host = req.URL.Host
	}
	req = req.WithContext(context.WithValue(req.Context(), askedAt{}, to))
	u := *req.URL
	u.Host = hex.EncodeToString([]byte(b.Key+" "+e.Addr.String()+" "+to.name)) + ".endpoint:80"
	req.URL = &u
	return req, nil
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
	a.questions = p.transports(p.mayAsk, p.mayAsk)
	a.copies = p.transports(p.mayCopy, p.mayCopyInside)
}

func (p *Proxy) transports(byName, inside permit) (t transports) {
	t.byName = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.askName(ctx, network, addr, byName)
		},
		DisableCompression: true, MaxIdleConnsPerHost: 64, MaxIdleConns: 512, MaxConnsPerHost: 512,
		IdleConnTimeout: 50 * time.Second, TLSHandshakeTimeout: askTLS, MaxResponseHeaderBytes: 64 << 10,
	}
	t.byEndpoint = t.byName.Clone()
	t.byEndpoint.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return p.askEndpoint(ctx, network, inside)
	}
	t.byEndpoint.DialTLSContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := p.askEndpoint(ctx, network, inside)
		if err != nil {
			return nil, err
		}
		to, _ := ctx.Value(askedAt{}).(askedEndpoint)
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: to.name})
		ctx, cancel := context.WithTimeout(ctx, askTLS)
		defer cancel()
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return secure, nil
	}
	return t
}

// askName connects to the first address of a name that is permitted and answers.
func (p *Proxy) askName(ctx context.Context, network, addr string, may permit) (net.Conn, error) {
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
		conn, err := p.askAt(ctx, network, to, may)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%s: %w", host, errors.Join(append(errs, errors.New("no address answers"))...))
}

// addressesOf returns those of a name. A number that is not a strict address (RFC 6943, 3.1.1), such as 127.1 or
// 0x7f.0.0.1, has none: parsers disagree about it.
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

// askEndpoint connects to the endpoint that toEndpoint chose.
func (p *Proxy) askEndpoint(ctx context.Context, network string, may permit) (net.Conn, error) {
	to, ok := ctx.Value(askedAt{}).(askedEndpoint)
	if !ok {
		return nil, errors.New("no endpoint in the request")
	}
	return p.askAt(ctx, network, to.addr, may)
}

// askAt connects to an address if that is permitted. An address with a zone belongs to an interface of this node.
func (p *Proxy) askAt(ctx context.Context, network string, to netip.AddrPort, may permit) (net.Conn, error) {
	if err := may(to); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askDial)
	defer cancel()
	return p.asker.how.Dial(ctx, network, to.String())
}

func (p *Proxy) mayAsk(to netip.AddrPort) error {
	if own := p.asker.how.Own; own != nil && own(to) {
		return nil
	}
	return p.reach.Load().Check(to.Addr())
}

// mayCopyInside is for endpoints of the author's own Services. A copy must not come back to this proxy: sources that
// are admitted there may include the proxy's address.
func (p *Proxy) mayCopyInside(to netip.AddrPort) error {
	if own := p.asker.how.Own; own != nil && own(to) {
		return fmt.Errorf("%s is this proxy", to)
	}
	return p.reach.Load().Check(to.Addr())
}

// mayCopy refuses addresses inside of the cluster, by any name: a client chooses the copy's method and body, and the
// copy would pass no guard of the Ingress that leads there.
func (p *Proxy) mayCopy(to netip.AddrPort) error {
	if err := p.mayCopyInside(to); err != nil {
		return err
	}
	return p.reach.Load().CheckOutside(to.Addr(), p.Upstreams.Has(to))
}

// reachPolicy holds the current policy; before one is set it is the zero Policy.
type reachPolicy struct{ at atomic.Pointer[reach.Policy] }

// Load returns the policy.
func (r *reachPolicy) Load() *reach.Policy {
	if p := r.at.Load(); p != nil {
		return p
	}
	return strict
}

// Store replaces the policy.
func (r *reachPolicy) Store(p *reach.Policy) { r.at.Store(p) }

// strict refuses all addresses that a policy can refuse without knowing the cluster.
var strict = &reach.Policy{}
