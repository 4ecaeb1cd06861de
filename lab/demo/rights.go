package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The output of `kubectl auth can-i --list` for each account and namespace. The tests of the folder deploy compare the
// same files with the manifest.
//
//go:embed rights/*.txt
var goldenRights embed.FS

// updateRights makes the check rewrite the files, in the folder that it names.
const updateRights = "WAYLEAVE_LAB_UPDATE_RIGHTS"

// limited asks the API server about the rights of each account, and uses a real token of an agent for forbidden
// requests.
func limited(ctx context.Context, t *Tour) error {
	for _, account := range []string{"wayleave", "wayleave-writer"} {
		for _, ns := range []string{"default", "kube-system", "wayleave-peers"} {
			if err := t.goldenRights(ctx, account, ns); err != nil {
				return err
			}
		}
	}
	nodes, err := t.nodes(ctx)
	if err != nil || len(nodes) < 2 {
		return errors.Join(err, fmt.Errorf("%d nodes, two are needed", len(nodes)))
	}
	if err := t.agentToken(ctx, nodes[0], nodes[1]); err != nil {
		return err
	}
	return t.writerToken(ctx)
}

func (t *Tour) goldenRights(ctx context.Context, account, ns string) error {
	out, err := t.kubectl(ctx, "auth", "can-i", "--list", "-n", ns, "--as=system:serviceaccount:kube-system:"+account)
	if err != nil {
		return err
	}
	name := account + "." + ns + ".txt"
	if dir := os.Getenv(updateRights); dir != "" {
		return os.WriteFile(filepath.Join(dir, name), []byte(lines(out)+"\n"), 0o644)
	}
	golden, err := goldenRights.ReadFile("rights/" + name)
	if err != nil {
		return err
	}
	if got, want := lines(out), lines(string(golden)); got != want {
		return fmt.Errorf("account %s in %s: the API server says\n%s\nthe golden file has\n%s", account, ns, got, want)
	}
	return nil
}

// lines returns the lines of a text, sorted and without trailing space: the order of rules from the API server varies.
func lines(text string) string {
	var out []string
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		out = append(out, strings.TrimRight(l, " "))
	}
	slices.SortFunc(out[1:], strings.Compare)
	return strings.Join(out, "\n")
}

// as runs kubectl with a token and no other identity.
func (t *Tour) as(ctx context.Context, token string, args ...string) (string, error) {
	server, err := t.kubectl(ctx, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
	if err != nil {
		return "", err
	}
	return t.kubectl(ctx, append([]string{"--kubeconfig=/dev/null", "--server=" + server, "--insecure-skip-tls-verify",
		"--token=" + token}, args...)...)
}

// attempt is a request with a token, and the required text of the answer; empty for success.
type attempt struct {
	args   []string
	answer string
}

func (t *Tour) attempts(ctx context.Context, token string, list []attempt) error {
	for _, a := range list {
		out, err := t.as(ctx, token, a.args...)
		switch {
		case a.answer == "" && err != nil:
			return err
		case a.answer != "" && (err == nil || !strings.Contains(err.Error(), a.answer)):
			return fmt.Errorf("kubectl %s: %q, %w; want %q", strings.Join(a.args, " "), out, err, a.answer)
		}
	}
	return nil
}

const (
	forbidden = "orbidden" // of "Forbidden" and "is forbidden"
	policed1  = "ValidatingAdmissionPolicy 'wayleave-agent'"
	policed2  = "ValidatingAdmissionPolicy 'wayleave-writer'"
)

// agentToken tests the rights of a node's agent with a token like that of its pod.
func (t *Tour) agentToken(ctx context.Context, node, other string) error {
	pod, err := t.one(ctx, "{.items[0].metadata.name}", "-n", "kube-system", "pods", "-l",
		"app.kubernetes.io/name=wayleave", "--field-selector=spec.nodeName="+node)
	if err != nil {
		return err
	}
	uid, err := t.one(ctx, "{.metadata.uid}", "-n", "kube-system", "pod", pod)
	if err != nil {
		return err
	}
	token, err := t.kubectl(ctx, "-n", "kube-system", "create", "token", "wayleave", "--bound-object-kind=Pod",
		"--bound-object-name="+pod, "--bound-object-uid="+uid)
	if err != nil {
		return err
	}
	unbound, err := t.kubectl(ctx, "-n", "kube-system", "create", "token", "wayleave")
	if err != nil {
		return err
	}
	look := func(node string) []string {
		return []string{"-n", "wayleave-peers", "get", "lease", "wayleave-node-" + node, "-o", "name"}
	}
	replace := func(node string) []string { // an agent may only "update": annotate would patch
		return []string{"replace", "-f", filepath.Join(os.TempDir(), "wayleave-lease-"+node+".json")}
	}
	for _, n := range []string{node, other} {
		raw, err := t.kubectl(ctx, "-n", "wayleave-peers", "get", "lease", "wayleave-node-"+n, "-o", "json")
		if err != nil {
			return err
		}
		file := filepath.Join(os.TempDir(), "wayleave-lease-"+n+".json")
		if err := os.WriteFile(file, []byte(raw), 0o600); err != nil {
			return err
		}
		defer os.Remove(file)
	}
	err = t.attempts(ctx, token, []attempt{
		{look(other), ""},
		{replace(node), ""},
		{replace(other), policed1},
		{[]string{"-n", "wayleave-peers", "create", "-f", lease(t, "wayleave-node-nowhere")}, policed1},
		{[]string{"-n", "wayleave-peers", "delete", "lease", "wayleave-node-" + node}, forbidden},
		{[]string{"-n", "kube-system", "create", "-f", lease(t, "mine")}, forbidden},
		{[]string{"get", "service", "backend"}, forbidden},
		{[]string{"patch", "service", "backend", "--subresource=status", "-p",
			`{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`}, forbidden},
		{[]string{"-n", "kube-system", "patch", "service", "kube-dns", "-p", `{"spec":{"selector":{"a":"b"}}}`},
			forbidden},
		{[]string{"get", "events"}, forbidden},
	})
	if err != nil {
		return fmt.Errorf("the token of the agent on %s: %w", node, err)
	}
	if err := t.attempts(ctx, unbound, []attempt{{replace(node), policed1}}); err != nil {
		return fmt.Errorf("a token of the agents' account that names no node: %w", err)
	}
	return nil
}

// lease writes a file with a Lease of that name; it stays while the process runs.
func lease(t *Tour, name string) string {
	file := filepath.Join(os.TempDir(), "wayleave-lab-"+name+".json")
	text := fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q}}`, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		fmt.Fprintln(t.Out, err) // kubectl will report the missing file
	}
	return file
}

// writerToken tests the rights of the writer.
func (t *Tour) writerToken(ctx context.Context) error {
	token, err := t.kubectl(ctx, "-n", "kube-system", "create", "token", "wayleave-writer")
	if err != nil {
		return err
	}
	err = t.attempts(ctx, token, []attempt{
		{[]string{"get", "service", "backend", "-o", "name"}, ""},
		{[]string{"get", "secrets", "-A"}, forbidden},
		{[]string{"-n", "wayleave-peers", "get", "secrets"}, forbidden},
		{[]string{"-n", "kube-system", "create", "service", "clusterip", "kube-dns-2", "--tcp=53"}, policed2},
		{[]string{"-n", "kube-system", "create", "-f", lease(t, "mine")}, policed2},
		{[]string{"create", "service", "clusterip", "other", "--tcp=53"}, forbidden},
		{[]string{"patch", "service", "backend", "-p", `{"spec":{"selector":{"a":"b"}}}`}, forbidden},
		{[]string{"delete", "service", "backend"}, forbidden},
	})
	if err != nil {
		return fmt.Errorf("the token of the writer: %w", err)
	}
	return nil
}

// holder returns the elected pod.
func (t *Tour) holder(ctx context.Context) (string, error) {
	h, err := t.one(ctx, "{.spec.holderIdentity}", "-n", "kube-system", "lease", "wayleave-writer")
	if err == nil && !strings.HasPrefix(h, "wayleave-writer-") {
		err = fmt.Errorf("elected is %q, want a pod of the Deployment wayleave-writer", h)
	}
	return h, err
}

// rewritten deletes the elected writer, and requires that the other replica writes: a new Service gets an address, and
// the heartbeat key stays.
func rewritten(ctx context.Context, t *Tour) error {
	before, err := t.holder(ctx)
	if err != nil {
		return err
	}
	sealed := func() (string, error) {
		l, err := t.fields(ctx, `{.items[*].metadata.annotations.wayleave\.dev/sealed-for}`, "-n",
			"wayleave-peers", "leases")
		return strings.Join(l, " "), err
	}
	keys, err := sealed()
	if err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", "kube-system", "delete", "pod", before, "--wait=false", "--grace-period=0",
		"--force"); err != nil {
		return err
	}
	if err := eventually(ctx, func() error {
		now, err := t.holder(ctx)
		if err == nil && now == before {
			err = fmt.Errorf("%s is still elected", before)
		}
		return err
	}); err != nil {
		return err
	}
	if err := t.apply(ctx, rewrittenYAML); err != nil {
		return err
	}
	err = eventually(ctx, func() error {
		_, err := t.one(ctx, "{.status.loadBalancer.ingress[0].ip}", "service", "rewritten")
		return err
	})
	_, gone := t.kubectl(ctx, "delete", "service", "rewritten", "--ignore-not-found")
	if err := errors.Join(err, gone); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // longer than a new writer waits for the key
	if now, err := sealed(); err != nil || now != keys {
		return errors.Join(err, fmt.Errorf("the heartbeat key changed: sealed for %s, before %s", now, keys))
	}
	return nil
}

const rewrittenYAML = `
apiVersion: v1
kind: Service
metadata: {name: rewritten}
spec: {type: LoadBalancer, ports: [{port: 80}], selector: {app: backend}}
`
