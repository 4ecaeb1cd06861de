// Package connectivity tries what a cluster's network promises: pods reach pods, Services, DNS and Ingress, packets of
// full size pass, and policies deny. Pods of the one image are clients and servers, so nothing is downloaded.
//
// Invariants:
//   - A denial counts only where the same connection was possible before the policy.
//   - Each attempt, each answer and the whole run have a bound.
//   - Nothing is left in the cluster, also after an interrupt; what could not be removed is a failed line.
package connectivity

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Ports of the servers.
const (
	TCPPort = 8080
	UDPPort = 8081
)

// Bounds of a probe.
const (
	// attemptWithin is for one attempt; a denied one takes as long.
	attemptWithin = 2 * time.Second
	// probeWithin is for all attempts of a probe: routes and rules of new pods and Services take a moment.
	probeWithin = 15 * time.Second
	// between is the pause between two attempts.
	between = 500 * time.Millisecond
	// denials is how many attempts in sequence must fail before a connection counts as denied.
	denials = 3
	// largeBody is sent and returned by probes of the kind Large: more packets than any window holds at first.
	largeBody = 256 << 10
	// maxAnswer bounds what a client reads.
	maxAnswer = 1 << 20
	// atOnce is how many probes of a pod run at once.
	atOnce = 16
)

// Kind says how a probe is made.
type Kind string

// The kinds.
const (
	// HTTP asks for the name of the pod that answers.
	HTTP Kind = "http"
	// Large sends and receives a body of many packets.
	Large Kind = "large"
	// UDP asks as HTTP does, in one datagram.
	UDP Kind = "udp"
	// Path sends datagrams of the size of the path's MTU, which no router may fragment.
	Path Kind = "path"
	// DNS looks a name up with the pod's own configuration.
	DNS Kind = "dns"
	// Domain finds the cluster's domain in the pod's own configuration.
	Domain Kind = "domain"
)

// Probe is what a pod tries.
type Probe struct {
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	// To is ADDRESS:PORT, or a name for DNS.
	To string `json:"to"`
	// Host is the name in the request, if it is not To.
	Host string `json:"host,omitempty"`
	// Want are the pods of which one must answer, or for DNS the addresses that must be the answer. Empty: any.
	Want []string `json:"want,omitempty"`
	// Denied says that no answer must come.
	Denied bool `json:"denied,omitempty"`
}

// Result is what came of a probe.
type Result struct {
	ID string `json:"id"`
	// Error is empty if the network did what it must.
	Error string `json:"error,omitempty"`
	// Found is the answer of the kind Domain.
	Found string `json:"found,omitempty"`
}

// Try makes all probes, and returns a result for each, in their order.
func Try(ctx context.Context, probes []Probe) []Result {
	out := make([]Result, len(probes))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, p := range probes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i].ID = p.ID
			if p.Kind == Domain {
				out[i].Found = domainIn(resolvConf)
				return
			}
			if err := p.try(ctx); err != nil {
				out[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	return out
}

// try repeats the probe until it has what it must have.
func (p Probe) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	failed := 0
	var last error
	end, _ := ctx.Deadline()
	for {
		err := p.once(ctx)
		switch {
		case err == nil && !p.Denied:
			return nil
		case err == nil:
			failed, last = 0, errors.New("it is answered, and must be denied")
		case ctx.Err() != nil || !time.Now().Before(end):
			// The time was over in the attempt: it says less than the one before.
			last = cmp.Or(last, err)
		case !p.Denied:
			last = err
		default:
			if failed++; failed >= denials {
				return nil
			}
			last = cmp.Or(last, errors.New("too few attempts were denied in time"))
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(between):
		}
	}
}

func (p Probe) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptWithin)
	defer cancel()
	switch p.Kind {
	case HTTP:
		return p.http(ctx, nil)
	case Large:
		return p.http(ctx, bytes.Repeat([]byte("wayleave"), largeBody/8))
	case UDP:
		return p.udp(ctx)
	case Path:
		return p.path(ctx)
	case DNS:
		return p.dns(ctx)
	}
	return fmt.Errorf("kind %q: not known to this image", p.Kind)
}

// answer is what a server says of itself.
type answer struct {
	Pod string `json:"pod"`
}

func (p Probe) http(ctx context.Context, body []byte) error {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+p.To+"/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	if p.Host != "" {
		req.Host = p.Host
	}
	// A connection for each attempt: a policy decides when it begins.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	if body != nil {
		if !bytes.Equal(raw, body) {
			return fmt.Errorf("%d bytes were sent, and others returned: %d", len(body), len(raw))
		}
		return nil
	}
	var a answer
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("not an answer of a probe's server: %.100q", raw)
	}
	return p.from(a.Pod)
}

// from checks who answered.
func (p Probe) from(pod string) error {
	if len(p.Want) > 0 && !slices.Contains(p.Want, pod) {
		return fmt.Errorf("%q answers, and must not", pod)
	}
	return nil
}

func (p Probe) udp(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", p.To)
	if err != nil {
		return err
	}
	defer conn.Close()
	got, err := exchange(ctx, conn, []byte("probe of wayleave"))
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(string(got), "\n")
	return p.from(name)
}

// exchange sends a datagram and returns the answer.
func exchange(ctx context.Context, conn net.Conn, question []byte) ([]byte, error) {
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDatagram)
	n, err := conn.Read(buf)
	return buf[:n], err
}

// path sends a datagram as large as the kernel knows the path to be. What is larger than a link on the way comes back
// as an ICMP message, which the next attempt knows; where those messages are lost, no attempt is answered.
func (p Probe) path(ctx context.Context) error {
	conn, err := (&net.Dialer{Control: noFragments}).DialContext(ctx, "udp", p.To)
	if err != nil {
		return err
	}
	defer conn.Close()
	size, err := largestDatagram(conn.(*net.UDPConn))
	if err != nil {
		return err
	}
	got, err := exchange(ctx, conn, make([]byte, size))
	switch {
	case err != nil:
		return fmt.Errorf("a datagram of %d bytes: %w", size, err)
	case len(got) != size:
		return fmt.Errorf("a datagram of %d bytes was answered by one of %d", size, len(got))
	}
	return nil
}

func (p Probe) dns(ctx context.Context) error {
	got, err := net.DefaultResolver.LookupHost(ctx, p.To)
	if err != nil {
		return err
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(p.Want))
	if len(want) > 0 && !slices.Equal(got, want) {
		return fmt.Errorf("%s is %s, and must be %s", p.To, strings.Join(got, ", "), strings.Join(want, ", "))
	}
	return nil
}

// resolvConf is the DNS configuration of a pod.
const resolvConf = "/etc/resolv.conf"

// domainIn finds the cluster's domain in the search list that a kubelet writes; empty if it has none.
func domainIn(file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "search" {
			continue
		}
		for _, w := range words[1:] {
			if domain, ok := strings.CutPrefix(w, "svc."); ok {
				return domain
			}
		}
	}
	return ""
}
