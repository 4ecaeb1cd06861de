package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// files unpacks an archive.
func files(t *testing.T, raw []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(body)
	}
}

func text(s string) func(context.Context, int) ([]byte, error) {
	return func(context.Context, int) ([]byte, error) { return []byte(s), nil }
}

// A part that fails, is too long, hangs or ignores its time costs no other, and the index names it.
func TestAPartThatFailsCostsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Limits{Part: 100, Total: 260, Within: time.Minute, PartWithin: 10 * time.Second, AtOnce: 2}
		parts := []Part{
			{Name: "good.txt", Read: text("fine")},
			{Name: "fails.txt", Read: func(context.Context, int) ([]byte, error) {
				return []byte("some"), errors.New("forbidden:\npassword=hunter2")
			}},
			{Name: "long.txt", Read: text(strings.Repeat("x", 1000))},
			{Name: "hangs.txt", Read: func(ctx context.Context, _ int) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}},
			{Name: "deaf.txt", Read: func(context.Context, int) ([]byte, error) {
				time.Sleep(30 * time.Second)
				return nil, nil
			}},
			{Name: "second.txt", Read: text(strings.Repeat("y", 100))},
			{Name: "full.txt", Read: text(strings.Repeat("z", 100))},
			{Name: "fits.txt", Read: text("w")},
		}
		var b bytes.Buffer
		start := time.Now()
		index, err := Write(t.Context(), &b, "bundle", "v1", parts, l)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*l.PartWithin {
			t.Errorf("it took %s", took)
		}
		time.Sleep(time.Minute) // until the deaf part has ended
		got := files(t, b.Bytes())
		for name, want := range map[string]string{"good.txt": "fine", "fails.txt": "some",
			"long.txt": strings.Repeat("x", 100), "second.txt": strings.Repeat("y", 100), "fits.txt": "w"} {
			if got["bundle/"+name] != want {
				t.Errorf("%s: %q", name, got["bundle/"+name])
			}
		}
		wrong := map[string]string{"fails.txt": "forbidden: password=[redacted]", "long.txt": errCut.Error(),
			"hangs.txt": "deadline exceeded", "deaf.txt": "deadline exceeded", "full.txt": errFull.Error()}
		var again Index
		if err := json.Unmarshal([]byte(got["bundle/index.json"]), &again); err != nil || again.Failed != len(wrong) {
			t.Errorf("the index: %v, %d failed", err, again.Failed)
		}
		for _, e := range index.Parts {
			if want := wrong[e.Name]; want == "" != (e.Error == "") || !strings.Contains(e.Error, want) {
				t.Errorf("%s: error %q; want %q", e.Name, e.Error, want)
			}
		}
	})
}

func TestABundleHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := DefaultLimits()
		var parts []Part
		for i := range 1000 {
			parts = append(parts, Part{Name: fmt.Sprint(i), Read: func(ctx context.Context, _ int) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
		}
		start := time.Now()
		index, err := Write(t.Context(), io.Discard, "b", "v1", parts, l)
		if took := time.Since(start); err != nil || took > l.Within+l.PartWithin || index.Failed != 1000 {
			t.Errorf("%v after %s, %d failed", err, took, index.Failed)
		}
	})
}

// seeds are secrets as they are found in logs, settings, objects and URLs. Each has the word canary, which must go.
func seeds() map[string]string {
	pem := "-----BEGIN EC PRIVATE KEY-----\ncanary\n-----END EC PRIVATE KEY-----"
	return map[string]string{
		"pem": "before\n" + pem + "\nafter", "pem, cut": "-----BEGIN PRIVATE KEY-----\ncanary",
		"base64 of pem": "tls.key: LS0tLS1CRUdJTiBDcanaryAAA",
		"jwt":           "got eyJhbGciOiJSUzI1NiJ9.canarycanary.canary from",
		"bearer":        "Authorization: Bearer canary-123456", "basic": "proxy_set_header X \"Basic canaryAAAA==\";",
		"url": "GET https://user:canary@example.com/x", "query": "GET /a?x=1&access_token=canary&y=2 200",
		"flag": "--password=canary", "flag of two words": "--client-secret: canary",
		"json": `{"apiToken":"canary","x":1}`, "json with space": `{"password" : "a \"canary\" b"}`,
		"json in a string": `"{\"token\":\"canary\"}"`, "yaml": "clientSecret: canary\n",
		"yaml quoted": "passwd: 'a canary'\n",
		"env":         "DB_PASSWORD=canary", "htpasswd": "joe:$apr1$abcdefgh$canarycanarycanary.",
		"bcrypt": "x:$2y$05$canarycanarycanary",
		"sha":    "joe:{SHA}canaryAAA=", "cookie": "Cookie: session=canary", "set-cookie": "set-cookie=canary",
		"yaml block": "token: |-\n  canary\n  canary\n", "yaml next line": "  password:\n    canary\n",
		"yaml list": "tokens:\n- canary-1\n- canary-2\n", "yaml indented list": "tokens:\n  - canary\n",
		"aws": "aws_secret_access_key = canary", "api key": "X-Api-Key: canary", "signature": "?X-Amz-Signature=canary",
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	for name, seed := range seeds() {
		for _, around := range []string{"%s", "level=INFO msg=x %s\n", "{\n  \"a\": 1}\n%s\nnext: line\n"} {
			in := fmt.Sprintf(around, seed)
			if out := string(Redact([]byte(in))); strings.Contains(out, "canary") {
				t.Errorf("%s: %q becomes %q", name, in, out)
			}
		}
	}
}

// What helps is kept.
func TestOtherTextIsKept(t *testing.T) {
	for _, s := range []string{
		"time=2026-11-30T17:00:00Z level=INFO msg=\"this agent owns the node\" node=n1",
		"wayleave v0.2.0 on n1 (owner)\nmode: nftables  routing: auto\n",
		"Ingress default/a: spec.tls[0].secretName: Secret default/b does not exist",
		"https://192.0.2.1:6443/api/v1/namespaces/kube-system/pods?limit=5",
		"automountServiceAccountToken: false\n", "- serviceAccountToken:\n    expirationSeconds: 3607\n    path: x\n",
		"secretName: shop-tls", "clusterDNS: [10.96.0.10]", "tcp 10.0.0.1:53 -> 10.0.0.2:99",
	} {
		if out := string(Redact([]byte(s))); out != s {
			t.Errorf("%q becomes %q", s, out)
		}
	}
}

func TestObjectsAreScrubbed(t *testing.T) {
	object := map[string]any{}
	const in = `{"kind":"List","items":[
	{"kind":"Secret","data":{"a":"canary"},"stringData":{"b":"canary"}},
	{"kind":"Ingress","metadata":{"name":"i","annotations":{
	 "nginx.ingress.kubernetes.io/configuration-snippet":"canary",
	 "kubectl.kubernetes.io/last-applied-configuration":"{canary}",
	 "nginx.ingress.kubernetes.io/rewrite-target":"/kept"},
	 "managedFields":[{"canary":1}]}},
	{"kind":"Pod","spec":{"containers":[{"name":"kept","env":[{"name":"KEPT","value":"canary"}]}],
	 "initContainers":[{"env":[{"name":"B","value":"canary"}]}]}},
	{"kind":"Lease","metadata":{"annotations":{"wayleave.dev/key":"canary","wayleave.dev/problems":"kept"}}},
	{"kind":"X","webhook":{"caBundle":"canary"}}]}`
	if err := json.Unmarshal([]byte(in), &object); err != nil {
		t.Fatal(err)
	}
	for _, item := range object["items"].([]any) {
		Scrub(item.(map[string]any))
	}
	out, err := json.Marshal(object)
	if err != nil || strings.Contains(string(out), "canary") {
		t.Errorf("%v: %s", err, out)
	}
	if n := strings.Count(string(out), "kept") + strings.Count(string(out), "KEPT"); n != 4 {
		t.Errorf("%d of 4 texts are kept: %s", n, out)
	}
}
