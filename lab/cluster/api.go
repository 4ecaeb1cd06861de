package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"wayleave.dev/lab/place"
)

// api is a minimal client of the API server, so that this program depends on nothing of Kubernetes.
type api struct {
	server string
	http   *http.Client
}

func newAPI(dirs place.Dirs, port int) (*api, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dirs.PKI(), "admin.crt"), filepath.Join(dirs.PKI(), "admin.key"))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dirs.PKI(), "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}}
	return &api{server: fmt.Sprintf("https://127.0.0.1:%d", port),
		http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

// get reads a path; into is nil if only success matters.
func (a *api) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	response, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("lab: %s: %s: %.300s", path, response.Status, body)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	return nil
}

// apiNode contains the fields of a Node that are used.
type apiNode struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []netip.Prefix `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

func (n apiNode) ready() bool {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (a *api) nodes(ctx context.Context) (map[string]apiNode, error) {
	var list struct {
		Items []apiNode `json:"items"`
	}
	if err := a.get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	all := map[string]apiNode{}
	for _, n := range list.Items {
		all[n.Metadata.Name] = n
	}
	return all, nil
}
