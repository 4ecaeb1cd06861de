package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/place"
)

// Networks of a lab.
const (
	Wayleave = "wayleave" // Wayleave, from the checkout
	None     = "none"     // no CNI, no service proxy, no DNS
	Upstream = "upstream" // kube-proxy, CoreDNS, the bridge plugin
)

// Networks are the values of --network.
var Networks = []string{Wayleave, None, Upstream}

// ProxyModes are the values of --proxy-mode.
var ProxyModes = []string{"nftables", "iptables"}

// Settings are the requested properties of a lab.
type Settings struct {
	Nodes     int    `json:"nodes"`
	DualStack bool   `json:"dualStack"`
	Network   string `json:"network"`
	ProxyMode string `json:"proxyMode"` // mode of kube-proxy in the upstream network
	Bare      bool   `json:"bare"`      // machines for kubeadm, without a cluster
	Keep      bool   `json:"-"`         // keep a lab that failed to start, for inspection
	// File has Wayleave's settings that differ: config.yaml of the ConfigMap wayleave-settings. Empty: none differ.
	File string `json:"file,omitempty"`
}

// Check returns an error that names the invalid setting.
func (s Settings) Check() error {
	if s.Nodes < 1 || s.Nodes > fabric.MaxNodes {
		return fmt.Errorf("--nodes %d: must be 1 to %d", s.Nodes, fabric.MaxNodes)
	}
	if !slices.Contains(Networks, s.Network) {
		return fmt.Errorf("--network %q: must be one of %s", s.Network, strings.Join(Networks, ", "))
	}
	if s.Bare && (s.Network != None || s.DualStack) {
		return fmt.Errorf("--bare: found --network %s --dual-stack=%t; allowed: --network none --dual-stack=false",
			s.Network, s.DualStack)
	}
	if s.File != "" && s.Network != Wayleave {
		return fmt.Errorf("--settings: found --network %s; allowed: --network wayleave", s.Network)
	}
	if !slices.Contains(ProxyModes, s.ProxyMode) {
		return fmt.Errorf("--proxy-mode %q: must be one of %s", s.ProxyMode, strings.Join(ProxyModes, ", "))
	}
	return nil
}

// state is the stored state of a running lab.
type state struct {
	Settings
	Kubernetes string `json:"kubernetes"` // version
	Port       int    `json:"port"`       // of the API server, on the host's loopback
	Kubectl    string `json:"kubectl"`
	Ctr        string `json:"ctr"`
	Agnhost    string `json:"agnhost"` // version
}

func stateFile(dirs place.Dirs) string { return filepath.Join(dirs.State, "lab.json") }

// ErrDown means that no lab is up.
var ErrDown = errors.New(`no lab is up; "lab up" brings one up`)

func load(dirs place.Dirs) (state, error) {
	var s state
	data, err := os.ReadFile(stateFile(dirs))
	if errors.Is(err, fs.ErrNotExist) {
		return s, ErrDown
	}
	if err != nil {
		return s, fmt.Errorf("lab: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("lab: %s: %w", stateFile(dirs), err)
	}
	return s, nil
}

func (s state) save(dirs place.Dirs) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := os.WriteFile(stateFile(dirs), data, 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}
