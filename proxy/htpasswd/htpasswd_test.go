package htpasswd

import (
	"strings"
	"testing"
)

const long = "a longer password, of more than sixteen bytes and of sixty-four ones"

// The sums were written by openssl passwd, openssl sha1 and libcrypt.
func TestHashesOfOtherPrograms(t *testing.T) {
	for _, c := range []struct{ hash, password string }{
		{"$apr1$saltsalt$a8ml/vK5HEjiZ5oypDWA7/", ""},
		{"$apr1$saltsalt$OEnK0QmmvoDzFw9W2yFYT/", "a"},
		{"$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0", "secret"},
		{"$apr1$saltsalt$NQm3opAd3..HGeliDzB8T/", long},
		{"$apr1$x$w4uib4IYiggnfkr8QNqPe0", "hi"},
		{"$1$saltsalt$5Jhcit4zN9UlGiA0txPkO0", ""},
		{"$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "secret"},
		{"$1$saltsalt$kKjF3PccJkWZi0Yk1QmXJ/", long},
		{"$5$saltsalt$Mtm6KOxb.PwaKES1sp80SDYOu1T0RdwsBVakhLiqA64", "a"},
		{"$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA", "secret"},
		{"$5$saltsalt$qlz6wbROu7fy3/odevI9rPxq/U5173UMRh2Mij7r3SC", long},
		{"$5$rounds=1001$s$3.wgwl9IdYXSYubycBl4XyiGDDmYoqRCtKJstQTg6V2", "a"},
		{"$6$saltsalt$8gzUrz5S2/0AfMGfui2LllQQ2fwu.jYnAVGef2XY7gAo0jNFrzHsTq9lMr2ze7QvIJxr4BYOKdgDpx4Va9Atb1", "a"},
		{"$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
			"secret"},
		{"$6$saltsalt$ax2XgFGPl5iS/Gr6zbwYnLOixl5LIuhA7c08.z5yVjSOXsouUoRr4rXDDEbyhj6rSJJ4evEJzC5CwbjpVcOZt.", long},
		{
			"$6$rounds=1234$saltysalt$D6OuFiEKiW8uVLQD8nSeyXF8KXt0PWxoUI1VBbsz/" +
				"9SedcI8IE7E7LZVtBgEQdI8z1SuG4mMgmldc3gmLmfpP0", "secret"},
		{"$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", "secret"},
		{"$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", "secret"},
		{"{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "secret"},
		{"{SSHA}dj2lH1ocucmj5OQsjP6mQrVx6FhOYUNs", "secret"},
		{"{PLAIN}secret", "secret"},
	} {
		if err := Check(c.hash); err != nil {
			t.Errorf("%s: %v", c.hash, err)
		}
		if !Verify(c.hash, []byte(c.password)) {
			t.Errorf("%s is not taken for %q", c.hash, c.password)
		}
		for _, wrong := range []string{c.password + "x", "A" + c.password, strings.ToUpper(c.password) + " "} {
			if Verify(c.hash, []byte(wrong)) {
				t.Errorf("%s is taken for %q", c.hash, wrong)
			}
		}
	}
}

func TestWhatIsNoHashMatchesNothing(t *testing.T) {
	for _, hash := range []string{
		"", "secret", "$", "$apr1$", "$apr1$saltsalt", "$apr1$saltsalt$", "$apr1$$a8ml/vK5HEjiZ5oypDWA7/", "{SHA}",
		"{SHA}!!", "{SHA}YQ==", "{SSHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
		"$2y$", "$2y$31$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", "$6$rounds=999999999$s$x",
		"$6$rounds=$s$x", "$6$s$short", "$5$s", "rqXexS6ZhobKA",
	} {
		if Check(hash) == nil {
			t.Errorf("%q is taken for a hash", hash)
		}
		for _, p := range []string{"", "secret", hash} {
			if Verify(hash, []byte(p)) {
				t.Errorf("%q is taken for %q", p, hash)
			}
		}
	}
	if Verify("{PLAIN}"+strings.Repeat("x", MaxPassword+1), []byte(strings.Repeat("x", MaxPassword+1))) {
		t.Error("a password above the bound is taken")
	}
}

func TestParse(t *testing.T) {
	users, err := Parse(
		"# people\r\nann:{PLAIN}a\r\n\nbob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=:comment\nann:{PLAIN}b\nbad\n:x\n" +
			"cy:rqXexS6ZhobKA\n")
	if len(users) != 2 || users["ann"] != "{PLAIN}a" || users["bob"] != "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=" {
		t.Fatalf("%q", users)
	}
	for _, part := range []string{"line 6", "line 7", "line 8"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not in %v", part, err)
		}
	}
	if strings.Contains(err.Error(), "rqXex") {
		t.Errorf("the error tells a hash: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("$apr1$saltsalt$OEnK0QmmvoDzFw9W2yFYT/", []byte("a"))
	f.Add("$5$rounds=1001$s$3.wgwl9IdYXSYubycBl4XyiGDDmYoqRCtKJstQTg6V2", []byte("a"))
	f.Add("{SSHA}dj2lH1ocucmj5OQsjP6mQrVx6FhOYUNs", []byte{})
	f.Fuzz(func(t *testing.T, hash string, password []byte) {
		if Of(hash) == Bcrypt {
			return
		}
		if Verify(hash, password) && Check(hash) != nil {
			t.Fatal("a bad hash matched")
		}
	})
}
