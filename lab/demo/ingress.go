package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ingressYAML is an example Ingress, with Services behind it, and a default backend for unknown hosts.
const ingressYAML = `apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: main-ingress
spec:
  rules:
  - host: app1.example.com
    http:
      paths:
      - path: /
        pathType: Prefix
        backend:
          service:
            name: app1
            port:
              number: 80

  - host: app2.example.com
    http:
      paths:
      - path: /api
        pathType: Prefix
        backend:
          service:
            name: app2-api
            port:
              number: 80
      - path: /
        pathType: Prefix
        backend:
          service:
            name: app2-web
            port:
              number: 80
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: rest
spec:
  defaultBackend:
    service:
      name: app1
      port:
        number: 80
`

// appYAML is an application that answers every request with its name.
const appYAML = `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 2
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
      - name: web
        image: %[2]s
        args: [serve-hostname, --port=8080]
        readinessProbe: {periodSeconds: 1, httpGet: {port: 8080, path: /}}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{port: 80, targetPort: 8080}]
`

// ingressAddress returns what `kubectl get ingress` shows.
func (t *Tour) ingressAddress(ctx context.Context, name string) (string, error) {
	list, err := t.fields(ctx, "{.status.loadBalancer.ingress[*].ip}", "ingress", name)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("ingress %s has no address", name)
	}
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// browse sends a request from outside, like a browser that found the name in DNS.
func (t *Tour) browse(ctx context.Context, addr, url string, more ...string) (string, error) {
	host := strings.TrimPrefix(strings.TrimPrefix(url, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	args := append([]string{"curl", "-sS", "-m", "3"}, more...)
	for _, port := range []string{"80", "443"} {
		args = append(args, "--resolve", host+":"+port+":"+addr)
	}
	return t.at(ctx, "outside", append(args, url)...)
}

// routed checks the example Ingress from outside.
func routed(ctx context.Context, t *Tour) error {
	yaml := ingressYAML
	for _, app := range []string{"app1", "app2-api", "app2-web"} {
		yaml += fmt.Sprintf(appYAML, app, t.image())
	}
	if err := t.apply(ctx, yaml); err != nil {
		return err
	}
	// An earlier tour may have added a certificate, and with it a redirect.
	if _, err := t.kubectl(ctx, "patch", "ingress", "main-ingress", "--type=merge", "-p",
		`{"spec":{"tls":null}}`); err != nil {
		return err
	}
	for _, app := range []string{"app1", "app2-api", "app2-web"} {
		if _, err := t.kubectl(ctx, "rollout", "status", "deployment/"+app, "--timeout=100s"); err != nil {
			return err
		}
	}
	return eventually(ctx, func() error {
		addr, err := t.ingressAddress(ctx, "main-ingress")
		if err != nil {
			return err
		}
		out, err := t.kubectl(ctx, "get", "ingress", "main-ingress")
		if err := errors.Join(err, want(out, "wayleave", "app1.example.com,app2.example.com", addr)); err != nil {
			return err
		}
		for _, c := range []struct{ url, app string }{
			{"http://app1.example.com/anything", "app1-"}, {"http://app2.example.com/api/users", "app2-api-"},
			{"http://app2.example.com/home", "app2-web-"},
			{"http://nobody.example.com/", "app1-"}, // the default backend
		} {
			out, err := t.browse(ctx, addr, c.url)
			if err := errors.Join(err, want(out, c.app)); err != nil {
				return fmt.Errorf("%s: %w", c.url, err)
			}
		}
		return nil
	})
}

// encrypted gives app1 a certificate.
func encrypted(ctx context.Context, t *Tour) error {
	dir, err := os.MkdirTemp("", "demo-tls")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, key := filepath.Join(dir, "app1.crt"), filepath.Join(dir, "app1.key")
	if err := selfSigned("app1.example.com", cert, key); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "create", "secret", "tls", "app1-tls", "--cert="+cert, "--key="+key); err != nil {
		if !isThere(err) {
			return err
		}
		if _, err := t.kubectl(ctx, "delete", "secret", "app1-tls"); err != nil {
			return err
		}
		if _, err := t.kubectl(ctx, "create", "secret", "tls", "app1-tls", "--cert="+cert, "--key="+key); err != nil {
			return err
		}
	}
	if _, err := t.kubectl(ctx, "patch", "ingress", "main-ingress", "--type=merge", "-p",
		`{"spec":{"tls":[{"hosts":["app1.example.com"],"secretName":"app1-tls"}]}}`); err != nil {
		return err
	}
	return eventually(ctx, func() error {
		addr, err := t.ingressAddress(ctx, "main-ingress")
		if err != nil {
			return err
		}
		out, err := t.browse(ctx, addr, "https://app1.example.com/hostname", "--cacert", cert)
		if err := errors.Join(err, want(out, "app1-")); err != nil {
			return err
		}
		out, err = t.browse(ctx, addr, "http://app1.example.com/hostname", "-o", "/dev/null", "-w",
			"%{http_code} %{redirect_url}")
		if err := errors.Join(err, want(out, "308 https://app1.example.com/hostname")); err != nil {
			return err
		}
		// app2 has none: it must not get another host's.
		if _, err := t.browse(ctx, addr, "https://app2.example.com/hostname", "--cacert", cert); err == nil {
			return errors.New("app2.example.com has the certificate of app1.example.com")
		}
		return nil
	})
}

func selfSigned(name, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		DNSNames:  []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
}

// routedOn replaces every agent and proxy under requests through the Ingress.
func routedOn(ctx context.Context, t *Tour) error {
	addr, err := t.ingressAddress(ctx, "rest")
	if err != nil {
		return err
	}
	return t.meter(ctx, 0, func() error {
		if _, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/wayleave"); err != nil {
			return err
		}
		return rollout(ctx, t)
	}, "http="+bracket(addr)+":80/hostname")
}
