package forward

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
)

// How a lack is proved and remembered.
const (
	// lackFor is how long EDNS0 and letters of random case are left out, and lackTCPFor is TCP: after
	// that the server is tried anew.
	lackFor    = time.Hour
	lackTCPFor = 10 * time.Minute
	// lackProofs are needed where a single answer may have come of something else.
	lackProofs = 2
	// letterProofs queries, each from a port of its own, have to agree where TCP is closed: only then an
	// answer counts that has not kept the letters.
	letterProofs = 3
	// ednsSilence is how long a query with EDNS0 has no answer before that counts as a sign.
	ednsSilence = hedgeAfter * 4 / 5
	// knownNames are kept for a server: names for which letters of random case brought an answer.
	knownNames = 2048
)

// abilities are what is known of a server. The zero value knows nothing. Safe for concurrent use.
type abilities struct {
	mu     sync.Mutex
	until  [schema.LackKinds]time.Time // a lack is believed
	proofs [schema.LackKinds]int
	edns   time.Time // until then it is known that queries with EDNS0 are answered
	silent time.Time // when the first of the queries with EDNS0 was sent that have no answer yet
	names  map[string]time.Time
}

// lacks says whether a lack is proved, and not too long ago.
func (a *abilities) lacks(l schema.Lack, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.until[l])
}

// prove counts a sign of a lack, which is believed after so many.
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

// disprove ends a lack.
func (a *abilities) disprove(l schema.Lack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proofs[l], a.until[l] = 0, time.Time{}
}

// sentEDNS notes a query with EDNS0.
func (a *abilities) sentEDNS(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent.IsZero() {
		a.silent = now
	}
}

// heardEDNS notes an answer to a query with EDNS0; understood says that it is no error.
func (a *abilities) heardEDNS(understood bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = time.Time{}
	if understood {
		a.edns = now.Add(lackFor)
		a.proofs[schema.LackEDNS], a.until[schema.LackEDNS] = 0, time.Time{}
	}
}

// isSilent says whether queries with EDNS0 have got nothing for a while.
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

// heardLetters notes that the server found a name that was written with capitals. So it finds the zones above.
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

// knowsLetters says whether the server has found a name of the zone that was written with capitals.
func (a *abilities) knowsLetters(zone string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.names[zone])
}

// zoneOf is the zone that a reply to a question for name is of, as far as it tells: by its SOA, else by the name.
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
