//go:build linux

package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wayleave.dev/internal/listeners"
	"wayleave.dev/kernel/nft"
)

// maxFile bounds each text of a node.
const maxFile = 1 << 20

// maxRuleset bounds the rules and elements of a node: those of about 10,000 Services.
const maxRuleset = 4<<20 - 4<<10

// NodeState is the state of the kernel's network and the metrics of the node, as texts by name. It is for the agent's
// container, which is in the node's network namespace.
func NodeState(ctx context.Context) map[string]Text {
	out := map[string]Text{}
	add := func(name string, read func() (string, error)) {
		text, err := read()
		t := Text{Text: text}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			t.Text = "this kernel has none\n"
		case err != nil:
			t.Error = err.Error()
		}
		out[name] = t
	}
	add("nftables.txt", func() (string, error) {
		k, err := nft.NewKernel(0)
		if err != nil {
			return "", err
		}
		return k.Summary(ctx)
	})
	add("ruleset.txt", func() (string, error) {
		k, err := nft.NewKernel(0)
		if err != nil {
			return "", err
		}
		text, cut, err := k.Ruleset(ctx, maxRuleset)
		if err == nil && cut {
			err = fmt.Errorf("the ruleset is longer than %d bytes", maxRuleset)
		}
		return text, err
	})
	add("links.txt", links)
	add("sockets.txt", sockets)
	add("sysctls.txt", sysctls)
	for _, name := range procNet() {
		add(procName(name), func() (string, error) { return file("/proc/thread-self/net/" + name) })
	}
	add("metrics.txt", func() (string, error) { return page(ctx, "http://127.0.0.1:10249/metrics") })
	return out
}

func file(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(raw), err
}

func page(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxFile))
	return string(raw), err
}

// links lists at most as many interfaces as fit: a node may have hundreds of pods.
func links() (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, l := range list {
		if b.Len() > maxFile {
			break
		}
		addrs, err := l.Addrs()
		fmt.Fprintf(&b, "%d %s mtu %d mac %s %s %v\n", l.Index, l.Name, l.MTU, l.HardwareAddr, l.Flags, addrs)
		if err != nil {
			fmt.Fprintf(&b, "  addresses: %v\n", err)
		}
	}
	return b.String(), nil
}

func sockets() (string, error) {
	all, err := listeners.Read("/proc/thread-self/net")
	var b strings.Builder
	for _, s := range all {
		if s.Kind != "unix" {
			fmt.Fprintln(&b, s)
		}
	}
	return b.String(), err
}

// sysctls are those that decide whether packets pass.
func sysctls() (string, error) {
	var b strings.Builder
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/rp_filter", "ipv4/conf/*/arp_ignore",
		"ipv4/conf/*/arp_announce", "ipv4/conf/*/proxy_arp", "ipv6/conf/*/forwarding", "ipv6/conf/*/disable_ipv6",
		"netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_tcp_be_liberal",
		"ipv4/tcp_migrate_req", "ipv4/neigh/default/gc_thresh*"} {
		files, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil {
			return b.String(), err
		}
		for _, f := range files {
			if text, err := file(f); err == nil && b.Len() < maxFile {
				fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(f, "/proc/sys/"), strings.TrimSpace(text))
			}
		}
	}
	return b.String(), nil
}
