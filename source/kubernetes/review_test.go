package kubernetes

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// A token is reviewed as its bearer: the agent's own credentials are not sent, and what the API server says decides.
func TestATokenIsReviewedAsItsBearer(t *testing.T) {
	const own = "token-of-the-agent"
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		if q.URL.Path != "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" || q.Method != http.MethodPost ||
			!strings.Contains(string(body), "/metrics") || !strings.Contains(string(body), "get") {
			t.Errorf("%s %s: %q", q.Method, q.URL, body)
		}
		w.Header().Set("Content-Type", "application/json")
		status := map[string]any{}
		switch token := q.Header.Get("Authorization"); {
		case strings.Contains(token, own):
			t.Error("the agent's own token was sent")
		case token == "Bearer good":
			status["allowed"] = true
		case token == "Bearer both":
			status["allowed"], status["denied"] = true, true
		case token == "Bearer none":
			status["allowed"] = false
		case token == "Bearer basic":
			w.WriteHeader(http.StatusForbidden)
		case token == "Bearer broken":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "authorization.k8s.io/v1",
			"kind": "SelfSubjectAccessReview", "status": status})
	}))
	defer s.Close()
	r, err := newReviewer(&rest.Config{Host: s.URL, BearerToken: own, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})},
		ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{reviewer: r}
	for token, want := range map[string]Verdict{"good": TokenAllowed, "both": TokenDenied, "none": TokenDenied,
		"basic": TokenDenied, "forged": TokenInvalid} {
		if got, err := c.MayGet(t.Context(), token, "/metrics"); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", token, got, err, want)
		}
	}
	if got, err := c.MayGet(t.Context(), "broken", "/metrics"); err == nil || got == TokenAllowed {
		t.Errorf("broken: %v, %v", got, err)
	}
	if got, err := (&Client{}).MayGet(t.Context(), "good", "/metrics"); err == nil || got == TokenAllowed {
		t.Errorf("no client: %v, %v", got, err)
	}
}
