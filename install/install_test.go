package install

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"wayleave.dev/config"
)

// upgrade plans and applies a manifest, without waiting.
func (f *fakeCluster) upgrade(manifest []byte) *Plan {
	f.t.Helper()
	p, err := f.PlanUpgrade(f.t.Context(), manifest)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.carryOut(p)
}

func (f *fakeCluster) carryOut(p *Plan) *Plan {
	f.t.Helper()
	if err := f.Apply(f.t.Context(), p, io.Discard); err != nil {
		f.t.Fatal(err)
	}
	if err := f.Prune(f.t.Context(), p, io.Discard); err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fakeCluster) install(manifest []byte) *Plan {
	f.t.Helper()
	p, err := f.PlanInstall(f.t.Context(), manifest)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.carryOut(p)
}

func (f *fakeCluster) rollback() *Plan {
	f.t.Helper()
	p, err := f.PlanRollback(f.t.Context(), 0)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.carryOut(p)
}

func (f *fakeCluster) image() string {
	f.t.Helper()
	return strings.Join(images(f.get("DaemonSet", Namespace, "wayleave")), " ")
}

func replace(t *testing.T, text, old, now string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("no %q in %s", old, text)
	}
	return strings.Replace(text, old, now, 1)
}

// N, edits by hand, N+1, more edits, N: each version runs with the edits, and with its own defaults elsewhere.
func TestAnUpgradeAndItsRollbackResetNothing(t *testing.T) {
	f := newFake(t)
	first := manifestOf(t, "v0.1.0")
	second := []byte(replace(t, string(manifestOf(t, "v0.2.0")), "cacheMiB: 16", "cacheMiB: 24"))
	f.install(first)
	f.edit("wayleave", settingsKey, replace(t, replace(t, f.settings("wayleave"), "logLevel: info", "logLevel: debug"),
		"hosts: {}", "hosts: {printer.corp.example: [10.0.0.9]}"))
	f.edit("wayleave", "mode", `"iptables"`)
	const own = "# mine\nipvs: {scheduler: lc}\n"
	f.edit(operatorsMap, settingsKey, own)

	check := func(version string, cacheMiB int) {
		t.Helper()
		if f.image() != "registry.test/wayleave:"+version {
			t.Errorf("%s: the image is %s", version, f.image())
		}
		if got := f.settings(operatorsMap); got != own {
			t.Errorf("%s: %s has %q", version, operatorsMap, got)
		}
		data, _, _ := unstructured.NestedStringMap(f.get("ConfigMap", Namespace, "wayleave").Object, "data")
		data["settings.yaml"] = own
		c, err := config.ParseData(data)
		if err != nil {
			t.Fatal(err)
		}
		if c.LogLevel.String() != "DEBUG" || len(c.DNS.Hosts) != 1 || c.Mode != "iptables" ||
			c.IPVS.Scheduler != "lc" ||
			c.DNS.CacheMiB != cacheMiB {
			t.Errorf("%s: the settings are %+v", version, c)
		}
		if !strings.Contains(f.settings("wayleave"), "# Size of the cache") {
			t.Errorf("%s: the comments are gone", version)
		}
	}
	p := f.upgrade(second)
	check("v0.2.0", 24)
	if fmt.Sprint(p.Settings.Kept) != "[dns.hosts: printer.corp.example:\n- 10.0.0.9 logLevel: debug]" ||
		fmt.Sprint(p.Settings.Defaults) != "[dns.cacheMiB: 24, before 16]" {
		t.Errorf("the plan says %+v", p.Settings)
	}
	f.rollback()
	check("v0.1.0", 16)
	f.rollback() // forward again
	check("v0.2.0", 24)
}

// A cluster installed by `kubectl apply` is upgraded and rolled back: its edits stay, fields that the new version does
// not have go, and so do objects that the old version does not have.
func TestAClusterOfKubectlIsTakenOver(t *testing.T) {
	f := newFake(t)
	old, err := parse([]byte(replace(t, replace(t, string(manifestOf(t, "v0.1.0")), "cacheMiB: 16", "cacheMiB: 8"),
		"      hostNetwork: true", "      hostPID: true\n      hostNetwork: true")))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range old {
		if o.GetName() == "wayleave-writer" {
			continue // this version has no writer
		}
		raw, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		o.SetAnnotations(map[string]string{lastApplied: string(raw)})
		f.put(o, "kubectl-client-side-apply")
	}
	f.edit("wayleave", settingsKey, replace(t, f.settings("wayleave"), "mode: auto", "mode: ipvs"))
	hostPID := func() bool {
		v, _, _ := unstructured.NestedBool(f.get("DaemonSet", Namespace, "wayleave").Object, "spec", "template",
			"spec", "hostPID")
		return v
	}
	if !hostPID() {
		t.Fatal("the old version has no hostPID")
	}
	f.upgrade(manifestOf(t, "v0.2.0"))
	if text := f.settings("wayleave"); !strings.Contains(text, "mode: ipvs") ||
		!strings.Contains(text, "cacheMiB: 16") {
		t.Errorf("the settings are %s", text)
	}
	if hostPID() || f.get("Deployment", Namespace, "wayleave-writer") == nil {
		t.Error("the new version has fields of the old one, or no writer")
	}
	f.rollback()
	if text := f.settings("wayleave"); !strings.Contains(text, "mode: ipvs") || !strings.Contains(text, "cacheMiB: 8") {
		t.Errorf("after the rollback the settings are %s", text)
	}
	if !hostPID() || f.get("Deployment", Namespace, "wayleave-writer") != nil ||
		f.get("ClusterRole", "", "wayleave-writer") != nil || f.get("Namespace", "", "wayleave-peers") == nil {
		t.Error("the rollback left objects of the new version, or deleted a namespace")
	}
}

// Changed settings start new pods, also when nothing else changes.
func TestChangedSettingsRollPods(t *testing.T) {
	f := newFake(t)
	m := manifestOf(t, "v0.1.0")
	stamp := func() string {
		s, _, _ := unstructured.NestedString(f.get("DaemonSet", Namespace, "wayleave").Object, "spec",
			"template", "metadata",
			"annotations", checksum)
		return s
	}
	f.install(m)
	before := stamp()
	f.install(m)
	if before == "" || stamp() != before {
		t.Errorf("the same settings have the checksums %q and %q", before, stamp())
	}
	for _, name := range []string{"wayleave", operatorsMap} {
		f.edit(name, settingsKey, "logLevel: warn\n")
		before := stamp()
		f.install(m)
		if stamp() == before {
			t.Errorf("settings of %s do not change the pods", name)
		}
	}
	if all, err := f.revisions(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%d revisions of one manifest, %v", len(all), err)
	}
}

func TestFiveRevisionsAreKept(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	for i := range 7 {
		f.upgrade(manifestOf(t, fmt.Sprintf("v0.1.%d", i+1)))
	}
	all, err := f.revisions(t.Context())
	if err != nil || len(all) != maxRevisions || all[0].Number != 4 || all[4].Version != "v0.1.7" {
		t.Fatalf("%d revisions: %v", len(all), err)
	}
	if _, err := f.PlanRollback(t.Context(), 2); err == nil || !strings.Contains(err.Error(),
		"there are: 4 (v0.1.3), 5") {
		t.Errorf("to a revision that is gone: %v", err)
	}
	p, err := f.PlanRollback(t.Context(), 5)
	if err != nil || p.To.Version != "v0.1.4" {
		t.Errorf("to 5: %+v, %v", p, err)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	f := newFake(t)
	diff := func(p *Plan, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := f.Diff(t.Context(), p, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if text := diff(f.PlanInstall(t.Context(), manifestOf(t, "v0.1.0"))); f.writes != 0 ||
		!strings.Contains(text, "+++ DaemonSet kube-system/wayleave (planned)") {
		t.Errorf("%d writes: %s", f.writes, text)
	}
	f.install(manifestOf(t, "v0.1.0"))
	writes := f.writes
	text := diff(f.PlanUpgrade(t.Context(), manifestOf(t, "v0.2.0")))
	for _, want := range []string{"-        image: registry.test/wayleave:v0.1.0\n",
		"+        image: registry.test/wayleave:v0.2.0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if f.writes != writes || f.image() != "registry.test/wayleave:v0.1.0" || strings.Contains(text, "ClusterRole") {
		t.Errorf("%d writes; the diff is %s", f.writes-writes, text)
	}
}

// What would not work is refused before a write, by a message that names the object and what to do.
func TestRefusedPlans(t *testing.T) {
	ctx := context.Background()
	v1, v2 := manifestOf(t, "v0.1.0"), manifestOf(t, "v0.2.0")
	installed := func(f *fakeCluster) { f.install(v1) }
	for want, tc := range map[string]struct {
		before func(*fakeCluster)
		plan   func(*fakeCluster) (*Plan, error)
	}{
		"wayleave upgrade": {installed, func(f *fakeCluster) (*Plan, error) { return f.PlanInstall(ctx, v2) }},
		"wayleave install": {func(*fakeCluster) {}, func(f *fakeCluster) (*Plan, error) {
			return f.PlanUpgrade(ctx, v2)
		}},
		"no revision is recorded": {func(*fakeCluster) {},
			func(f *fakeCluster) (*Plan, error) { return f.PlanRollback(ctx, 0) }},
		"older than v0.2.0": {func(f *fakeCluster) { f.install(v2) },
			func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, v1) }},
		"upgrade to v0.2 first": {installed,
			func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, manifestOf(t, "v0.3.0")) }},
		"Helm release net": {func(f *fakeCluster) {
			f.install(v1)
			ds := f.get("DaemonSet", Namespace, "wayleave")
			ds.SetAnnotations(map[string]string{"meta.helm.sh/release-name": "net"})
			f.put(ds, "helm")
		}, func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, v2) }},
		"wayleave-settings: dns.nothing": {func(f *fakeCluster) {
			f.install(v1)
			f.edit(operatorsMap, settingsKey, "dns: {nothing: 1}\n")
		}, func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, v2) }},
		`mode: found "fast"`: {func(f *fakeCluster) {
			f.install(v1)
			f.edit(operatorsMap, settingsKey, "mode: fast\n")
		}, func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, v2) }},
		"wayleave-revision-1: manifest.yaml.gz": {func(f *fakeCluster) {
			f.install(v1)
			s := f.get("Secret", Namespace, "wayleave-revision-1")
			s.Object["data"] = map[string]any{manifestKey: "AAAA"}
			f.put(s, "mallory")
		}, func(f *fakeCluster) (*Plan, error) { return f.PlanUpgrade(ctx, v2) }},
		"not a manifest of Wayleave": {installed, func(f *fakeCluster) (*Plan, error) {
			return f.PlanUpgrade(ctx, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"))
		}},
	} {
		f := newFake(t)
		tc.before(f)
		writes := f.writes
		if _, err := tc.plan(f); err == nil || !strings.Contains(err.Error(), want) || f.writes != writes {
			t.Errorf("%s: got %v, %d writes", want, err, f.writes-writes)
		}
	}
}

// A key that only a later version knows stops no rollback if the file says that it is of a later version.
func TestKeysOfALaterVersionAreNamed(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	f.upgrade(manifestOf(t, "v0.2.0"))
	f.edit(operatorsMap, settingsKey, fmt.Sprintf("settingsVersion: %d\nfuture: {key: 1}\n", config.Version+1))
	p := f.rollback()
	if fmt.Sprint(p.Settings.Ignored) != "[future.key]" {
		t.Errorf("the plan says %+v", p.Settings)
	}
}

// Two commands at once: the second fails before it changes an object.
func TestTwoCommandsAtOnce(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	one, err := f.PlanUpgrade(t.Context(), manifestOf(t, "v0.1.1"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := f.PlanUpgrade(t.Context(), manifestOf(t, "v0.1.2"))
	if err != nil {
		t.Fatal(err)
	}
	f.carryOut(one)
	if err := f.Apply(t.Context(), two, io.Discard); err == nil || !strings.Contains(err.Error(), "another command") {
		t.Errorf("got %v", err)
	}
	if f.image() != "registry.test/wayleave:v0.1.1" {
		t.Errorf("the image is %s", f.image())
	}
}

// The wait ends when every pod runs the new image and is ready; when it is too late, it names the pods and the reason.
func TestTheRolloutIsWatched(t *testing.T) {
	f := newFake(t)
	p := f.install(manifestOf(t, "v0.1.0"))
	pod := func(name, image string) *unstructured.Unstructured {
		o := object("", "v1", "Pod", Namespace, name)
		o.SetLabels(map[string]string{"app.kubernetes.io/name": "wayleave"})
		o.Object["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{"apiVersion": "apps/v1",
			"kind": "DaemonSet", "name": "wayleave", "uid": "1", "controller": true}}
		o.Object["spec"] = map[string]any{"nodeName": "node7",
			"containers": []any{map[string]any{"name": "agent", "image": image}}}
		return o
	}
	f.setStatus("DaemonSet", "wayleave",
		`{"desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberAvailable": 2}`)
	f.setStatus("Deployment", "wayleave-writer", `{"replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}`)
	bad := pod("wayleave-x", images(p.objects[len(p.objects)-1])[0])
	bad.Object["status"] = map[string]any{"containerStatuses": []any{map[string]any{"name": "agent",
		"state":     map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff", "message": "back-off"}},
		"lastState": map[string]any{"terminated": map[string]any{"message": "settings: mode: found \"fast\""}}}}}
	f.put(bad, "kubelet")

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	err := f.Wait(ctx, p, &out)
	if err == nil || !strings.Contains(err.Error(), "not complete: 1 pods") {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"DaemonSet kube-system/wayleave: 1 of 2 updated, 2 ready; Deployment " +
		"kube-system/wayleave-writer: 1 of 2 updated, 2 ready\n",
		`Pod kube-system/wayleave-x on node "node7": agent: CrashLoopBackOff: settings: mode: found "fast"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, &out)
		}
	}
	f.setStatus("DaemonSet", "wayleave",
		`{"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}`)
	f.setStatus("Deployment", "wayleave-writer", `{"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}`)
	old := pod("wayleave-x", "registry.test/wayleave:v0.0.9")
	f.put(old, "kubelet")
	if _, done, err := f.progress(t.Context(), p); done || err != nil {
		t.Errorf("a pod with the old image counts as done, %v", err)
	}
	f.put(pod("wayleave-x", "registry.test/wayleave:v0.1.0"), "kubelet")
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := f.Wait(ctx, p, &out); err != nil {
		t.Error(err)
	}
}

func TestSteps(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"v0.1.0", "v0.1.1", true}, {"v0.1.0", "v0.2.0", true}, {"v0.1.9", "v0.2.0-rc.1", true},
		{"v0.1.0", "v0.1.0", true},
		{"dev", "v0.9.0", true}, {"v0.9.0", "dev", true}, {"unknown", "v0.9.0", true},
		{"v0.2.0", "v0.1.9", false}, {"v0.2.0", "v0.2.0-rc.1", false}, {"v0.1.0", "v0.3.0", false},
		{"v0.9.0", "v1.0.0", false},
	} {
		if err := checkStep(tc.from, tc.to); (err == nil) != tc.ok {
			t.Errorf("%s to %s: %v", tc.from, tc.to, err)
		}
	}
}

// The folders of CNI are mounted where the settings say.
func TestFoldersOfCNIAreThoseOfTheSettings(t *testing.T) {
	f := newFake(t)
	f.edit(operatorsMap, settingsKey, "podnetwork: {cniConfDir: /var/lib/rancher/net.d}\n")
	f.install(manifestOf(t, "v0.1.0"))
	raw, err := f.get("DaemonSet", Namespace, "wayleave").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]int{`"/var/lib/rancher/net.d"`: 2, `"/etc/cni/net.d"`: 0, `"/opt/cni/bin"`: 2} {
		if got := strings.Count(string(raw), want); got != n {
			t.Errorf("%s is there %d times, want %d", want, got, n)
		}
	}
}
