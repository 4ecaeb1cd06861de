package authority

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"strings"
)

// shortNames are OpenSSL's, and so nginx's, names of attributes.
var shortNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU",
	"2.5.4.12": "title", "2.5.4.13": "description", "2.5.4.15": "businessCategory", "2.5.4.17": "postalCode",
	"2.5.4.20": "telephoneNumber", "2.5.4.41": "name", "2.5.4.42": "GN",
	"2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier", "2.5.4.65": "pseudonym",
	"2.5.4.97":             "organizationIdentifier",
	"1.2.840.113549.1.9.1": "emailAddress", "1.2.840.113549.1.9.2": "unstructuredName",
	"0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
}

// Name writes a distinguished name like nginx's $ssl_client_s_dn (RFC 2253): the last part first, bytes that are not
// printable ASCII as \XX. raw is RawSubject or RawIssuer.
func Name(raw []byte) string {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &rdns); err != nil || len(rest) > 0 {
		return ""
	}
	var b strings.Builder
	for i := len(rdns) - 1; i >= 0; i-- {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		for j, a := range rdns[i] {
			if j > 0 {
				b.WriteByte('+')
			}
			attribute(&b, a)
		}
	}
	return b.String()
}

func attribute(b *strings.Builder, a pkix.AttributeTypeAndValue) {
	oid := a.Type.String()
	name, known := shortNames[oid]
	text, isText := a.Value.(string)
	if !known || !isText {
		der, err := asn1.Marshal(a.Value)
		if err != nil {
			der = nil
		}
		if !known {
			name = oid
		}
		b.WriteString(name + "=#" + strings.ToUpper(hex.EncodeToString(der)))
		return
	}
	b.WriteString(name)
	b.WriteByte('=')
	escape(b, text)
}

func escape(b *strings.Builder, s string) {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		switch {
		case c < ' ' || c >= 0x7f:
			b.Write([]byte{'\\', digits[c>>4], digits[c&15]})
			continue
		case strings.IndexByte(`,+"\<>;`, c) >= 0, i == 0 && (c == '#' || c == ' '), i == len(s)-1 && c == ' ':
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
}
