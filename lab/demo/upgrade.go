package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// upgraded upgrades a cluster that runs an earlier version to this checkout by `wayleave upgrade`, under the loss
// meter:
// hack/test-upgrade has brought the earlier version up by kubectl. Settings are edited in both ConfigMaps before.
func upgraded(ctx context.Context, t *Tour) error {
	if err := t.editSettings(ctx, "cacheMiB: 16", "cacheMiB: 24"); err != nil {
		return err
	}
	if err := t.apply(ctx, operatorsYAML); err != nil {
		return err
	}
	return t.keepsSettings(ctx, "upgrade", "cacheMiB: 24")
}

// downgraded goes back by `wayleave rollback`, under the loss meter, after more edits.
func downgraded(ctx context.Context, t *Tour) error {
	if err := t.editSettings(ctx, "negativeTTL: 30m", "negativeTTL: 20m"); err != nil {
		return err
	}
	return t.keepsSettings(ctx, "rollback", "cacheMiB: 24", "negativeTTL: 20m")
}

const operatorsYAML = `
apiVersion: v1
kind: ConfigMap
metadata: {name: wayleave-settings, namespace: kube-system}
data:
  config.yaml: |
    # edited by hand
    dns: {cacheTTL: 50m}
`

// editSettings changes a line of the ConfigMap wayleave, as `kubectl edit` does.
func (t *Tour) editSettings(ctx context.Context, old, now string) error {
	text, err := t.settings(ctx)
	if err != nil {
		return err
	}
	if !strings.Contains(text, old) {
		return fmt.Errorf("ConfigMap wayleave has no %q", old)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]string{
		"config.yaml": strings.Replace(text, old, now, 1)}})
	if err != nil {
		return err
	}
	_, err = t.kubectl(ctx, "-n", "kube-system", "patch", "configmap", "wayleave", "--type=merge", "-p", string(patch))
	return err
}

func (t *Tour) settings(ctx context.Context) (string, error) {
	return t.kubectl(ctx, "-n", "kube-system", "get", "configmap", "wayleave", "-o", `jsonpath={.data.config\.yaml}`)
}

// keepsSettings runs a command of this checkout's program under the loss meter, while a pod tries what policy forbids.
// The edited lines stay, and the operator's ConfigMap is not written.
func (t *Tour) keepsSettings(ctx context.Context, command string, lines ...string) error {
	own := func() (string, error) {
		return t.one(ctx, "{.metadata.resourceVersion}", "-n", "kube-system", "configmap", "wayleave-settings")
	}
	before, err := own()
	if err != nil {
		return err
	}
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	err = t.closed(ctx, func() error {
		return t.meter(ctx, 0, func() error {
			args := []string{command, "--timeout=3m"}
			if command == "upgrade" {
				args = append(args, "--filename=deploy/wayleave.yaml")
			}
			_, err := t.command(ctx, nil, os.Getenv("WAYLEAVE_LAB_PROGRAM"), args...)
			return errors.Join(err, rollout(ctx, t),
				eventually(ctx, func() error { _, err := t.holder(ctx); return err }))
		}, probes...)
	})
	if err != nil {
		return err
	}
	if now, err := own(); err != nil || now != before {
		return errors.Join(err, fmt.Errorf("ConfigMap wayleave-settings was written: version %s, before %s", now,
			before))
	}
	text, err := t.settings(ctx)
	for _, line := range lines {
		if err == nil && !strings.Contains(text, line) {
			err = fmt.Errorf("%s has reset %q", command, line)
		}
	}
	return err
}
