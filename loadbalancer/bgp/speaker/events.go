package speaker

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"golang.org/x/time/rate"
)

const (
	// maxFailures bounds the peers whose last failure is remembered.
	maxFailures = 4096
	// logsPerSecond bounds the log lines of the library, which peers cause.
	logsPerSecond = 2
)

// failure is the last failure of a peer's session.
type failure struct {
	text string
	at   time.Time
}

// events is the log of the library. It is where the library says why a session failed, and which strangers connected.
type events struct {
	shared *sharedEvents
	// peer is that of the lines.
	peer netip.Addr
}

type sharedEvents struct {
	log     *slog.Logger
	limit   *rate.Limiter
	poke    func()
	refused atomic.Uint64

	mu       sync.Mutex
	failures map[netip.Addr]failure
}

func newEvents(log *slog.Logger, poke func()) *events {
	return &events{shared: &sharedEvents{log: log, limit: rate.NewLimiter(logsPerSecond, 20), poke: poke,
		failures: map[netip.Addr]failure{}}}
}

// Enabled implements slog.Handler. Failed attempts to connect are lines of the level debug.
func (e *events) Enabled(context.Context, slog.Level) bool { return true }

// WithGroup implements slog.Handler.
func (e *events) WithGroup(string) slog.Handler { return e }

// WithAttrs implements slog.Handler.
func (e *events) WithAttrs(list []slog.Attr) slog.Handler {
	out := *e
	for _, a := range list {
		out.note(a)
	}
	return &out
}

func (e *events) note(a slog.Attr) {
	if a.Key == "Key" {
		if addr, err := netip.ParseAddr(a.Value.String()); err == nil {
			e.peer = addr
		}
	}
}

// Handle implements slog.Handler.
func (e *events) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo && r.Message != noConnection && r.Message != changed && r.Message != broken {
		return nil // many, for each message of a peer
	}
	line := *e
	attrs := map[string]slog.Value{}
	r.Attrs(func(a slog.Attr) bool {
		line.note(a)
		attrs[a.Key] = a.Value
		return true
	})
	s := e.shared
	if r.Message == stranger {
		s.refused.Add(1)
		s.poke()
		return nil
	}
	if text := explain(r.Message, attrs); text != "" {
		s.fail(line.peer, text)
	}
	if r.Level >= slog.LevelWarn && r.Message != second && s.limit.Allow() {
		detail := ""
		if v, ok := attrs["Error"]; ok {
			detail = v.String()
		}
		s.log.LogAttrs(ctx, r.Level, r.Message, slog.String("peer", line.peer.String()), slog.String("detail", detail))
	}
	return nil
}

// Lines of the library.
const (
	stranger     = "Can't find configuration for a new passive connection"
	sent         = "sent notification"
	got          = "received notification"
	noConnection = "failed to connect"
	expired      = "hold timer expired"
	badHeader    = "Session will be reset due to malformed BGP Header"
	badMessage   = "Session will be reset due to malformed BGP message"
	badUpdate    = "Session will be reset due to malformed BGP update message"
	withdrawn    = "the received Update message was treated as withdraw"
	tooMany      = "Administrative shutdown(Prefix limit reached)"
	down         = "Peer Down"
	changed      = "state changed"
	broken       = "outgoing connection IO error"
	// second is a connection of a peer that has one, or had a session a moment ago.
	second = "Closed an accepted connection"
)

// Beginnings of the reasons of the library for a change of state.
const (
	reasonGot  = "notification-received "
	reasonSent = "notification-sent "
)

// Who ended a session.
const (
	ours   = "this node ended the session: "
	theirs = "the peer ended the session: "
)

// explain says which side saw what, or nothing.
func explain(message string, attrs map[string]slog.Value) string {
	detail := attrs["Error"].String()
	code := func() string {
		c, ok := attrs["Code"]
		sub := attrs["Subcode"]
		if !ok {
			return "an unknown error"
		}
		return packet.NewNotificationErrorCode(uint8(c.Int64()), uint8(sub.Int64())).String()
	}
	// Attempts to connect have the reason in another field.
	for _, key := range []string{"reason", "Reason"} {
		if v, ok := attrs[key]; ok {
			if text, ok := strings.CutPrefix(v.String(), reasonGot); ok {
				return theirs + text
			}
			if text, ok := strings.CutPrefix(v.String(), reasonSent); ok {
				return ours + text
			}
		}
	}
	switch message {
	case changed:
		// The library does not say which notification a peer answers an OPEN with.
		reason, old := attrs["reason"].String(), attrs["old"].String()
		if (reason == "invalid-msg" || reason == "read-failed") && strings.Contains(old, "OPEN") {
			return theirs + "it refused what this node says of itself (ASN, router id, options); its log says why"
		}
	case sent:
		return ours + code()
	case got:
		return theirs + code()
	case noConnection:
		return "no connection: " + detail
	case expired:
		return "the peer was silent for the hold time"
	case badHeader, badMessage, badUpdate:
		return "the peer sent a malformed message: " + detail
	case withdrawn:
		return "the peer sent a malformed update, which counts as a withdrawal (RFC 7606): " + detail
	case tooMany:
		return "the peer sent more prefixes than are allowed"
	case down:
		switch reason := attrs["Reason"].String(); reason {
		case "read-failed", "write-failed", "graceful-restart":
			return "the connection was lost"
		}
	}
	return ""
}

// final says whether a failure explains those that follow within a moment, such as the loss of the connection.
func (f failure) final(now time.Time) bool {
	return now.Sub(f.at) < time.Second
}

func (s *sharedEvents) fail(peer netip.Addr, text string) {
	now := time.Now()
	s.mu.Lock()
	have, ok := s.failures[peer]
	if (ok || len(s.failures) < maxFailures) && !have.final(now) {
		if len(text) > maxText {
			text = text[:maxText]
		}
		s.failures[peer] = failure{text, now}
	}
	s.mu.Unlock()
	s.poke()
}

// maxText bounds what a peer can have reported, in bytes.
const maxText = 300

func (e *events) failure(peer netip.Addr) failure {
	e.shared.mu.Lock()
	defer e.shared.mu.Unlock()
	return e.shared.failures[peer]
}

func (e *events) refused() uint64 { return e.shared.refused.Load() }

// forget drops what is known of peers that are not wanted.
func (e *events) forget(keep func(netip.Addr) bool) {
	e.shared.mu.Lock()
	defer e.shared.mu.Unlock()
	for a := range e.shared.failures {
		if !keep(a) {
			delete(e.shared.failures, a)
		}
	}
}

var _ slog.Handler = (*events)(nil)
