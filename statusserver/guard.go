package statusserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Bounds of the port for the metrics of all processes, in addition to those of each port.
const (
	// MaxPerScraper connections are open at once of one IPv4 address or IPv6 /64.
	MaxPerScraper = 16
	// maxHandshakes and maxHandshakesEach begin in a second, of all sources and of one: strangers cost CPU time.
	maxHandshakes     = 1000
	maxHandshakesEach = 5
	// maxReviews and maxReviewsEach are the reviews of unknown tokens in a second, of all sources and of one.
	maxReviews     = 5
	maxReviewsEach = 2
	// maxVerdicts bounds the memory of tokens.
	maxVerdicts = 1024
	// allowedFor and refusedFor are how long the result of a review is used: so long a token works after it is revoked.
	allowedFor = time.Minute
	refusedFor = 10 * time.Second
	// scraperFor is how long a source whose token was allowed has a budget of reviews apart from strangers', and
	// maxScrapers how many sources have: its next token is unknown, too.
	scraperFor  = 24 * time.Hour
	maxScrapers = 64
)

// guard decides which requests of a port with Port.Token are answered.
type guard struct {
	// review asks the API server.
	review func(ctx context.Context, token string) int

	// unknown paces reviews for strangers, known those for sources with an allowed token before.
	unknown, known *pace
	mu             sync.Mutex
	// verdicts are by the hash of the token, which is not kept.
	verdicts map[[sha256.Size]byte]verdict
	// scrapers are sources whose token was allowed, and when.
	scrapers map[netip.Addr]time.Time
}

type verdict struct {
	status int
	at     time.Time
}

func newGuard(review func(context.Context, string) int) *guard {
	return &guard{review: review, unknown: newPace(maxReviews, maxReviewsEach),
		known:    newPace(maxReviews, maxReviewsEach),
		verdicts: map[[sha256.Size]byte]verdict{}, scrapers: map[netip.Addr]time.Time{}}
}

// tokens are those of RFC 6750, section 2.1.
var tokens = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// check returns the status of the response: 200 serves the request.
func (g *guard) check(q *http.Request) int {
	scheme, token, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || len(token) > maxToken || !tokens.MatchString(token) {
		return http.StatusUnauthorized
	}
	key := sha256.Sum256([]byte(token))
	old, ok := g.verdict(key)
	if ok && time.Since(old.at) < lasts(old.status) {
		return old.status
	}
	// A token that was allowed is reviewed again whatever strangers send.
	source := sourceOf(q.RemoteAddr)
	if old.status != http.StatusOK && !g.paceOf(source).allow(source) {
		return http.StatusTooManyRequests
	}
	ctx, cancel := context.WithTimeout(q.Context(), answerTimeout)
	defer cancel()
	status := g.review(ctx, token)
	if status != http.StatusServiceUnavailable {
		g.remember(key, status)
	}
	if status == http.StatusOK {
		g.trust(source)
	}
	return status
}

// paceOf is the budget of a source: strangers cannot use up that of a scraper whose token is renewed.
func (g *guard) paceOf(source netip.Addr) *pace {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at, ok := g.scrapers[source]; ok && time.Since(at) < scraperFor {
		return g.known
	}
	return g.unknown
}

// trust notes a source whose token was allowed, in place of the one that was longest without.
func (g *guard) trust(source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.scrapers[source]; !ok && len(g.scrapers) >= maxScrapers {
		oldest := source
		for a, at := range g.scrapers {
			if then, ok := g.scrapers[oldest]; !ok || at.Before(then) {
				oldest = a
			}
		}
		delete(g.scrapers, oldest)
	}
	g.scrapers[source] = time.Now()
}

func lasts(status int) time.Duration {
	if status == http.StatusOK {
		return allowedFor
	}
	return refusedFor
}

func (g *guard) verdict(key [sha256.Size]byte) (verdict, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.verdicts[key]
	return v, ok
}

func (g *guard) remember(key [sha256.Size]byte, status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.verdicts) >= maxVerdicts {
		for k, v := range g.verdicts {
			if v.status != http.StatusOK || time.Since(v.at) > allowedFor {
				delete(g.verdicts, k)
			}
		}
	}
	if len(g.verdicts) < maxVerdicts {
		g.verdicts[key] = verdict{status, time.Now()}
	}
}

// certified serves TLS by a certificate that signs itself, as the kubelet does without one: it keeps tokens from who
// listens, and not from who answers in this node's place.
func certified(l net.Listener) (net.Listener, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()),
		Subject: pkix.Name{CommonName: "wayleave"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	handshakes := newPace(maxHandshakes, maxHandshakesEach)
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if !handshakes.allow(sourceOf(h.Conn.RemoteAddr().String())) {
				return nil, errors.New("too many handshakes")
			}
			return nil, nil
		}}), nil
}
