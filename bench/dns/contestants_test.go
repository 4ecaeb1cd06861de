// Package dns compares Wayleave's cluster DNS with CoreDNS: with the same API server and the same queries, it checks
// every difference, and measures both.
package dns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/lab/build"
	"wayleave.dev/lab/progress"
)

const (
	domain   = "cluster.local."
	server   = "10.96.0.10:53" // in each namespace
	master   = "http://127.0.0.1:6443"
	upstream = "127.0.0.1:5300"
	// outsideTTL is the TTL of the upstream server's records, below the 30 s to which kubeadm's CoreDNS cuts TTLs.
	outsideTTL = 20
)

// corefile is kubeadm's, with the API server's address, without the check for loops, and with all listeners in the
// namespace.
const corefile = `.:53 {
    errors
    health 127.0.0.1:8080 {
       lameduck 5s
    }
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       endpoint ` + master + `
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus 127.0.0.1:9153
    forward . ` + upstream + ` {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loadbalance
}
`

// programs are the paths of the started programs.
type programs struct{ ours, coredns string }

// build builds both, CoreDNS from its module or the lab's cache.
func buildPrograms(t *testing.T) (p programs) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := &build.Cache{Dir: filepath.Join(home, ".cache", "wayleave-lab"), Progress: progress.New(os.Stderr),
		Log: os.Stderr}
	unlock, err := cache.Lock(t.Context()) // a lab may be building the same program
	if err != nil {
		t.Fatal(err)
	}
	p.coredns, err = cache.CoreDNS(t.Context())
	unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.ours = filepath.Join(t.TempDir(), "server")
	cmd := exec.Command("go", "build", "-trimpath", "-o", p.ours, "./server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return p
}

// contestant is one DNS server in a namespace of its own.
type contestant struct {
	name string
	ns   *testnet.NS
	// all are its processes; the first one is the server.
	all []*kubeproxy.Process
}

// place creates a namespace with the server's address, the API and an upstream server.
func place(t *testing.T, name string, api *fakeapi.Server) *contestant {
	t.Helper()
	c := &contestant{name: name, ns: testnet.New(t, name)}
	c.ns.Addr("lo", "10.96.0.10/32")
	c.ns.Addr("lo", "10.244.0.2/32") // an endpoint of kube-dns, where CoreDNS expects itself
	l := c.ns.Listen("tcp", "127.0.0.1:6443")
	go func() { _ = api.Serve(l) }()
	t.Cleanup(func() { l.Close() })
	outside(t, c.ns)
	return c
}

// startOurs starts the agent and the server.
func (p programs) startOurs(t *testing.T, api *fakeapi.Server, agentArgs ...string) *contestant {
	t.Helper()
	return p.startOursBehind(t, api, nil, agentArgs...)
}

// startOursBehind puts a prefix before the server's command line, to pin it to a core.
func (p programs) startOursBehind(t *testing.T, api *fakeapi.Server, prefix []string, agentArgs ...string) *contestant {
	t.Helper()
	c, dir := place(t, "Wayleave", api), t.TempDir()
	command := func(args ...string) *kubeproxy.Process {
		line := append(append([]string{}, prefix...), append([]string{p.ours, "-dir", dir}, args...)...)
		return kubeproxy.Run(t, c.ns, exec.Command(line[0], line[1:]...))
	}
	agent := command(append([]string{"-role", "agent", "-master", master, "-listen", server, "-upstreams", upstream},
		agentArgs...)...)
	c.all = []*kubeproxy.Process{command("-role", "dns"), agent}
	return c
}

// startCoreDNS starts CoreDNS with a Corefile.
func (p programs) startCoreDNS(t *testing.T, api *fakeapi.Server, text string, prefix ...string) *contestant {
	t.Helper()
	c, file := place(t, "CoreDNS", api), filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	line := append(append([]string{}, prefix...), p.coredns, "-conf", file)
	c.all = []*kubeproxy.Process{kubeproxy.Run(t, c.ns, exec.Command(line[0], line[1:]...))}
	return c
}

// outside is the upstream server for external names: names below example.org exist, except those that begin with
// "missing"; those that begin with "alias" are CNAMEs.
func outside(t *testing.T, ns *testnet.NS) {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if err := w.WriteMsg(outsideAnswer(q)); err != nil {
			t.Logf("upstream: %v", err)
		}
	})
	for _, s := range []*dns.Server{
		{PacketConn: ns.ListenPacket("udp", upstream), Handler: handler},
		{Listener: ns.Listen("tcp", upstream), Handler: handler},
	} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
}

func outsideAnswer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if q.IsEdns0() != nil {
		m.SetEdns0(1232, false)
	}
	name := q.Question[0].Name
	low := strings.ToLower(name)
	soa, err := dns.NewRR(fmt.Sprintf("example.org. %d IN SOA ns.example.org. admin.example.org. 7 7200 1800 86400 %d",
		outsideTTL, outsideTTL))
	if err != nil {
		panic(err)
	}
	if !dns.IsSubDomain("example.org.", low) || strings.HasPrefix(low, "missing") {
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
		return m
	}
	add := func(format string, args ...any) {
		rr, err := dns.NewRR(fmt.Sprintf(format, args...))
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	qtype := q.Question[0].Qtype
	if strings.HasPrefix(low, "alias") {
		add("%s %d IN CNAME real.example.org.", name, outsideTTL)
		name = "real.example.org."
		if qtype == dns.TypeCNAME {
			return m
		}
	}
	switch qtype {
	case dns.TypeA:
		add("%s %d IN A 192.0.2.%d", name, outsideTTL, len(name)%100)
		add("%s %d IN A 192.0.2.%d", name, outsideTTL, 100+len(name)%100)
	case dns.TypeAAAA:
		add("%s %d IN AAAA 2001:db8::%x", name, outsideTTL, len(name)%100)
	case dns.TypeMX:
		add("%s %d IN MX 10 mail.example.org.", name, outsideTTL)
	case dns.TypeTXT:
		add("%s %d IN TXT \"v=spf1 -all\"", name, outsideTTL)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa}
	}
	return m
}

// asker sends queries to one contestant, over one connection per network.
type asker struct {
	c        *contestant
	udp, tcp *dns.Conn
}

// ask returns the answer, and if the datagram was truncated, that by TCP, too.
func (a *asker) ask(q *dns.Msg) (udp, tcp *dns.Msg, err error) {
	if udp, err = a.over("udp", &a.udp, q); err != nil || !udp.Truncated {
		return udp, nil, err
	}
	tcp, err = a.over("tcp", &a.tcp, q)
	return udp, tcp, err
}

func (a *asker) over(network string, conn **dns.Conn, q *dns.Msg) (*dns.Msg, error) {
	var errs []error
	for range 3 { // servers close connections after many queries
		if *conn == nil {
			c, err := a.c.ns.Dial(network, server, time.Second)
			if err != nil {
				return nil, err
			}
			*conn = &dns.Conn{Conn: c, UDPSize: 65535}
		}
		got, err := exchange(*conn, q)
		if err == nil {
			return got, nil
		}
		errs = append(errs, err)
		(*conn).Close()
		*conn = nil
	}
	return nil, fmt.Errorf("%s, %s: %w", a.c.name, network, errors.Join(errs...))
}

func exchange(conn *dns.Conn, q *dns.Msg) (*dns.Msg, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		got, err := conn.ReadMsg()
		if err != nil {
			return nil, err
		}
		if got.Id == q.Id { // otherwise it is a late one
			return got, nil
		}
	}
}

// ready waits until a contestant knows a name.
func ready(t *testing.T, c *contestant, name string) {
	t.Helper()
	testnet.Eventually(t, 2*time.Minute, func() error {
		conn, err := c.ns.Dial("udp", server, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		co := &dns.Conn{Conn: conn}
		if err := co.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
			return err
		}
		got, err := co.ReadMsg()
		if err != nil {
			return err
		}
		if len(got.Answer) == 0 {
			return fmt.Errorf("%s: %s has no address yet", c.name, name)
		}
		return nil
	})
}
