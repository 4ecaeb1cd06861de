package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"wayleave.dev/config"
)

// checksum is the annotation of pods with the digest of their settings, so that changed settings start new pods.
const checksum = "wayleave.dev/settings-checksum"

// keepSettings puts the settings that were edited in the cluster into the plan's objects.
func (c Cluster) keepSettings(ctx context.Context, p *Plan) error {
	target := find(p.objects, "ConfigMap", "wayleave")
	live, err := c.live(ctx, target)
	if err != nil {
		return err
	}
	own, err := c.live(ctx, object("", "v1", "ConfigMap", Namespace, operatorsMap))
	if err != nil {
		return err
	}
	base := ""
	if p.From != nil {
		before, err := parse(p.From.Manifest)
		if err != nil {
			return fmt.Errorf("revision %d: %w", p.From.Number, err)
		}
		base = settingsOf(find(before, "ConfigMap", "wayleave"))
	}
	operator := settingsOf(own)
	e, err := newEdit(base, settingsOf(live), settingsOf(target), operator)
	if err != nil {
		return err
	}
	text, s, err := e.merge()
	if err != nil {
		return err
	}
	if e.target.fileVersion() == config.Version {
		cfg, err := e.parse(text, operator)
		if err != nil {
			return fmt.Errorf("agents would not start: %w", err)
		}
		if err := p.mountCNI(cfg.PodNetwork.CNIConfDir, cfg.PodNetwork.CNIBinDir); err != nil {
			return err
		}
	}
	p.Settings = s
	if err := unstructured.SetNestedField(target.Object, text, "data", settingsKey); err != nil {
		return fmt.Errorf("%s: %w", nameOf(target), err)
	}
	return p.stamp(live, own, text)
}

// settingsOf returns the settings file of a ConfigMap, empty without one.
func settingsOf(o *unstructured.Unstructured) string {
	if o == nil {
		return ""
	}
	text, _, _ := unstructured.NestedString(o.Object, "data", settingsKey)
	return text
}

// stamp annotates the pods of the workloads with the digest of all settings.
func (p *Plan) stamp(live, own *unstructured.Unstructured, text string) error {
	all := map[string]any{}
	for _, o := range []*unstructured.Unstructured{live, own} {
		if o != nil {
			data, _, _ := unstructured.NestedMap(o.Object, "data")
			all[o.GetName()] = data
		}
	}
	if data, ok := all["wayleave"].(map[string]any); ok {
		data[settingsKey] = text
	} else {
		all["wayleave"] = map[string]any{settingsKey: text}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	sum := sha256.Sum256(raw)
	for _, o := range workloads(p.objects) {
		if err := unstructured.SetNestedField(o.Object, hex.EncodeToString(sum[:]), "spec", "template", "metadata",
			"annotations", checksum); err != nil {
			return fmt.Errorf("%s: %w", nameOf(o), err)
		}
	}
	return nil
}

// mountCNI mounts the folders that the settings name: a container runtime may look for CNI in others than the usual.
func (p *Plan) mountCNI(conf, bin string) error {
	folder := map[string]string{"cni-conf": conf, "cni-bin": bin}
	for _, ds := range workloads(p.objects) {
		spec, _, err := unstructured.NestedMap(ds.Object, "spec", "template", "spec")
		if err != nil {
			return fmt.Errorf("%s: %w", nameOf(ds), err)
		}
		for _, v := range items(spec, "volumes") {
			if to := folder[fmt.Sprint(v["name"])]; to != "" {
				v["hostPath"] = map[string]any{"path": to, "type": "DirectoryOrCreate"}
			}
		}
		for _, c := range items(spec, "containers") {
			for _, m := range items(c, "volumeMounts") {
				if to := folder[fmt.Sprint(m["name"])]; to != "" {
					m["mountPath"] = to
				}
			}
		}
		if err := unstructured.SetNestedMap(ds.Object, spec, "spec", "template", "spec"); err != nil {
			return fmt.Errorf("%s: %w", nameOf(ds), err)
		}
	}
	return nil
}

// items returns the items of a list that are objects. Changes of them change the list.
func items(in map[string]any, field string) (out []map[string]any) {
	list, _ := in[field].([]any)
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
