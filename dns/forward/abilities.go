package forward

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
)

// How limitations of servers are detected and remembered.
const (
	// lackFor is how long EDNS0 and random letter case are not used, lackTCPFor the same for TCP: after that they are
	// tried again.
	lackFor    = time.Hour
	lackTCPFor = 10 * time.Minute
	// lackProofs signs are needed if a single answer may have another cause.
	lackProofs = 2
	// letterProofs queries, each from a port of its own, must agree if TCP is closed: only then an answer counts that
	// does not keep the letters.
	letterProofs = 3
	// ednsSilence is how long queries with EDNS0 are unanswered before that counts as a sign.
	ednsSilence = hedgeAfter * 4 / 5
	// knownNames are kept per server: names for which random letter case brought an answer.
	knownNames = 2048
)

// abilities is what is known about a server. The zero value knows nothing. Safe for concurrent use.
type abilities struct {
	mu     sync.Mutex
	until  [schema.LackKinds]time.Time // until when a limitation is assumed
	proofs [schema.LackKinds]int
	edns   time.Time // until when EDNS0 is known to work
	silent time.Time // when the first unanswered query with EDNS0 was sent
	names  map[string]time.Time
}

// lacks reports whether a limitation is proved, and not too long ago.
func (a *abilities) lacks(l schema.Lack, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.until[l])
}

// prove counts a sign of a limitation, which is assumed after the given number of signs.
func (a *abilities) prove(l schema.Lack, needed int, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.proofs[l]++; a.proofs[l] < needed {
		return
	}
	d := lackFor
	if l == schema.LackTCP {
		d = lackTCPFor
	}
	a.until[l] = now.Add(d)
}

// disprove removes a limitation.
func (a *abilities) disprove(l schema.Lack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proofs[l], a.until[l] = 0, time.Time{}
}

// sentEDNS records a query with EDNS0.
func (a *abilities) sentEDNS(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent.IsZero() {
		a.silent = now
	}
}

// heardEDNS records an answer to a query with EDNS0; understood means that it is not an error.
func (a *abilities) heardEDNS(understood bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = time.Time{}
	if understood {
		a.edns = now.Add(lackFor)
		a.proofs[schema.LackEDNS], a.until[schema.LackEDNS] = 0, time.Time{}
	}
}

// isSilent reports whether queries with EDNS0 have been unanswered for a while.
func (a *abilities) isSilent(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.silent.IsZero() && now.Sub(a.silent) >= ednsSilence
}

func (a *abilities) knowsEDNS(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.edns)
}

// heardLetters records that the server found a name with capitals. It then also finds the zones above.
func (a *abilities) heardLetters(name string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names) > knownNames || a.names == nil {
		a.names = map[string]time.Time{}
	}
	for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
		a.names[name[at:]] = now.Add(lackFor)
	}
	a.names["."] = now.Add(lackFor)
	a.proofs[schema.LackLetters] = 0
}

// knowsLetters reports whether the server has found a name of the zone with capitals.
func (a *abilities) knowsLetters(zone string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.names[zone])
}

// zoneOf returns the zone of a reply to a question for name, as far as known: by its SOA, otherwise the name.
func zoneOf(got *dns.Msg, name string) string {
	for _, rr := range got.Ns {
		if owner := strings.ToLower(rr.Header().Name); rr.Header().Rrtype == dns.TypeSOA &&
			dns.IsSubDomain(owner, name) {
			return owner
		}
	}
	if at, end := dns.NextLabel(name, 0); !end {
		return name[at:]
	}
	return "."
}
