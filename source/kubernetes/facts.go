package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// Facts are what the kubelet of a node was told, without any credential. A container that
// reads the node's files once writes them for the agent, which then needs none of those files.
// What could not be read is said in the place of the fact, for the agent to refuse.
type Facts struct {
	// Server is the URL of the API server, From the file that says so.
	Server        string       `json:"server,omitempty"`
	From          string       `json:"from,omitempty"`
	ServerProblem string       `json:"serverProblem,omitempty"`
	ClusterDNS    []netip.Addr `json:"clusterDNS,omitempty"`
	ClusterDomain string       `json:"clusterDomain,omitempty"`
	DNSProblem    string       `json:"dnsProblem,omitempty"`
	// CNI are the folders of the container runtime.
	CNI        CNI    `json:"cni,omitzero"`
	CNIProblem string `json:"cniProblem,omitempty"`
}

// Discover reads the facts below Root.
func (h Host) Discover() Facts {
	var f Facts
	var err error
	f.Server, f.From, err = h.APIServer()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.ServerProblem = err.Error()
	}
	if f.ClusterDNS, f.ClusterDomain, err = h.ClusterDNS(); err != nil {
		f.DNSProblem = err.Error()
	}
	if f.CNI, err = h.CNI(); err != nil {
		f.CNIProblem = err.Error()
	}
	return f
}

// Write keeps facts in a file, whole or not at all.
func (f Facts) Write(name string) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(temp, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("facts of the node: %w", err)
	}
	if err := os.Rename(temp, name); err != nil {
		return fmt.Errorf("facts of the node: %w", err)
	}
	return nil
}

func (h Host) facts() (f Facts, err error) {
	raw, err := readSome(h.Facts)
	if err != nil {
		return f, fmt.Errorf("facts of the node: %w", err)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, fmt.Errorf("facts of the node: %s: %w", h.Facts, err)
	}
	return f, nil
}

func (h Host) serverOfFacts() (server, from string, err error) {
	f, err := h.facts()
	switch {
	case err != nil:
		return "", "", err
	case f.ServerProblem != "":
		return "", "", errors.New(f.ServerProblem)
	case f.Server == "":
		return "", "", fmt.Errorf("the node has no kubelet's kubeconfig in a known place: %w", fs.ErrNotExist)
	}
	return f.Server, f.From, nil
}

// RuntimeCNI returns the folders of the node's container runtime, as Discover has written them.
func (h Host) RuntimeCNI() (CNI, error) {
	f, err := h.facts()
	switch {
	case errors.Is(err, fs.ErrNotExist): // outside of the DaemonSet
		return CNI{}, nil
	case err == nil && f.CNIProblem != "":
		err = errors.New(f.CNIProblem)
	}
	return f.CNI, err
}

func (h Host) dnsOfFacts() ([]netip.Addr, string, error) {
	f, err := h.facts()
	switch {
	case errors.Is(err, fs.ErrNotExist): // outside of the DaemonSet
		return nil, "", nil
	case err != nil:
		return nil, "", err
	case f.DNSProblem != "":
		return nil, "", errors.New(f.DNSProblem)
	}
	return f.ClusterDNS, f.ClusterDomain, nil
}
