package model

import "testing"

func TestParseNameserver(t *testing.T) {
	for in, want := range map[string]string{
		"9.9.9.9": "9.9.9.9:53", "9.9.9.9:5353": "9.9.9.9:5353", "2620:fe::fe": "[2620:fe::fe]:53",
		"[2620:fe::fe]:5353": "[2620:fe::fe]:5353",
		"tls://9.9.9.9":      "tls://9.9.9.9:853", "tls://9.9.9.9@dns.quad9.net": "tls://9.9.9.9:853@dns.quad9.net",
		"tls://[2620:fe::fe]:8853@dns.quad9.net": "tls://[2620:fe::fe]:8853@dns.quad9.net",
		"tls://[2620:fe::fe]@dns.quad9.net":      "tls://[2620:fe::fe]:853@dns.quad9.net",
	} {
		n, err := ParseNameserver(in)
		if err != nil || n.String() != want {
			t.Errorf("%s is %s, %v, want %s", in, n, err, want)
		}
		var back Nameserver
		if err := back.UnmarshalText([]byte(n.String())); err != nil || back != n {
			t.Errorf("%s is read as %+v, %v", n, back, err)
		}
	}
	for _, in := range []string{"", "dns.example", "9.9.9.9@dns.quad9.net", "9.9.9.9:0", "tls://9.9.9.9@",
		"https://9.9.9.9", "9.9.9.9:53x"} {
		if n, err := ParseNameserver(in); err == nil {
			t.Errorf("%q was read as %s", in, n)
		}
	}
}
