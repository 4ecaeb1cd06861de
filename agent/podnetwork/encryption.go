package podnetwork

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/podnetwork/wireguard/frames"
	"wayleave.dev/writeback"
)

// linger is how long the devices stay after encryption was switched off: other nodes notice within a second or two
// that this one has no keys any more, unless the API server does not answer.
const linger = 30 * time.Second

// encryptionOf is how the node encrypts, by its settings, and what exchanges its keys.
func encryptionOf(n *agent.Node) (podnetwork.Encryption, *leaseKeys, error) {
	keys := &leaseKeys{on: n.Config.Encrypts(), TunnelKeys: &writeback.TunnelKeys{Client: n.Client.Interface,
		Namespace: writeback.PeersNamespace, Node: n.Name, Log: n.Log}}
	e := podnetwork.Encryption{Preferred: n.Config.Encryption == config.EncryptionPreferred,
		Strict: n.Config.Encryption == config.EncryptionStrict, Nodes: n.Config.PodNetwork.EncryptNodes,
		Port: uint16(n.Config.PodNetwork.WireGuardPort), Period: n.Config.PodNetwork.KeyRotation, Keys: keys,
		Linger: linger}
	devices, err := devicesOf(n)
	e.Devices = devices
	return e, keys, err
}

// devicesOf makes the devices of the kernel, or of processes.
func devicesOf(n *agent.Node) (wireguard.Net, error) {
	kernel, err := wireguard.NewKernel(int(n.NetNS.Fd()), n.Sysctl)
	if err != nil {
		return nil, err
	}
	if !n.Config.Encrypts() {
		return kernel, nil
	}
	if n.Config.PodNetwork.WireGuard != "userspace" {
		err := kernel.Probe()
		if err == nil {
			return kernel, nil
		}
		if !errors.Is(err, wireguard.ErrNotInKernel) || n.Config.PodNetwork.WireGuard == "kernel" {
			return nil, fmt.Errorf("setting podnetwork.wireguard: found %s: %w", n.Config.PodNetwork.WireGuard, err)
		}
	}
	n.Log.Info("WireGuard runs in processes of the agent", "setting", n.Config.PodNetwork.WireGuard)
	return wireguard.NewUser(int(n.NetNS.Fd()), n.Sysctl, n.Run, n.Logs, frames.Process)
}

// leaseKeys exchanges the keys by the Leases of nodes. While encryption is off, it only withdraws those of this node.
type leaseKeys struct {
	*writeback.TunnelKeys
	on bool
}

var _ podnetwork.Keys = (*leaseKeys)(nil)

// Run exchanges keys until ctx ends.
func (k *leaseKeys) Run(ctx context.Context) error {
	if k.on {
		return k.TunnelKeys.Run(ctx)
	}
	return k.Withdraw(ctx)
}

// Publish implements podnetwork.Keys.
func (k *leaseKeys) Publish(p plan.Published) {
	var list []writeback.TunnelKey
	if !p.IsZero() {
		for i, key := range p.Keys {
			list = append(list, writeback.TunnelKey{Key: key.String(), Port: p.Ports[i]})
		}
	}
	k.TunnelKeys.Publish(list)
}

// Nodes implements podnetwork.Keys.
func (k *leaseKeys) Nodes() (map[string]plan.Published, bool, error) {
	all, ok, err := k.TunnelKeys.Nodes()
	return publishedBy(all), ok, err
}

// publishedBy reads the keys of nodes. Those that are not valid are left out.
func publishedBy(all map[string][]writeback.TunnelKey) map[string]plan.Published {
	out := make(map[string]plan.Published, len(all))
	for node, list := range all {
		var p plan.Published
		for i, key := range list[:min(len(list), plan.Devices)] {
			if parsed, err := wireguard.ParseKey(key.Key); err == nil {
				p.Keys[i], p.Ports[i] = parsed, key.Port
			}
		}
		if !p.IsZero() {
			out[node] = p
		}
	}
	return out
}

// encryptionRow is a line of `wayleave status --encryption`.
type encryptionRow struct {
	podnetwork.EncryptedPeer
	// Dropped are packets of pods that were not encrypted, by strict encryption.
	Dropped plan.Dropped `json:"dropped"`
	// Plain are packets between pods that passed the link Uplink unencrypted. They are of all nodes together, and the
	// same in each row.
	Plain  uint64 `json:"plain"`
	Uplink string `json:"uplink"`
}

// List implements agent.Lister.
func (f *Feature) List() agent.List {
	return agent.List{Name: "encryption", Text: encryptionTable,
		Help: "per node: last handshake, bytes, and packets of pods that were not encrypted"}
}

// countWithin bounds the time for counters of the kernel.
const countWithin = 2 * time.Second

// Rows implements agent.Lister.
func (f *Feature) Rows(*agent.Node, model.Snapshot) any {
	network := f.network.Load()
	if network == nil || network.Encryption() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), countWithin)
	defer cancel()
	counts, err := network.PlainCounts(ctx)
	rows := []encryptionRow{}
	for _, p := range network.Encryption().Peers {
		row := encryptionRow{EncryptedPeer: p, Dropped: counts.Dropped[p.Node], Plain: counts.Seen,
			Uplink: counts.Uplink}
		if err != nil {
			row.Note = strings.TrimPrefix(row.Note+"; "+err.Error(), "; ")
		}
		rows = append(rows, row)
	}
	return rows
}

// encryptionTable is the text of the rows.
func encryptionTable(raw json.RawMessage, now time.Time) (string, error) {
	if raw == nil {
		return "nothing is encrypted: the setting encryption is none, or there is no other node\n", nil
	}
	var rows []encryptionRow
	if err := json.Unmarshal(raw, &rows); err != nil {
		return "", err
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tDEVICE\tHANDSHAKE\tRECEIVED\tSENT\tDROPPED\tNOTE")
	for _, r := range rows {
		device, handshake := "none", "never"
		if r.Device != "" {
			device = r.Device
		}
		if !r.Handshake.IsZero() {
			handshake = now.Sub(r.Handshake).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", r.Node, device, handshake, r.Received, r.Sent,
			r.Dropped.In+r.Dropped.Out+r.Dropped.NoKey, r.Note)
	}
	if err := t.Flush(); err != nil {
		return "", err
	}
	if len(rows) > 0 {
		fmt.Fprintf(&b, "unencrypted packets between pods seen on %s: %d\n", rows[0].Uplink, rows[0].Plain)
	}
	return b.String(), nil
}

// encryptionMetrics are read from the kernel when they are asked for.
type encryptionMetrics struct{ f *Feature }

var (
	handshakeDesc = prometheus.NewDesc("wayleave_wireguard_latest_handshake_seconds",
		"Unix time of the last handshake with a node, 0 for none.", []string{"node"}, nil)
	receivedDesc = prometheus.NewDesc("wayleave_wireguard_received_bytes_total",
		"Bytes of encrypted packets from a node, since its keys are known.", []string{"node"}, nil)
	sentDesc = prometheus.NewDesc("wayleave_wireguard_sent_bytes_total",
		"Bytes of encrypted packets to a node, since its keys are known.", []string{"node"}, nil)
	reachedDesc = prometheus.NewDesc("wayleave_wireguard_encrypts",
		"Whether packets of pods to a node are encrypted: 1, or 0 where they are dropped or sent unencrypted.",
		[]string{"node"}, nil)
	plainDroppedDesc = prometheus.NewDesc("wayleave_unencrypted_dropped_packets_total",
		"Packets of pods that strict encryption dropped, by direction: out, in, no-key (the node cannot be reached "+
			"encrypted).", []string{"node", "direction"}, nil)
	plainSeenDesc = prometheus.NewDesc("wayleave_unencrypted_seen_packets_total",
		"Unencrypted packets between pods of different nodes that passed the uplink.", nil, nil)
)

// Describe implements prometheus.Collector.
func (encryptionMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{handshakeDesc, receivedDesc, sentDesc, reachedDesc, plainDroppedDesc,
		plainSeenDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m encryptionMetrics) Collect(to chan<- prometheus.Metric) {
	network := m.f.network.Load()
	if network == nil || network.Encryption() == nil {
		return
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, p := range network.Encryption().Peers {
		seconds, reached := 0.0, 0.0
		if !p.Handshake.IsZero() {
			seconds = float64(p.Handshake.Unix())
		}
		if p.Device != "" {
			reached = 1
		}
		to <- prometheus.MustNewConstMetric(handshakeDesc, prometheus.GaugeValue, seconds, p.Node)
		to <- prometheus.MustNewConstMetric(reachedDesc, prometheus.GaugeValue, reached, p.Node)
		counter(receivedDesc, p.Received, p.Node)
		counter(sentDesc, p.Sent, p.Node)
	}
	ctx, cancel := context.WithTimeout(context.Background(), countWithin)
	defer cancel()
	counts, err := network.PlainCounts(ctx)
	if err != nil {
		return
	}
	counter(plainSeenDesc, counts.Seen)
	for node, d := range counts.Dropped {
		counter(plainDroppedDesc, d.Out, node, "out")
		counter(plainDroppedDesc, d.In, node, "in")
		counter(plainDroppedDesc, d.NoKey, node, "no-key")
	}
}
