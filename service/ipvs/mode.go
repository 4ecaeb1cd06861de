package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/ipvs"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// Mode is the data plane. Its methods may be called concurrently; they exclude each other.
type Mode struct {
	conn      ipvs.Conn
	companion *nftables.Mode
	track     conntrack.Flusher
	opt       Options

	mu    sync.Mutex
	local service.NodeFacts
	addrs []netip.Addr // of the node, that serve node ports
	// own are all addresses of the node's other interfaces. They are never added to Wayleave's, from which they could
	// be removed.
	own    []netip.Addr
	synced bool
	owners *service.OwnershipTable
	// unsure are Services of which a part was refused: their state in the kernel is unknown until a Sync reads it.
	// Other Services need no Sync.
	unsure map[model.Name]bool
	// users counts the plans that need an address.
	users map[netip.Addr]int
	// draining are backends that get no new connections, with the time when they are removed.
	draining map[ipvs.Key]map[netip.AddrPort]time.Time
	gone     map[service.Frontend]bool
	sweep    bool
	// unchecked are the Services whose backends Run has yet to look at in this pass.
	unchecked []model.Name
}

// Options are the settings of the mode.
type Options struct {
	// Scheduler is one of Schedulers.
	Scheduler string
	// Drain is how long connections to a former endpoint may continue, and connections of virtual servers when another
	// mode takes over.
	Drain time.Duration
	// BypassIPVS reports which Services nftables serves instead of virtual servers; nil for none. A node that serves
	// DNS itself must get the query before IPVS does.
	BypassIPVS func(model.Name) bool
}

var _ service.Mode = (*Mode)(nil)

// New creates the data plane; the kernel is not changed before Sync. companion must come from
// nftables.NewIPVSCompanion, with the same BypassIPVS.
func New(conn ipvs.Conn, companion *nftables.Mode, track conntrack.Flusher, opt Options) *Mode {
	return &Mode{conn: conn, companion: companion, track: track, opt: opt, owners: service.NewOwnershipTable(),
		unsure: map[model.Name]bool{}, users: map[netip.Addr]int{},
		draining: map[ipvs.Key]map[netip.AddrPort]time.Time{}, gone: map[service.Frontend]bool{}}
}

// SetNodeFacts implements service.Mode.
func (m *Mode) SetNodeFacts(l service.NodeFacts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = l
	m.companion.SetNodeFacts(l)
}

// ApplyNodeFacts implements service.Mode.
func (m *Mode) ApplyNodeFacts(ctx context.Context, l service.NodeFacts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = l
	if err := m.companion.ApplyNodeFacts(ctx, l); err != nil || !m.synced {
		return err
	}
	own, addrs, err := m.findAddrs(ctx)
	if err != nil || slices.Equal(addrs, m.addrs) && slices.Equal(own, m.own) {
		return err
	}
	return m.sync(ctx, maps.Clone(m.owners.Want))
}

// findAddrs finds the addresses of the node's other interfaces, sorted, and those of them that serve node ports now.
func (m *Mode) findAddrs(ctx context.Context) (own, nodePorts []netip.Addr, err error) {
	own, err = m.conn.Local(ctx, Link)
	if err != nil {
		return nil, nil, fmt.Errorf("service: %w", err)
	}
	nodePorts = nodeAddrs(m.local, own)
	own = slices.Clone(own)
	slices.SortFunc(own, netip.Addr.Compare)
	return own, nodePorts, nil
}

func (m *Mode) node() node { return node{m.opt.Scheduler, m.addrs} }

// wanted returns the virtual servers of a plan.
func (m *Mode) wanted(k model.Name, p service.Plan) map[ipvs.Key]server {
	out := map[ipvs.Key]server{}
	if m.opt.BypassIPVS != nil && m.opt.BypassIPVS(k) {
		return out
	}
	servers(p, m.node(), func(s server) { out[s.Key] = s })
	return out
}

func (m *Mode) addresses(k model.Name, p service.Plan, emit func(netip.Addr)) {
	if m.opt.BypassIPVS == nil || !m.opt.BypassIPVS(k) {
		addresses(p, func(a netip.Addr) {
			if _, is := slices.BinarySearchFunc(m.own, a, netip.Addr.Compare); !is {
				emit(a)
			}
		})
	}
}

// Apply implements reconcile.Target.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.synced || m.isUnsure(set, del) {
		plans := maps.Clone(m.owners.Want)
		maps.Copy(plans, set)
		for _, k := range del {
			delete(plans, k)
		}
		return m.sync(ctx, plans)
	}
	todo := make(map[model.Name]*service.Plan, len(set)+len(del))
	for k, p := range set {
		todo[k] = &p
	}
	for _, k := range del {
		todo[k] = nil
	}
	d := m.owners.Begin()
	keys := d.Change(todo)
	failed := reconcile.KeyErrors[model.Name](d.Failed())
	refused := reconcile.KeyErrors[model.Name]{}
	m.synced = false // until all of it is in the kernel
	// New servers and addresses come first, then the rules that lead to them; last, unused ones are removed. A server
	// may pass from one Service to another, so both steps consider all keys.
	before, after := map[ipvs.Key]server{}, map[ipvs.Key]server{}
	for _, k := range keys {
		maps.Copy(before, m.wanted(k, m.owners.Plans[k]))
		if p := d.Plans[k]; p != nil {
			maps.Copy(after, m.wanted(k, *p))
		}
	}
	for _, k := range keys {
		if err := m.raise(ctx, k, d.Plans[k], before); err != nil {
			refused[k] = err
		}
	}
	if err := m.applyCompanion(ctx, d, keys, refused); err != nil {
		return err
	}
	for _, k := range keys {
		if err := m.lower(ctx, k, m.owners.Plans[k], after); err != nil {
			refused[k] = err
		}
	}
	gone, udp := d.GoneUDP()
	maps.Copy(m.gone, gone)
	m.sweep = m.sweep || udp
	m.owners.Accept(d)
	m.synced = true
	m.doubt(refused)
	maps.Copy(failed, refused)
	return m.finish(ctx, failed)
}

// isUnsure reports whether a Sync must read the state of one of the keys.
func (m *Mode) isUnsure(set map[model.Name]service.Plan, del []model.Name) bool {
	for k := range m.unsure {
		if _, ok := set[k]; ok || slices.Contains(del, k) {
			return true
		}
	}
	return false
}

// doubt records keys of which a part was refused.
func (m *Mode) doubt(refused reconcile.KeyErrors[model.Name]) {
	for k := range refused {
		m.unsure[k] = true
	}
}

// applyCompanion applies the plans to the companion tables.
func (m *Mode) applyCompanion(ctx context.Context, d *service.OwnershipChange, keys []model.Name,
	refused reconcile.KeyErrors[model.Name]) error {
	set, del := map[model.Name]service.Plan{}, []model.Name{}
	for _, k := range keys {
		if p := d.Plans[k]; p != nil {
			set[k] = *p
		} else {
			del = append(del, k)
		}
	}
	err := m.companion.Apply(ctx, set, del)
	var byKey reconcile.KeyErrors[model.Name]
	if errors.As(err, &byKey) {
		maps.Copy(refused, byKey)
		return nil
	}
	return err
}

// raise adds the servers, backends and addresses of a plan that are missing. old are the servers of all keys that
// change.
func (m *Mode) raise(ctx context.Context, k model.Name, p *service.Plan, old map[ipvs.Key]server) error {
	if p == nil {
		return nil
	}
	var errs []error
	for key, s := range m.wanted(k, *p) {
		had, ok := old[key]
		if !ok || had.Server != s.Server {
			errs = append(errs, m.conn.SetServer(ctx, s.Server))
		}
		for _, at := range s.backends {
			_, drains := m.draining[key][at]
			if ok && !drains && slices.Contains(had.backends, at) {
				continue
			}
			errs = append(errs, m.conn.SetBackend(ctx, key, ipvs.Backend{At: at, Weight: 1}))
			delete(m.draining[key], at)
		}
	}
	m.addresses(k, *p, func(a netip.Addr) {
		if m.users[a]++; m.users[a] == 1 {
			errs = append(errs, m.conn.SetAddress(ctx, Link, a))
		}
	})
	return errors.Join(errs...)
}

// lower removes what a plan no longer has, unless another plan has it now.
func (m *Mode) lower(ctx context.Context, k model.Name, old service.Plan, now map[ipvs.Key]server) error {
	var errs []error
	m.addresses(k, old, func(a netip.Addr) {
		if m.users[a]--; m.users[a] == 0 {
			delete(m.users, a)
			errs = append(errs, m.conn.DelAddress(ctx, Link, a))
		}
	})
	for key, s := range m.wanted(k, old) {
		n, ok := now[key]
		if !ok {
			delete(m.draining, key)
			errs = append(errs, m.conn.DelServer(ctx, key))
			continue
		}
		for _, at := range s.backends {
			if !slices.Contains(n.backends, at) {
				errs = append(errs, m.retire(ctx, key, at))
			}
		}
	}
	return errors.Join(errs...)
}

// retire drains a backend: UDP clients move at once, TCP connections continue.
func (m *Mode) retire(ctx context.Context, key ipvs.Key, at netip.AddrPort) error {
	// The scheduler dh has no second choice: the backend that it chooses must exist.
	if key.Protocol == model.UDP || m.opt.Scheduler == "dh" {
		return m.conn.DelBackend(ctx, key, at)
	}
	if m.draining[key] == nil {
		m.draining[key] = map[netip.AddrPort]time.Time{}
	}
	m.draining[key][at] = time.Now().Add(m.opt.Drain)
	return m.conn.SetBackend(ctx, key, ipvs.Backend{At: at, Weight: 0})
}

// finish removes old UDP flows: the next packet of such a client starts a new flow, for which IPVS chooses an existing
// backend.
func (m *Mode) finish(ctx context.Context, failed reconcile.KeyErrors[model.Name]) error {
	if m.sweep {
		if err := m.track.FlushWhere(ctx, m.owners.Stale(m.gone)); err != nil {
			return fmt.Errorf("service: programmed, but UDP clients of former endpoints are not moved: %w", err)
		}
		m.sweep, m.gone = false, map[service.Frontend]bool{}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// Sync implements reconcile.Target: it reads servers, backends and addresses, and
// changes only what differs.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sync(ctx, plans)
}

func (m *Mode) sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.synced = false
	owners, conflicts := service.OwnersOf(plans)
	m.owners = owners
	failed, refused := reconcile.KeyErrors[model.Name](conflicts), reconcile.KeyErrors[model.Name]{}
	var err error
	if m.own, m.addrs, err = m.findAddrs(ctx); err != nil {
		return err
	}
	have, err := m.read(ctx)
	if err != nil {
		return err
	}
	m.settle(ctx, have, refused)
	if err := m.companion.Sync(ctx, owners.Plans); err != nil {
		var byKey reconcile.KeyErrors[model.Name]
		if !errors.As(err, &byKey) {
			return err
		}
		maps.Copy(refused, byKey)
	}
	if err := m.prune(ctx, have); err != nil {
		return err
	}
	m.synced, m.sweep = true, true
	m.unsure = map[model.Name]bool{}
	m.doubt(refused)
	maps.Copy(failed, refused)
	return m.finish(ctx, failed)
}

// found is the kernel's state.
type found struct {
	servers map[ipvs.Key]ipvs.Server
	// ours are the servers that a service proxy created.
	ours  map[ipvs.Key]bool
	addrs []netip.Addr
	// proxy means that kube-proxy's interface exists.
	proxy bool
}

// proxyLink is kube-proxy's interface.
const proxyLink = "kube-ipvs0"

// read finds servers, and distinguishes those of service proxies from others: their addresses are on the interface of
// Wayleave or kube-proxy; or they are on an address of the node, at a node port of the companion tables, or in the
// default range if an interface shows that a proxy ran.
func (m *Mode) read(ctx context.Context) (found, error) {
	f := found{servers: map[ipvs.Key]ipvs.Server{}, ours: map[ipvs.Key]bool{}}
	list, err := m.conn.Servers(ctx)
	if err != nil {
		return f, fmt.Errorf("service: %w", err)
	}
	var made bool
	var theirs []netip.Addr
	if f.addrs, made, err = m.conn.Addresses(ctx, Link); err == nil {
		theirs, f.proxy, err = m.conn.Addresses(ctx, proxyLink)
	}
	if err != nil {
		return f, fmt.Errorf("service: %w", err)
	}
	ports := map[service.Frontend]bool{}
	if made {
		known, err := m.companion.NodePorts(ctx)
		if err != nil {
			return f, err
		}
		for _, p := range known {
			ports[service.Frontend{Protocol: p.Protocol, Port: p.Port}] = true
		}
	}
	own, err := m.conn.Local(ctx, Link)
	if err != nil {
		return f, fmt.Errorf("service: %w", err)
	}
	for _, s := range list {
		f.servers[s.Key] = s
		local := slices.Contains(own, s.Addr)
		f.ours[s.Key] = slices.Contains(f.addrs, s.Addr) || slices.Contains(theirs, s.Addr) ||
			local && ports[service.Frontend{Protocol: s.Protocol, Port: s.Port}] || local && (made || f.proxy) &&
			s.Port >= 30000 && s.Port <= 32767
	}
	return f, nil
}

// settle adds what is missing.
func (m *Mode) settle(ctx context.Context, have found, refused reconcile.KeyErrors[model.Name]) {
	draining := m.draining
	m.users, m.draining = map[netip.Addr]int{}, map[ipvs.Key]map[netip.AddrPort]time.Time{}
	for k, p := range m.owners.Plans {
		var errs []error
		for key, s := range m.wanted(k, p) {
			errs = append(errs, m.settleServer(ctx, key, s, have, draining[key]))
		}
		m.addresses(k, p, func(a netip.Addr) {
			if m.users[a]++; m.users[a] == 1 && !slices.Contains(have.addrs, a) {
				errs = append(errs, m.conn.SetAddress(ctx, Link, a))
			}
		})
		if err := errors.Join(errs...); err != nil {
			refused[k] = err
		}
	}
}

func (m *Mode) settleServer(ctx context.Context, key ipvs.Key, s server, have found,
	since map[netip.AddrPort]time.Time) error {
	old, there := have.servers[key]
	if !there || old != s.Server {
		if err := m.conn.SetServer(ctx, s.Server); err != nil {
			return err
		}
	}
	known := map[netip.AddrPort]int{}
	if there {
		list, err := m.conn.Backends(ctx, key)
		if err != nil {
			return err
		}
		for _, b := range list {
			known[b.At] = b.Weight
		}
	}
	var errs []error
	for _, at := range s.backends {
		if w, ok := known[at]; !ok || w != 1 {
			errs = append(errs, m.conn.SetBackend(ctx, key, ipvs.Backend{At: at, Weight: 1}))
		}
		delete(known, at)
	}
	for at := range known {
		errs = append(errs, m.retire(ctx, key, at))
		if t, ok := since[at]; ok && m.draining[key] != nil {
			m.draining[key][at] = t
		}
	}
	return errors.Join(errs...)
}

// prune removes servers and addresses that no plan needs, and the interface of a stopped kube-proxy.
func (m *Mode) prune(ctx context.Context, have found) error {
	want := map[ipvs.Key]bool{}
	for k, p := range m.owners.Plans {
		for key := range m.wanted(k, p) {
			want[key] = true
		}
	}
	var errs []error
	for key := range have.servers {
		if want[key] || !have.ours[key] {
			continue
		}
		if key.Protocol == model.UDP {
			m.gone[service.Frontend{Addr: key.Addr, Protocol: model.UDP, Port: key.Port}] = true
		}
		errs = append(errs, m.conn.DelServer(ctx, key))
	}
	for _, a := range have.addrs {
		if m.users[a] == 0 {
			errs = append(errs, m.conn.DelAddress(ctx, Link, a))
		}
	}
	if have.proxy { // all desired addresses are on our interface
		errs = append(errs, m.conn.DelLink(ctx, proxyLink))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return nil
}

// Watch implements service.Mode. The kernel does not report changes of virtual servers, so Run polls them.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) { return m.companion.Watch(ctx) }

// Run removes drained backends whose connections have ended, and reverts foreign changes, until ctx ends.
func (m *Mode) Run(ctx context.Context) error {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		start := time.Now()
		m.look(ctx)
		t.Reset(pace(time.Since(start)))
	}
}

// pace returns the pause after a poll that took the given time. With many Services a poll is expensive; polling takes
// at most a twentieth of a core.
func pace(took time.Duration) time.Duration { return max(time.Second, 20*took) }

// look is one poll of Run. Failed steps are retried in the next poll.
func (m *Mode) look(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.synced {
		return
	}
	m.drained(ctx)
	servers, err := m.conn.Servers(ctx)
	if err != nil {
		return
	}
	own, addrs, err := m.findAddrs(ctx)
	if err != nil {
		return
	}
	on, _, err := m.conn.Addresses(ctx, Link)
	if err != nil {
		return
	}
	there, linked := map[ipvs.Key]ipvs.Server{}, map[netip.Addr]bool{}
	for _, s := range servers {
		there[s.Key] = s
	}
	for _, a := range on {
		linked[a] = true
	}
	same := slices.Equal(addrs, m.addrs) && slices.Equal(own, m.own)
	for k, p := range m.owners.Plans {
		if m.unsure[k] {
			continue // it has its retry
		}
		for key, s := range m.wanted(k, p) {
			same = same && there[key] == s.Server
		}
		m.addresses(k, p, func(a netip.Addr) { same = same && linked[a] })
	}
	if !same || !m.backendsAreThere(ctx) {
		_ = m.sync(ctx, maps.Clone(m.owners.Want)) // tried again in the next round
	}
}

// perLook is the number of Services whose backends are read in one poll: each is a call to the kernel.
const perLook = 100

// backendsAreThere checks the backends of the next unchecked Services. Backends that cannot be read count as present.
func (m *Mode) backendsAreThere(ctx context.Context) bool {
	if len(m.unchecked) == 0 {
		m.unchecked = slices.Collect(maps.Keys(m.owners.Plans))
	}
	n := min(len(m.unchecked), perLook)
	now := m.unchecked[:n]
	m.unchecked = m.unchecked[n:]
	for _, k := range now {
		p, ok := m.owners.Plans[k]
		if !ok || m.unsure[k] {
			continue
		}
		for key, s := range m.wanted(k, p) {
			have, err := m.conn.Backends(ctx, key)
			if err != nil {
				continue
			}
			missing := make(map[netip.AddrPort]bool, len(s.backends))
			for _, at := range s.backends {
				missing[at] = true
			}
			for _, b := range have {
				_, drains := m.draining[key][b.At]
				if ours := missing[b.At] && b.Weight == 1; !ours && (b.Weight != 0 || !drains) {
					return false
				}
				delete(missing, b.At)
			}
			if len(missing) > 0 {
				return false
			}
		}
	}
	return true
}

func (m *Mode) drained(ctx context.Context) {
	for key, list := range m.draining {
		have, err := m.conn.Backends(ctx, key)
		if err != nil {
			continue
		}
		for at, until := range list {
			i := slices.IndexFunc(have, func(b ipvs.Backend) bool { return b.At == at })
			if i >= 0 && have[i].Connections > 0 && time.Now().Before(until) {
				continue
			}
			if err := m.conn.DelBackend(ctx, key, at); err == nil {
				delete(list, at)
			}
		}
		if len(list) == 0 {
			delete(m.draining, key)
		}
	}
}

// Leave lets another mode, which must be in place, handle new connections. It waits until the connections of the
// virtual servers have ended, at most for Drain, and removes everything.
func (m *Mode) Leave(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, err := m.read(ctx)
	if err != nil {
		return err
	}
	m.synced = false
	var errs []error
	for key := range have.servers {
		// Flows of UDP are served until they are forgotten below: a backend without weight would drop what they send.
		if !have.ours[key] || key.Protocol == model.UDP {
			continue
		}
		list, err := m.conn.Backends(ctx, key)
		errs = append(errs, err)
		for _, b := range list {
			errs = append(errs, m.conn.SetBackend(ctx, key, ipvs.Backend{At: b.At}))
		}
	}
	// The tables would become stale from now on. Connections do not need them.
	errs = append(errs, m.companion.Remove(ctx))
	// UDP clients move at once: nothing shows when they have ended.
	errs = append(errs, m.track.FlushWhere(ctx, func(dst, backend netip.AddrPort) bool {
		return have.ours[ipvs.Key{Addr: dst.Addr(), Protocol: model.UDP, Port: dst.Port()}] && backend != dst
	}))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	if err := m.wait(ctx, have); err != nil {
		return err
	}
	return m.remove(ctx, have)
}

// wait returns when no connections are left, or after Drain.
func (m *Mode) wait(ctx context.Context, have found) error {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for limit := time.Now().Add(m.opt.Drain); time.Now().Before(limit); {
		if n, err := m.connections(ctx, have); err != nil || n == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}

func (m *Mode) connections(ctx context.Context, have found) (n int, err error) {
	for key := range have.servers {
		if !have.ours[key] || key.Protocol == model.UDP {
			continue
		}
		list, err := m.conn.Backends(ctx, key)
		if err != nil {
			return 0, fmt.Errorf("service: %w", err)
		}
		for _, b := range list {
			n += b.Active
		}
	}
	return n, nil
}

// Remove implements service.Mode: it ends the connections of virtual servers.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = false
	have, err := m.read(ctx)
	if err != nil {
		return err
	}
	return m.remove(ctx, have)
}

func (m *Mode) remove(ctx context.Context, have found) error {
	var errs []error
	for key := range have.servers {
		if have.ours[key] {
			errs = append(errs, m.conn.DelServer(ctx, key))
		}
	}
	errs = append(errs, m.conn.DelLink(ctx, Link), m.conn.DelLink(ctx, proxyLink), m.companion.Remove(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return nil
}

// Remains implements service.Mode.
func (m *Mode) Remains(ctx context.Context) (out []string, err error) {
	have, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	for key := range have.servers {
		if have.ours[key] {
			out = append(out, "virtual server "+key.String())
		}
	}
	slices.Sort(out)
	for _, link := range []string{Link, proxyLink} {
		if _, made, err := m.conn.Addresses(ctx, link); err != nil {
			return nil, fmt.Errorf("service: %w", err)
		} else if made {
			out = append(out, "link "+link)
		}
	}
	tables, err := m.companion.Remains(ctx)
	return append(out, tables...), err
}
