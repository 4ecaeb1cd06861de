package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Keys are certificates and authorities by key. Its methods may be called concurrently.
type Keys interface {
	// Authority returns the authorities of a key; nil if there are no valid ones.
	Authority(key string) *authority.Set
	// Pair returns the certificate of a key; nil for none.
	Pair(key string) *tls.Certificate
}

var (
	errNoCertificate = errors.New("the client sent no certificate, which is required")
	errMisdirected   = errors.New("the handshake named another host; no certificate for this one was requested")
	errSubject       = errors.New("the subject of the client's certificate is not allowed")
	errNoAuthority   = errors.New("the authorities for client certificates are missing or invalid")
)

// Fields that describe the client's certificate to endpoints.
const (
	fieldCert    = "ssl-client-cert"
	fieldVerify  = "ssl-client-verify"
	fieldSubject = "ssl-client-subject-dn"
	fieldIssuer  = "ssl-client-issuer-dn"
)

// uncertified answers clients without the certificate that the host requires: 400 and 403 like nginx, 421 if the
// handshake was for another name. name is that of the request's host.
func (x *exchange) uncertified(t *table.Table, name []byte) (answered bool) {
	own, other := t.ClientRules(name, &x.match)
	if own == nil {
		return false
	}
	for _, rule := range []*table.ClientRule{other, own} { // the fields describe the result of own
		if rule == nil {
			continue
		}
		if x.isAskedLater() {
			return false
		}
		if status, err := x.certify(t, rule, name); err != nil {
			x.opt.target = x.r.Target
			if len(rule.Page) > 0 && (status == 400 || status == 403) {
				x.rec.Err = err
				x.reply(302, message.Fields{{Name: location, Value: x.expand(nil, rule.Page, forPath)}})
				return true
			}
			x.fail(status, err)
			return true
		}
	}
	return false
}

// isAskedLater reports whether a plain request reaches no endpoint except for an ACME challenge: it is redirected to
// https, where the client is asked.
func (x *exchange) isAskedLater() bool {
	if x.r.Session != nil || x.r.TLS {
		return false
	}
	if p := x.match.Path; strings.HasPrefix(p.Path, schema.ChallengePrefix) &&
		(p.Options == nil || p.Options.PathPattern == "") {
		return true
	}
	o := x.match.Path.Options
	return o != nil && o.RedirectTLS != 0 && !x.secure()
}

// certify applies one rule. If the client is admitted, the request's fields describe its certificate, and no other.
func (x *exchange) certify(t *table.Table, rule *table.ClientRule, name []byte) (status int, err error) {
	if rule.Err != nil {
		return 503, rule.Err
	}
	if status, err := x.handshakeFits(t, rule, name); err != nil {
		return status, err
	}
	certs, verdict, err := x.verifyClient(rule)
	if err != nil {
		return 400, err
	}
	subject, issuer := "", ""
	if len(certs) > 0 {
		subject, issuer = authority.Name(certs[0].RawSubject), authority.Name(certs[0].RawIssuer)
	}
	if rule.Match != nil && !rule.Match.MatchString(subject) {
		return 403, errSubject
	}
	x.opt.certified = true
	cert := ""
	if rule.Pass && len(certs) > 0 {
		cert = url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw})))
	}
	for _, f := range [][2]string{{fieldCert, cert}, {fieldVerify, verdict}, {fieldSubject, subject},
		{fieldIssuer, issuer}} {
		x.takeOut(f[0])
		if f[1] != "" {
			x.r.Fields.Add(f[0], []byte(f[1]))
		}
	}
	return 0, nil
}

// handshakeFits refuses requests whose handshake was for another name: the client was not asked for this name's
// certificate (RFC 9110, 15.5.20). Without a name it was asked for that of the empty host.
func (x *exchange) handshakeFits(t *table.Table, rule *table.ClientRule, name []byte) (status int, err error) {
	s := x.r.Session
	if s == nil || rule.Verify == schema.VerifyOff {
		return 0, nil
	}
	asked := table.Name([]byte(s.ServerName), nil)
	if string(asked) == string(name) || len(asked) == 0 && t.IsRest(name) {
		return 0, nil
	}
	return 421, errMisdirected
}

// verifyClient verifies the client's certificate, once a minute per connection. verdict is nginx's $ssl_client_verify;
// the error explains why the client is refused.
func (x *exchange) verifyClient(rule *table.ClientRule) (certs []*x509.Certificate, verdict string, err error) {
	if s := x.r.Session; s != nil && rule.Verify != schema.VerifyOff {
		certs = s.Certificates
	}
	if len(certs) == 0 {
		if rule.Verify == schema.VerifyOn {
			return nil, "", errNoCertificate
		}
		return nil, "NONE", nil
	}
	var set *authority.Set
	if x.p.Keys != nil {
		set = x.p.Keys.Authority(rule.Authority)
	}
	if set == nil {
		return nil, "", errNoAuthority
	}
	type by struct {
		set    *authority.Set
		depth  int
		minute int64 // certificates and lists expire
	}
	now := time.Now()
	err = x.r.Session.Verify(by{set, rule.Depth, now.Unix() / 60}, func() error {
		return set.Verify(certs, authority.Options{Depth: rule.Depth, Usage: x509.ExtKeyUsageClientAuth, Now: now})
	})
	switch {
	case err == nil && now.After(certs[0].NotAfter):
		return nil, "", errors.New("the certificate of the client has expired")
	case err == nil:
		return certs, "SUCCESS", nil
	case rule.Verify == schema.VerifyNoCA && errors.Is(err, authority.ErrUnknown):
		return certs, "FAILED:unable to verify the first certificate", nil
	}
	return nil, "", fmt.Errorf("the certificate of the client: %w", err)
}
