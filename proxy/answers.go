package proxy

import (
	"crypto/sha256"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// serverAnswer is the part of an authentication server's answer that is used.
type serverAnswer struct {
	status     int
	fields     http.Header // fields in AuthURL.Headers
	cookies    []string
	challenges []string
}

// verdictOf returns the server's answer to the request, or a cached one if the path allows that.
func (x *exchange) verdictOf(a *schema.AuthURL, ready *table.Ready) (serverAnswer, error) {
	key, cached := x.answerKey(a, ready)
	if cached {
		if v, ok := x.p.answers.get(key, x.start); ok {
			return v, nil
		}
	}
	resp, err := x.question(a, ready)
	if err != nil {
		return serverAnswer{}, err
	}
	v := readAnswer(a, resp)
	if cached {
		if d := lifetime(a.Cache, resp); d > 0 && v.size() <= maxAnswer {
			x.p.answers.put(key, v, x.start.Add(d))
		}
	}
	return v, nil
}

func readAnswer(a *schema.AuthURL, resp *http.Response) serverAnswer {
	v := serverAnswer{status: resp.StatusCode, fields: http.Header{}}
	for _, name := range a.Headers {
		if list := slices.DeleteFunc(slices.Clone(resp.Header.Values(name)), isUnclean); len(list) > 0 {
			v.fields[http.CanonicalHeaderKey(name)] = list
		}
	}
	if v.status < 300 || v.status == 401 { // a session begins or ends
		v.cookies = slices.DeleteFunc(slices.Clone(resp.Header["Set-Cookie"]), isUnclean)
	}
	if v.status == 401 {
		v.challenges = slices.DeleteFunc(slices.Clone(resp.Header["Www-Authenticate"]), isUnclean)
	}
	return v
}

func isUnclean(v string) bool { return !clean(v) }

func (v *serverAnswer) size() (n int) {
	for _, list := range v.fields {
		for _, s := range list {
			n += len(s)
		}
	}
	for _, s := range v.challenges {
		n += len(s)
	}
	return n
}

// lifetime returns how long an answer may be cached; 0 for not at all. As in nginx the server can forbid it, and an
// answer that sets a cookie belongs to one client. A shorter time from the server applies.
func lifetime(list []schema.CacheValid, resp *http.Response) time.Duration {
	h := resp.Header
	if h["Set-Cookie"] != nil || h["Vary"] != nil {
		return 0
	}
	i := slices.IndexFunc(list, func(c schema.CacheValid) bool {
		return len(c.Statuses) == 0 || slices.Contains(c.Statuses, resp.StatusCode)
	})
	if i < 0 {
		return 0
	}
	d := list[i].For
	for _, line := range h["Cache-Control"] {
		for part := range strings.SplitSeq(strings.ToLower(line), ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch name {
			case "no-cache", "no-store", "private":
				return 0
			case "max-age", "s-maxage":
				n, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32)
				if err != nil {
					return 0
				}
				d = min(d, time.Duration(n)*time.Second)
			}
		}
	}
	if t := h.Get("Expires"); t != "" {
		until, err := http.ParseTime(t)
		if err != nil {
			return 0
		}
		d = min(d, time.Until(until))
	}
	return d
}

// Bounds of the cache: entries, and bytes of each.
const (
	maxAnswers = 4096
	maxAnswer  = 4 << 10
	// maxAnswerKey is the longest key.
	maxAnswerKey = 16 << 10
)

type answerKey [sha256.Size]byte

// answers caches answers of authentication servers, by a hash of the server, the path, and the path's key for the
// request. The zero value is ready.
type answers struct {
	mu   sync.Mutex
	have map[answerKey]remembered
}

type remembered struct {
	serverAnswer
	until time.Time
}

// answerKey returns the key of a request. ok is false if its answer must not be cached: all clients would share a key
// without any value of the request.
func (x *exchange) answerKey(a *schema.AuthURL, ready *table.Ready) (key answerKey, ok bool) {
	if len(ready.Extras.CacheKey) == 0 {
		return key, false
	}
	said, all := false, []byte(nil)
	for _, p := range ready.Extras.CacheKey {
		from := len(all)
		all = x.everyValue(all, p)
		said = said || p.Kind != table.Text && len(all) > from
		all = append(all, 0) // separates the parts, so that keys are equal only if all parts are
	}
	if !said || len(all) > maxAnswerKey {
		return key, false
	}
	h := sha256.New()
	for _, s := range []string{x.match.Host.Name, string(x.hostName()), x.match.Path.Source, x.match.Path.Path, a.URL,
		a.Backend, a.Method, strings.Join(a.Headers, ",")} {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0})
	}
	_, _ = h.Write(all)
	return answerKey(h.Sum(nil)), true
}

// everyValue is expand for a key: if a field is repeated, all values count, because servers differ in which one they
// read.
func (x *exchange) everyValue(to []byte, p table.Part) []byte {
	if p.Kind != table.HeaderField || p.Name == "host" {
		return x.expand(to, table.Template{p}, asItIs)
	}
	for _, f := range x.r.Fields {
		if sameName(f.Name, p.Name) && len(f.Value) > 0 {
			to = append(append(to, f.Value...), '\n') // not allowed in values
		}
	}
	return to
}

func (c *answers) get(k answerKey, now time.Time) (serverAnswer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.have[k]
	if ok && !now.Before(e.until) {
		delete(c.have, k)
		return serverAnswer{}, false
	}
	return e.serverAnswer, ok
}

func (c *answers) put(k answerKey, v serverAnswer, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.have == nil {
		c.have = map[answerKey]remembered{}
	}
	for old := range c.have {
		if len(c.have) < maxAnswers {
			break
		}
		delete(c.have, old)
	}
	c.have[k] = remembered{v, until}
}
