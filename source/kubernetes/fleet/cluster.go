package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"wayleave.dev/writeback"
)

// Cluster is what commands see of a cluster.
type Cluster struct {
	// Server is the URL of the API server, Version what it runs, and Skew how far the clock of this machine is ahead
	// of its clock.
	Server  string        `json:"server"`
	Version string        `json:"version"`
	Skew    time.Duration `json:"skew"`
	Nodes   []Node        `json:"nodes"`
	// Agents and Writers are the pods of Wayleave, and Workloads all DaemonSets and Deployments.
	Agents    []Pod      `json:"agents"`
	Writers   []Pod      `json:"writers"`
	Workloads []Workload `json:"workloads"`
	// Leader holds the Lease of the writer, which was renewed Renewed ago.
	Leader  string        `json:"leader"`
	Renewed time.Duration `json:"renewed"`
	// HasPools says that the kind AddressPool exists.
	HasPools bool `json:"hasPools"`
	// DNS are the addresses of the Service kube-dns.
	DNS []string `json:"dns"`
	// DefaultClasses are IngressClasses that are marked as the default, with their controllers.
	DefaultClasses map[string]string `json:"defaultClasses"`
	// Settings has the data of the ConfigMaps wayleave and wayleave-settings, by name.
	Settings map[string]Settings `json:"settings"`
	// Denied are rights that the caller lacks and an installation needs, as "create daemonsets.apps".
	Denied []string `json:"denied"`
	// Leases are those that agents write; the kubelets' DNS is in them.
	Leases []*coordinationv1.Lease `json:"-"`
	// Errors says which part could not be read, and why.
	Errors map[string]string `json:"errors,omitempty"`
}

// Settings is a ConfigMap.
type Settings struct {
	Data    map[string]string `json:"data"`
	Changed time.Time         `json:"changed"`
}

// Node is a node of the cluster.
type Node struct {
	Name     string   `json:"name"`
	Ready    bool     `json:"ready"`
	OS       string   `json:"os"`
	Kernel   string   `json:"kernel"`
	Kubelet  string   `json:"kubelet"`
	PodCIDRs []string `json:"podCIDRs"`
	Images   []string `json:"-"`
	// Heartbeat is how long ago the kubelet renewed its Lease, by the node's clock; negative if that is ahead. Zero if
	// unknown.
	Heartbeat time.Duration `json:"heartbeat"`
}

// Workload is a DaemonSet or Deployment.
type Workload struct {
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Images    []string `json:"images"`
	// Desired pods, of which Ready are ready and Updated of the newest template.
	Desired int32 `json:"desired"`
	Ready   int32 `json:"ready"`
	Updated int32 `json:"updated"`
}

// String names the workload as kubectl does.
func (w Workload) String() string { return strings.ToLower(w.Kind) + "/" + w.Name }

// Read reads the cluster. Parts that cannot be read are in Errors; the error says that nothing can.
func (f Fleet) Read(ctx context.Context) (*Cluster, error) {
	c := &Cluster{Server: f.Client.Server, Errors: map[string]string{}, Settings: map[string]Settings{},
		DefaultClasses: map[string]string{}}
	at, version, err := f.serverTime(ctx)
	if version == "" {
		return nil, err
	}
	c.Version = version
	c.note("clock", err)
	if err == nil {
		c.Skew = time.Until(at)
		c.Skew = -c.Skew
	}
	for _, part := range []struct {
		name string
		read func(context.Context, *Cluster) error
	}{
		{"nodes", f.readNodes}, {"pods", f.readPods}, {"workloads", f.readWorkloads}, {"leases", f.readLeases},
		{"services", f.readServices}, {"settings", f.readSettings}, {"kinds", f.readKinds}, {"rights", f.readRights},
	} {
		c.note(part.name, part.read(ctx, c))
		if err := ctx.Err(); err != nil {
			return c, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return c, nil
}

func (c *Cluster) note(part string, err error) {
	if err != nil {
		c.Errors[part] = err.Error()
	}
}

// now is the time by the API server's clock.
func (c *Cluster) now() time.Time { return time.Now().Add(-c.Skew) }

func (f Fleet) readNodes(ctx context.Context, c *Cluster) error {
	list, err := f.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	beats, err := f.heartbeats(ctx, c)
	for _, n := range list.Items {
		c.Nodes = append(c.Nodes, nodeOf(&n, beats[n.Name]))
	}
	return err
}

func (f Fleet) heartbeats(ctx context.Context, c *Cluster) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	list, err := f.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{})
	if err != nil {
		return out, err
	}
	for _, l := range list.Items {
		if l.Spec.RenewTime != nil {
			out[l.Name] = c.now().Sub(l.Spec.RenewTime.Time)
		}
	}
	return out, nil
}

func nodeOf(n *corev1.Node, beat time.Duration) Node {
	out := Node{Name: n.Name, OS: n.Status.NodeInfo.OperatingSystem, Kernel: n.Status.NodeInfo.KernelVersion,
		Kubelet: n.Status.NodeInfo.KubeletVersion, PodCIDRs: n.Spec.PodCIDRs, Heartbeat: beat}
	for _, s := range n.Status.Conditions {
		if s.Type == corev1.NodeReady {
			out.Ready = s.Status == corev1.ConditionTrue
		}
	}
	for _, i := range n.Status.Images {
		out.Images = append(out.Images, i.Names...)
	}
	return out
}

func (f Fleet) readPods(ctx context.Context, c *Cluster) (err error) {
	if c.Agents, err = f.Agents(ctx); err != nil {
		return err
	}
	c.Writers, err = f.Writers(ctx)
	return err
}

func (f Fleet) readWorkloads(ctx context.Context, c *Cluster) error {
	sets, err := f.Client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range sets.Items {
		c.Workloads = append(c.Workloads, Workload{"DaemonSet", d.Namespace, d.Name, images(d.Spec.Template.Spec),
			d.Status.DesiredNumberScheduled, d.Status.NumberReady, d.Status.UpdatedNumberScheduled})
	}
	deployments, err := f.Client.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		c.Workloads = append(c.Workloads, Workload{"Deployment", d.Namespace, d.Name, images(d.Spec.Template.Spec),
			desired(&d), d.Status.ReadyReplicas, d.Status.UpdatedReplicas})
	}
	return nil
}

func desired(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func images(p corev1.PodSpec) (out []string) {
	for _, c := range p.Containers {
		out = append(out, c.Image)
	}
	return out
}

func (f Fleet) readLeases(ctx context.Context, c *Cluster) error {
	l, err := f.Client.CoordinationV1().Leases(writeback.DNSNamespace).Get(ctx, writeback.LeaseName,
		metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil && l.Spec.HolderIdentity != nil && l.Spec.RenewTime != nil {
		c.Leader, c.Renewed = *l.Spec.HolderIdentity, c.now().Sub(l.Spec.RenewTime.Time)
	}
	list, err := f.Client.CoordinationV1().Leases(writeback.PeersNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		c.Leases = append(c.Leases, &list.Items[i])
	}
	return nil
}

func (f Fleet) readServices(ctx context.Context, c *Cluster) error {
	s, err := f.Client.CoreV1().Services(writeback.DNSNamespace).Get(ctx, writeback.DNSName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		c.DNS = s.Spec.ClusterIPs
	}
	return err
}

func (f Fleet) readSettings(ctx context.Context, c *Cluster) error {
	var errs []error
	for _, name := range []string{"wayleave", "wayleave-settings"} {
		m, err := f.Client.CoreV1().ConfigMaps(f.Namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s := Settings{Data: m.Data, Changed: m.CreationTimestamp.Time}
		for _, field := range m.ManagedFields {
			if field.Time != nil && field.Time.After(s.Changed) {
				s.Changed = field.Time.Time
			}
		}
		c.Settings[name] = s
	}
	return errors.Join(errs...)
}

// readKinds finds the kind AddressPool, and default IngressClasses.
func (f Fleet) readKinds(ctx context.Context, c *Cluster) error {
	pools := schema.GroupVersionResource{Group: "wayleave.dev", Version: "v1alpha1", Resource: "addresspools"}
	_, err := f.Client.Dynamic.Resource(pools).List(ctx, metav1.ListOptions{Limit: 1})
	if c.HasPools = err == nil; err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	classes, err := f.Client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, k := range classes.Items {
		if k.Annotations["ingressclass.kubernetes.io/is-default-class"] == "true" {
			c.DefaultClasses[k.Name] = k.Spec.Controller
		}
	}
	return nil
}

// needs are the kinds that an installation creates, by group.
func needs() map[string][]string {
	return map[string][]string{
		"":                             {"configmaps", "services", "serviceaccounts", "namespaces"},
		"apps":                         {"daemonsets", "deployments"},
		"rbac.authorization.k8s.io":    {"clusterroles", "clusterrolebindings", "roles", "rolebindings"},
		"admissionregistration.k8s.io": {"validatingadmissionpolicies", "validatingadmissionpolicybindings"},
	}
}

func (f Fleet) readRights(ctx context.Context, c *Cluster) error {
	table := needs()
	for _, group := range slices.Sorted(maps.Keys(table)) {
		for _, resource := range table[group] {
			review := &authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authv1.ResourceAttributes{Namespace: f.Namespace, Verb: "create", Group: group,
					Resource: resource}}}
			got, err := f.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review,
				metav1.CreateOptions{})
			if err != nil {
				return err
			}
			if !got.Status.Allowed {
				c.Denied = append(c.Denied, "create "+strings.TrimSuffix(resource+"."+group, "."))
			}
		}
	}
	return nil
}

// LinuxNodes names the nodes that run Linux, except those of leave.
func (c Cluster) LinuxNodes(leave []string) (names []string, err error) {
	if problem := c.Errors["nodes"]; problem != "" {
		return nil, errors.New("nodes: " + problem)
	}
	for _, n := range c.Nodes {
		if slices.Contains(leave, n.Name) || n.OS != "" && n.OS != "linux" {
			continue
		}
		names = append(names, n.Name)
	}
	return names, nil
}

// AgentImage is the image of the agents; empty if there is none.
func (c Cluster) AgentImage() (image string) {
	for _, p := range c.Agents {
		for _, k := range p.Containers {
			if k.Name == "agent" {
				image = k.Image
			}
		}
	}
	return image
}
