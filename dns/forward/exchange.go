package forward

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
)

// tcpReserve is the time that is left if TCP fails: for further datagrams, and to answer with the result of UDP.
const tcpReserve = 300 * time.Millisecond

// tcpTrial is how long a server has to answer by TCP a query that depends on no zone.
const tcpTrial = 2 * time.Second

// largestUDP is requested by UDP if TCP is closed: larger answers arrive in fragments, which is better than no answer.
const largestUDP = 4096

// form is how a query is written for a server.
type form struct {
	edns  bool // with an OPT record
	mixed bool // with random letter case
}

// form returns the best one that the server is known to understand. later is the number of earlier unanswered tries for
// the query: while nothing is known about a server, later tries leave out what it may not support.
func (u *remote) form(q *dns.Msg, later int) form {
	now := u.now()
	f := form{edns: !u.lacks(schema.LackEDNS, now), mixed: u.mixes() && hasLetters(q.Question[0].Name)}
	if later > btoi(wire.DNSSECOK(q)) && !u.knowsEDNS(now) {
		f.edns = false
	}
	if later > 1 && !u.knowsLetters(zoneOf(q, q.Question[0].Name), now) {
		f.mixed = false
	}
	return f
}

// mixes reports whether names are written in random letter case for this server.
func (u *remote) mixes() bool {
	return !u.TLS && !u.plain.Load() && !u.lacks(schema.LackLetters, u.now())
}

// exchange sends the query once; and again in simpler forms, or by TCP, if the answer may be caused by the server's
// limitations.
func (u *remote) exchange(ctx context.Context, q *dns.Msg, later int) (*dns.Msg, error) {
	f := u.form(q, later)
	got, f, err := u.speak(ctx, f, q)
	if err != nil {
		return nil, err
	}
	if !f.mixed && u.mixes() && hasLetters(q.Question[0].Name) { // left out as a test
		if got, err = u.sure(ctx, f, q, got); err != nil {
			return nil, err
		}
		u.proveOfZone(schema.LackLetters, lackProofs)
	}
	if got, f = u.understood(ctx, f, q, got); got.Truncated && !u.TLS {
		got = u.whole(ctx, f, q, got)
	}
	if f.mixed && rank(got) == rankFound {
		u.heardLetters(q.Question[0].Name, u.now())
	}
	return got, nil
}

// Ranks of answers. An answer to a query in a better form counts more, unless the other one contains more.
const (
	rankFailure = iota // an error
	rankNoName
	rankNoData
	rankFound
)

func rank(m *dns.Msg) int {
	switch {
	case m.Rcode == dns.RcodeNameError:
		return rankNoName
	case m.Rcode != dns.RcodeSuccess:
		return rankFailure
	case len(m.Answer) == 0 && !m.Truncated:
		return rankNoData
	}
	return rankFound
}

// speak sends the query in a form, and in another one, which it returns, if the server does not keep the form.
func (u *remote) speak(ctx context.Context, f form, q *dns.Msg) (*dns.Msg, form, error) {
	got, err := u.put(ctx, u.network(), f, q, wire.MaxUDP)
	if errors.Is(err, errMalformed) {
		return u.malformed(ctx, f, q, got, err)
	}
	if errors.Is(err, errLetters) {
		return u.lettersLost(ctx, f, q, got)
	}
	alone := f.mixed || !u.mixes() || !hasLetters(q.Question[0].Name) // nothing else was left out
	if err == nil && !f.edns && alone && u.isSilent(u.now()) && !u.lacks(schema.LackEDNS, u.now()) {
		u.proveOfZone(schema.LackEDNS, lackProofs)
	}
	return got, f, err
}

// malformed handles a reply that cannot be parsed: the cause may be its OPT record, or truncation without the TC bit.
func (u *remote) malformed(ctx context.Context, f form, q, got *dns.Msg, why error) (*dns.Msg, form, error) {
	if f.edns {
		plain := form{mixed: f.mixed}
		again, err := u.put(ctx, u.network(), plain, q, wire.MaxUDP)
		if err == nil {
			u.proveOfZone(schema.LackEDNS, lackProofs)
			return again, plain, nil
		}
		if errors.Is(err, errLetters) {
			return u.lettersLost(ctx, plain, q, again)
		}
	}
	if u.TLS {
		return nil, f, why
	}
	if tcp, _, err := u.overTCP(ctx, f, q); err == nil {
		return tcp, f, nil
	}
	got.Rcode, got.Truncated, got.Answer, got.Ns, got.Extra = dns.RcodeSuccess, true, nil, nil, nil
	return got, f, nil // like a truncated one
}

// lettersLost handles a reply that is correct except for the letter case of the name: TCP, whose sequence numbers
// cannot be guessed, or further queries from other ports must confirm it.
func (u *remote) lettersLost(ctx context.Context, f form, q, got *dns.Msg) (*dns.Msg, form, error) {
	plain := form{edns: f.edns}
	if tcp, kept, err := u.overTCP(ctx, f, q); err == nil {
		if kept { // so the answer by UDP may be another sender's
			u.prove(schema.LackLetters, letterProofs, u.now())
			return tcp, f, nil
		}
		u.prove(schema.LackLetters, 1, u.now())
		return tcp, plain, nil
	}
	for range letterProofs - 1 {
		again, err := u.put(ctx, "udp", f, q, wire.MaxUDP)
		if err == nil {
			return again, f, nil
		}
		if !errors.Is(err, errLetters) || rank(again) != rank(got) {
			return nil, f, fmt.Errorf("%w, and repeated answers differ", errLetters)
		}
		got = again
	}
	u.prove(schema.LackLetters, 1, u.now())
	return got, plain, nil
}

// sure confirms an answer to a query in plain letters, which is easier to forge: by TCP, or by further queries from
// other ports. It returns the last answer.
func (u *remote) sure(ctx context.Context, f form, q, got *dns.Msg) (*dns.Msg, error) {
	if tcp, _, err := u.overTCP(ctx, f, q); err == nil {
		if rank(tcp) < rank(got) {
			return nil, errors.New("answers by TCP and UDP differ")
		}
		return tcp, nil
	}
	for range letterProofs - 1 {
		again, err := u.put(ctx, "udp", f, q, wire.MaxUDP)
		if err != nil {
			return nil, err
		}
		if rank(again) != rank(got) {
			return nil, errors.New("repeated answers differ")
		}
		got = again
	}
	return got, nil
}

// understood checks whether the form of the query causes a reply without content.
func (u *remote) understood(ctx context.Context, f form, q, got *dns.Msg) (*dns.Msg, form) {
	if !u.doubtful(f, q, got) {
		return got, f
	}
	p := form{edns: f.edns && rank(got) != rankFailure}
	plain, err := u.put(ctx, u.network(), p, q, wire.MaxUDP)
	if err != nil || rank(plain) <= rank(got) {
		if err == nil && rank(got) != rankFailure && len(got.Ns) > 0 {
			u.tryZone(zoneOf(got, q.Question[0].Name))
		}
		return got, f
	}
	if f.edns && !p.edns {
		w, better := form{mixed: f.mixed}, plain
		if f.mixed {
			better, w, err = u.speak(ctx, w, q)
		}
		if err == nil && rank(better) >= rank(plain) {
			u.proveOfZone(schema.LackEDNS, lackProofs)
			return better, w
		}
	}
	if plain, err = u.sure(ctx, p, q, plain); err != nil {
		return got, f
	}
	u.proveOfZone(schema.LackLetters, 1)
	if f.edns && !p.edns {
		p.edns = true
		if with, err := u.put(ctx, u.network(), p, q, wire.MaxUDP); err == nil && rank(with) >= rank(plain) {
			return with, p
		}
		p.edns = false
		u.proveOfZone(schema.LackEDNS, lackProofs)
	}
	return plain, p
}

// doubtful reports whether a simpler query may give more than this reply.
func (u *remote) doubtful(f form, q, got *dns.Msg) bool {
	now := u.now()
	letters := f.mixed && !u.knowsLetters(zoneOf(got, q.Question[0].Name), now)
	switch {
	case rank(got) == rankFound || !f.edns && !f.mixed:
		return false
	case rank(got) != rankFailure:
		return letters
	case got.Rcode == dns.RcodeFormatError || got.Rcode == dns.RcodeNotImplemented || got.Rcode == dns.RcodeBadVers:
		return true
	}
	return letters || f.edns && !u.knowsEDNS(now)
}

// tryZone checks in the background whether the server finds a zone by a name with capitals, so that not every missing
// name there must be queried twice.
func (u *remote) tryZone(zone string) {
	if !u.mixes() || !hasLetters(zone) || !u.trying.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer u.trying.Store(false)
		if now := u.now(); now.Sub(u.tried[zone]) < lackTCPFor || len(u.tried) >= knownNames {
			if len(u.tried) >= knownNames {
				clear(u.tried)
			}
			return
		}
		u.tried[zone] = u.now()
		ctx, cancel := context.WithTimeout(u.ctx, upstreamPatience)
		defer cancel()
		q := new(dns.Msg).SetQuestion(zone, dns.TypeSOA)
		if got, err := u.put(ctx, "udp", form{edns: !u.lacks(schema.LackEDNS, u.now()), mixed: true}, q,
			wire.MaxUDP); err == nil &&
			rank(got) == rankFound {
			u.heardLetters(zone, u.now())
		}
	}()
}

// whole returns the complete answer if it did not fit: by TCP, otherwise in a larger datagram, otherwise what arrived.
func (u *remote) whole(ctx context.Context, f form, q, got *dns.Msg) *dns.Msg {
	if tcp, _, err := u.overTCP(ctx, f, q); err == nil && rank(tcp) != rankFailure {
		return tcp
	}
	if !f.edns {
		return got
	}
	large, err := u.put(ctx, "udp", f, q, largestUDP)
	if err == nil && rank(large) == rankFound && (!large.Truncated || len(large.Answer) > len(got.Answer)) {
		return large
	}
	return got
}

// overTCP sends the query by TCP, unless that is known to be closed. kept reports whether the letter case was kept.
func (u *remote) overTCP(ctx context.Context, f form, q *dns.Msg) (got *dns.Msg, kept bool, err error) {
	if u.lacks(schema.LackTCP, u.now()) {
		return nil, false, errors.New("it does not serve TCP")
	}
	limit := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		limit, cancel = context.WithDeadline(ctx, end.Add(-tcpReserve))
		defer cancel()
	}
	got, err = u.put(limit, "tcp", f, q, wire.MaxUDP)
	kept = err == nil
	if errors.Is(err, errLetters) {
		err = nil
	}
	switch {
	case err == nil:
		u.disprove(schema.LackTCP)
	case ctx.Err() != nil:
	case errors.Is(err, errConnect):
		u.prove(schema.LackTCP, lackProofs, u.now())
	default:
		u.tryTCP()
	}
	return got, kept, err
}

// tryTCP checks in the background whether the server answers by TCP at all: that it left one query unanswered may be
// the fault of the servers of its zone, which a pod may own.
func (u *remote) tryTCP() {
	if !u.tryingTCP.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer u.tryingTCP.Store(false)
		ctx, cancel := context.WithTimeout(u.ctx, tcpTrial)
		defer cancel()
		_, err := u.put(ctx, "tcp", form{}, new(dns.Msg).SetQuestion(".", dns.TypeNS), wire.MaxUDP)
		switch {
		case err == nil: // also an error code
			u.disprove(schema.LackTCP)
		case u.ctx.Err() == nil:
			u.prove(schema.LackTCP, lackProofs, u.now())
		}
	}()
}

// proveOfZone counts a sign of a limitation that the servers of the queried zone may have caused. If the server has
// shown for another name that it lacks nothing, the sign counts nothing: a pod may own the zone, and all pods share the
// server.
func (u *remote) proveOfZone(l schema.Lack, needed int) {
	now := u.now()
	known := l == schema.LackEDNS && u.knowsEDNS(now) || l == schema.LackLetters && u.knowsLetters(".", now)
	if !known {
		u.prove(l, needed, now)
	}
}

func (u *remote) network() string {
	if u.TLS {
		return "tls"
	}
	return "udp"
}

// put sends one query in a form. The reply has the question as in q. With errLetters and errMalformed there is a reply,
// too.
func (u *remote) put(ctx context.Context, network string, f form, q *dns.Msg, size uint16) (*dns.Msg, error) {
	ask := q.Copy()
	ask.Id = dns.Id()
	ask.Extra = nil
	if f.edns {
		if network == "tls" {
			size = dns.MaxMsgSize
		}
		ask.SetEdns0(size, wire.DNSSECOK(q))
		u.sentEDNS(u.now())
	}
	if f.mixed {
		ask.Question[0].Name = mix(ask.Question[0].Name)
	}
	got, err := u.over(ctx, network, ask)
	if errors.Is(err, errLetters) && !f.mixed {
		err = nil
	}
	if got == nil {
		return nil, err
	}
	if f.edns {
		u.heardEDNS(err == nil && rank(got) != rankFailure, u.now())
	}
	unmix(got, ask.Question[0].Name, q.Question[0].Name)
	got.Question = q.Question
	return got, err
}

// hasLetters reports whether a name contains letters.
func hasLetters(name string) bool { return strings.ToLower(name) != strings.ToUpper(name) }
