package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// oldIngressYAML is an Ingress of class nginx, and nginx at a node port that stands for its controller.
const oldIngressYAML = `---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop}
spec:
  ingressClassName: nginx
  rules:
  - http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {number: 80}}}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: old-controller}
data:
  nginx.conf: |
    events {}
    http {
      access_log off;
      server { listen 8080; location / { proxy_pass http://SHOP; } }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: old-controller}
spec:
  replicas: 1
  selector: {matchLabels: {app: old-controller}}
  template:
    metadata: {labels: {app: old-controller}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: IMAGE
        imagePullPolicy: IfNotPresent
        readinessProbe: {periodSeconds: 1, tcpSocket: {port: 8080}}
        volumeMounts: [{name: config, mountPath: /etc/nginx/nginx.conf, subPath: nginx.conf}]
      volumes: [{name: config, configMap: {name: old-controller}}]
---
apiVersion: v1
kind: Service
metadata: {name: old-controller}
spec:
  type: NodePort
  selector: {app: old-controller}
  ports: [{port: 80, targetPort: 8080, nodePort: 30888}]
`

// oldController starts what the Ingress is taken over from.
func oldController(ctx context.Context, t *Tour) error {
	image, err := t.command(ctx, nil, t.Lab, "addon", "nginx")
	if err != nil {
		return err
	}
	if err := t.apply(ctx, fmt.Sprintf(appYAML, "shop", t.image())); err != nil {
		return err
	}
	shop, err := t.one(ctx, "{.spec.clusterIP}", "service", "shop")
	if err != nil {
		return err
	}
	yaml := strings.NewReplacer("SHOP", shop, "IMAGE", image).Replace(oldIngressYAML)
	if err := t.apply(ctx, yaml); err != nil {
		return err
	}
	for _, name := range []string{"shop", "old-controller"} {
		if _, err := t.kubectl(ctx, "rollout", "status", "deployment/"+name, "--timeout=100s"); err != nil {
			return err
		}
	}
	return nil
}

// firstNode is the address of a node.
func (t *Tour) firstNode(ctx context.Context) (string, error) {
	list, err := t.fields(ctx, `{.items[0].status.addresses[?(@.type=="InternalIP")].address}`, "nodes")
	if err == nil && len(list) == 0 {
		err = errors.New("the first node has no address")
	}
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// serves waits until Wayleave serves the Ingress at a node's port 80, or no longer does.
func (t *Tour) serves(ctx context.Context, node string, yes bool) error {
	return eventually(ctx, func() error {
		out, err := t.at(ctx, "outside", "curl", "-sS", "-m", "3", "http://"+node+"/")
		if served := strings.HasPrefix(out, "shop-"); served != yes {
			err = errors.Join(err, fmt.Errorf("port 80 of %s answers %q", node, head(out, 100)))
			return err
		}
		return nil
	})
}

// setIngress is `kubectl edit configmap wayleave-settings`, and the restart that makes it effective.
func (t *Tour) setIngress(ctx context.Context, adopt bool) error {
	yaml := fmt.Sprintf(
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: wayleave-settings, namespace: kube-system}\n"+
			"data: {config.yaml: 'ingress: {adoptNginx: %t}'}\n", adopt)
	if err := t.apply(ctx, yaml); err != nil {
		return err
	}
	_, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/wayleave",
		"deployment/wayleave-writer")
	return errors.Join(err, t.rollout(ctx))
}

// takeIngress serves the Ingress beside the old controller, which loses nothing, and then alone.
func takeIngress(ctx context.Context, t *Tour) error {
	if err := oldController(ctx, t); err != nil {
		return err
	}
	node, err := t.firstNode(ctx)
	if err != nil {
		return err
	}
	if err := t.serves(ctx, node, false); err != nil {
		return err
	}
	err = t.meterOutside(ctx, 0, func() error {
		if err := t.setIngress(ctx, true); err != nil {
			return err
		}
		return t.serves(ctx, node, true)
	}, "http="+node+":30888/")
	if err != nil {
		return fmt.Errorf("the old controller: %w", err)
	}
	return t.meterOutside(ctx, 10*time.Second, func() error {
		_, err := t.kubectl(ctx, "scale", "deployment/old-controller", "--replicas=0")
		return err
	}, "http="+node+":80/")
}

// giveIngressBack starts the old controller, and stops serving the Ingress.
func giveIngressBack(ctx context.Context, t *Tour) error {
	node, err := t.firstNode(ctx)
	if err != nil {
		return err
	}
	err = t.meterOutside(ctx, 0, func() error { return oldController(ctx, t) }, "http="+node+":80/")
	if err != nil {
		return err
	}
	err = t.meterOutside(ctx, 0, func() error {
		if err := t.setIngress(ctx, false); err != nil {
			return err
		}
		return t.serves(ctx, node, false)
	}, "http="+node+":30888/")
	if err != nil {
		return fmt.Errorf("the old controller: %w", err)
	}
	_, err = t.kubectl(ctx, "-n", "kube-system", "delete", "configmap", "wayleave-settings")
	return err
}

// defaultClass makes the class wayleave the default by the guide's command: Ingresses without a class are then its.
func defaultClass(ctx context.Context, t *Tour) error {
	node, err := t.firstNode(ctx)
	if err != nil {
		return err
	}
	const class = "{.spec.ingressClassName}"
	plain := strings.ReplaceAll(strings.SplitN(oldIngressYAML, "---\n", 3)[1], "  ingressClassName: nginx\n", "")
	create := func(name string) (string, error) {
		if err := t.apply(ctx, strings.Replace(plain, "name: shop", "name: "+name, 1)); err != nil {
			return "", err
		}
		return t.kubectl(ctx, "get", "ingress", name, "-o", "jsonpath="+class)
	}
	if got, err := create("before"); err != nil || got != "" {
		return fmt.Errorf("before, an Ingress without a class gets %q: %w", got, err)
	}
	if err := t.serves(ctx, node, false); err != nil {
		return err
	}
	if err := t.commands(ctx, "kubectl annotate --overwrite ingressclass wayleave "+
		"ingressclass.kubernetes.io/is-default-class=true"); err != nil {
		return err
	}
	if got, err := create("after"); err != nil || got != "wayleave" {
		return fmt.Errorf("an Ingress without a class gets %q: %w", got, err)
	}
	if err := t.serves(ctx, node, true); err != nil {
		return err
	}
	return t.commands(ctx, "kubectl delete ingress before after shop", "kubectl delete deployment old-controller",
		"kubectl annotate --overwrite ingressclass wayleave ingressclass.kubernetes.io/is-default-class=false")
}
