package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// privileges are all that a container may have; what is not named is refused.
type privileges struct {
	user   int64
	add    []corev1.Capability
	memory string
	// mounts are "volume at path", with "ro" where it is read-only.
	mounts []string
}

func rightsOf() map[string]privileges {
	return map[string]privileges{
		"discover": {memory: "64Mi", mounts: []string{"node at /node", "host-etc at /host/etc ro",
			"host-proc at /host/proc ro", "host-var at /host/var ro"}},
		"agent": {
			add:    []corev1.Capability{"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "NET_BIND_SERVICE", "DAC_OVERRIDE"},
			memory: "2Gi",
			mounts: []string{"config at /etc/wayleave ro",
				"api-access at /var/run/secrets/kubernetes.io/serviceaccount ro", "node at /node ro", "pod at /pod",
				"pod-dns at /pod-dns", "pod-proxy at /pod-proxy", "run at /run/wayleave", "state at /var/lib/wayleave",
				"cni-bin at /opt/cni/bin",
				"cni-conf at /etc/cni/net.d", "sysctl at /host-sysctl",
				"cgroup at /host-cgroup ro", "bpf at /sys/fs/bpf",
				"xtables-lock at /run/xtables.lock",
				"dev-net at /dev/net ro"},
		},
		"dns":   {user: 65532, memory: "320Mi", mounts: []string{"pod-dns at /pod-dns ro", "dns-own at /own"}},
		"proxy": {user: 65533, memory: "512Mi", mounts: []string{"pod-proxy at /pod-proxy ro", "proxy-own at /own"}},
	}
}

func mountsOf(c corev1.Container) (out []string) {
	for _, m := range c.VolumeMounts {
		text := m.Name + " at " + m.MountPath
		if m.ReadOnly {
			text += " ro"
		}
		out = append(out, text)
	}
	return out
}

// wrongOf says in what a container has more than its privileges, or is less confined.
func wrongOf(c corev1.Container, want privileges) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	s := c.SecurityContext
	if s == nil || s.Capabilities == nil {
		return []string{"no security context"}
	}
	if s.Privileged != nil {
		bad("privileged is set")
	}
	if !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, want.add) {
		bad("capabilities: drop %v, add %v, want %v", s.Capabilities.Drop, s.Capabilities.Add, want.add)
	}
	if s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		bad("seccomp %v", s.SeccompProfile)
	}
	if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		bad("its root is writable")
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
		bad("allowPrivilegeEscalation is not false")
	}
	if s.ProcMount != nil || s.SELinuxOptions != nil {
		bad("procMount or SELinux options are set")
	}
	switch {
	case want.user == 0 && (s.RunAsUser != nil || s.RunAsNonRoot != nil):
		bad("root is said in another way")
	case want.user != 0 && (s.RunAsUser == nil || *s.RunAsUser != want.user || s.RunAsGroup == nil ||
		*s.RunAsGroup != want.user || s.RunAsNonRoot == nil || !*s.RunAsNonRoot):
		bad("it is not user and group %d", want.user)
	}
	if m := c.Resources.Limits.Memory().String(); m != want.memory {
		bad("memory limit %s, want %s", m, want.memory)
	}
	if got := mountsOf(c); !slices.Equal(got, want.mounts) {
		bad("mounts\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want.mounts, "\n"))
	}
	for _, m := range c.VolumeMounts {
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			bad("mount %s is propagated", m.Name)
		}
		if strings.HasPrefix(m.MountPath, "/host/") && (m.RecursiveReadOnly == nil ||
			*m.RecursiveReadOnly != corev1.RecursiveReadOnlyIfPossible) {
			bad("mounts below %s may be writable", m.MountPath)
		}
	}
	return out
}

func podOf(t *testing.T) corev1.PodSpec {
	t.Helper()
	return doc[appsv1.DaemonSet](t, "DaemonSet").Spec.Template.Spec
}

// Each container has the privileges of the table, exactly, and no other container is there.
func TestEachContainerHasItsRightsExactly(t *testing.T) {
	spec := podOf(t)
	left := rightsOf()
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		want, ok := left[c.Name]
		if !ok {
			t.Errorf("container %s has no privileges here", c.Name)
			continue
		}
		delete(left, c.Name)
		for _, w := range wrongOf(c, want) {
			t.Errorf("%s: %s", c.Name, w)
		}
		if len(c.EnvFrom) > 0 {
			t.Errorf("%s: envFrom is set", c.Name)
		}
	}
	if len(left) > 0 {
		t.Errorf("containers are missing: %v", left)
	}
	if spec.HostPID || spec.HostIPC || spec.ShareProcessNamespace != nil || len(spec.EphemeralContainers) > 0 ||
		spec.SecurityContext != nil {
		t.Error("the pod shares more than the network, or says what its containers say")
	}
}

// The API's token is in the agent alone: a captured dns or proxy has none.
func TestTheAPITokenIsInTheAgentAlone(t *testing.T) {
	spec := podOf(t)
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		t.Error("the kubelet mounts a token into every container")
	}
	tokens := map[string]bool{}
	for _, v := range spec.Volumes {
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ServiceAccountToken != nil || s.ConfigMap == nil
		}) {
			tokens[v.Name] = true
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, m := range c.VolumeMounts {
			if tokens[m.Name] != (c.Name == "agent" && m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount") {
				t.Errorf("%s: mount %s", c.Name, m.Name)
			}
		}
	}
}

// A container that is fed shares one folder with the agent, which it cannot write, and none with
// another. What two containers share otherwise, one of them at most can write.
func TestNoTwoContainersShareAWritableFolder(t *testing.T) {
	spec := podOf(t)
	type use struct{ readers, writers []string }
	uses := map[string]*use{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, m := range c.VolumeMounts {
			u := uses[m.Name]
			if u == nil {
				u = &use{}
				uses[m.Name] = u
			}
			if m.ReadOnly {
				u.readers = append(u.readers, c.Name)
			} else {
				u.writers = append(u.writers, c.Name)
			}
		}
	}
	for name, u := range uses {
		if len(u.writers) > 1 || len(u.writers) == 1 && slices.ContainsFunc(u.readers,
			func(c string) bool { return c == "agent" && u.writers[0] != "discover" }) {
			t.Errorf("volume %s is written by %v and read by %v", name, u.writers, u.readers)
		}
		if slices.Contains(u.readers, "dns") && slices.Contains(u.readers, "proxy") {
			t.Errorf("volume %s joins dns and proxy", name)
		}
	}
}

// The volumes of the node are exact: none holds what is other pods', users' or the cluster's,
// but for what the container discover sees before anything listens.
func TestFoldersOfTheNodeAreExact(t *testing.T) {
	want := map[string]string{"/run/wayleave": "DirectoryOrCreate", "/var/lib/wayleave": "DirectoryOrCreate",
		"/opt/cni/bin":   "DirectoryOrCreate",
		"/etc/cni/net.d": "DirectoryOrCreate", "/proc/sys/net": "Directory", "/sys/fs/cgroup": "Directory",
		"/sys/fs/bpf": "Directory", "/run/xtables.lock": "FileOrCreate",
		"/dev/net": "DirectoryOrCreate",
		"/etc":     "Directory", "/proc": "Directory", "/var": "Directory"}
	spec := podOf(t)
	for _, v := range spec.Volumes {
		if e := v.EmptyDir; e != nil && (e.Medium != corev1.StorageMediumMemory || e.SizeLimit == nil) {
			t.Errorf("volume %s has no bound that holds", v.Name)
		}
		if v.HostPath == nil {
			continue
		}
		if v.HostPath.Type == nil || want[v.HostPath.Path] != string(*v.HostPath.Type) {
			t.Errorf("volume %s is %s of type %v", v.Name, v.HostPath.Path, v.HostPath.Type)
		}
		delete(want, v.HostPath.Path)
		for _, c := range spec.Containers {
			if strings.HasPrefix(v.Name, "host-") && slices.ContainsFunc(c.VolumeMounts,
				func(m corev1.VolumeMount) bool { return m.Name == v.Name }) {
				t.Errorf("%s has %s of the node for as long as it runs", c.Name, v.HostPath.Path)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("folders are missing: %v", want)
	}
}

// Why a capability is there is said beside it.
func TestEachCapabilityIsJustified(t *testing.T) {
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rightsOf()["agent"].add {
		found := false
		for line := range strings.Lines(string(m)) {
			name, why, ok := strings.Cut(line, "#")
			found = found || ok && strings.TrimSpace(name) == "- "+string(c) && len(strings.TrimSpace(why)) > 10
		}
		if !found {
			t.Errorf("%s has no reason beside it", c)
		}
	}
}
