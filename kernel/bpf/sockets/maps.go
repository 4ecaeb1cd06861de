package sockets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"wayleave.dev/model"
)

// batch is the number of entries of one system call.
const batch = 8192

// Frontends implements Conn.
func (k *Kernel) Frontends(context.Context) ([]Frontend, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return nil, errors.New("sockets: not attached")
	}
	k.have = nil
	if err := k.read(); err != nil {
		return nil, err
	}
	out := make([]Frontend, 0, len(k.have))
	for _, s := range k.have {
		out = append(out, s.Frontend)
	}
	return out, nil
}

// read fills have from the maps, and removes slots and members of no frontend.
func (k *Kernel) read() error {
	if k.have != nil {
		return nil
	}
	have, generations := map[Key]state{}, map[uint32]Key{}
	err := each(k.loaded.Maps["frontends"], func(key frontendKey, v frontendValue) {
		at := key.decode()
		have[at] = state{Frontend{Key: at, PodsOnly: v.Flags&podsOnly != 0, Backends: nil}, v.Generation}
		generations[v.Generation] = at
		k.next = max(k.next, v.Generation+1)
	})
	if err != nil {
		return fmt.Errorf("sockets: read frontends: %w", err)
	}
	var staleSlots []slotKey
	var staleMembers []memberKey
	err = errors.Join(each(k.loaded.Maps["slots"], func(key slotKey, b backend) {
		at, ok := generations[key.Generation]
		if !ok {
			staleSlots = append(staleSlots, key)
			return
		}
		s := have[at]
		s.Backends = append(s.Backends, addrPort(b.Addr, b.Port))
		have[at] = s
	}), each(k.loaded.Maps["members"], func(key memberKey, _ uint32) {
		if _, ok := generations[key.Generation]; !ok {
			staleMembers = append(staleMembers, key)
		}
	}))
	if err != nil {
		return fmt.Errorf("sockets: read slots: %w", err)
	}
	for at, s := range have {
		slices.SortFunc(s.Backends, netip.AddrPort.Compare)
		have[at] = s
	}
	if err := errors.Join(remove(k.loaded.Maps["slots"], staleSlots),
		remove(k.loaded.Maps["members"], staleMembers)); err != nil {
		return fmt.Errorf("sockets: remove stale slots: %w", err)
	}
	k.have, k.used = have, map[uint32]bool{}
	for g := range generations {
		k.used[g] = true
	}
	return nil
}

// Set implements Conn.
func (k *Kernel) Set(_ context.Context, list []Frontend) map[Key]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := errors.New("sockets: not attached")
	if k.loaded != nil {
		err = k.read()
	}
	failed := map[Key]error{}
	if err == nil {
		if err = k.set(list); err == nil {
			return failed
		}
		// One by one, to find those that the kernel refuses.
		for _, f := range list {
			if err := k.set([]Frontend{f}); err != nil {
				failed[f.Key] = err
			}
		}
		return failed
	}
	for _, f := range list {
		failed[f.Key] = err
	}
	return failed
}

// set writes new generations of frontends, and removes the former ones.
func (k *Kernel) set(list []Frontend) error {
	var made, former change
	var keys []frontendKey
	var values []frontendValue
	states := make([]state, 0, len(list))
	for _, f := range list {
		s := state{f, k.generation()}
		states = append(states, s)
		made.add(s)
		keys = append(keys, encodeKey(f.Key))
		values = append(values, frontendValue{s.generation, uint32(len(f.Backends)), encodeFlags(f)})
		if old, ok := k.have[f.Key]; ok {
			former.add(old)
		}
	}
	err := errors.Join(k.putMembers(made), put(k.loaded.Maps["slots"], made.slots, made.backends))
	if err == nil {
		err = put(k.loaded.Maps["frontends"], keys, values)
	}
	if err != nil {
		// Frontends of the list may lead to the new slots, which must stay then; the next read finds out.
		k.have = nil
		return errors.Join(fmt.Errorf("sockets: %w", err), k.read())
	}
	for _, s := range states {
		if old, ok := k.have[s.Key]; ok {
			delete(k.used, old.generation)
		}
		k.have[s.Key] = s
	}
	return k.drop(former)
}

func (k *Kernel) putMembers(c change) error {
	ones := make([]uint32, len(c.members))
	for i := range ones {
		ones[i] = 1
	}
	return put(k.loaded.Maps["members"], c.members, ones)
}

// drop removes slots that no frontend leads to.
func (k *Kernel) drop(c change) error {
	if err := errors.Join(remove(k.loaded.Maps["slots"], c.slots),
		remove(k.loaded.Maps["members"], c.members)); err != nil {
		k.have = nil // the next read removes them
		return fmt.Errorf("sockets: former slots: %w", err)
	}
	return nil
}

// Delete implements Conn.
func (k *Kernel) Delete(_ context.Context, list []Key) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return errors.New("sockets: not attached")
	}
	if err := k.read(); err != nil {
		return err
	}
	var former change
	var keys []frontendKey
	for _, at := range list {
		if s, ok := k.have[at]; ok {
			former.add(s)
			keys = append(keys, encodeKey(at))
		}
	}
	if err := remove(k.loaded.Maps["frontends"], keys); err != nil {
		k.have = nil
		return fmt.Errorf("sockets: %w", err)
	}
	for _, at := range list {
		if s, ok := k.have[at]; ok {
			delete(k.used, s.generation)
			delete(k.have, at)
		}
	}
	return k.drop(former)
}

// generation returns one that no frontend has. After 2³² changes numbers start again.
func (k *Kernel) generation() uint32 {
	for k.used[k.next] {
		k.next++
	}
	g := k.next
	k.used[g] = true
	k.next++
	return g
}

// SetNode implements Conn.
func (k *Kernel) SetNode(_ context.Context, n Node) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.node = n
	if k.loaded == nil {
		return nil
	}
	return k.writeNode()
}

// writeNode writes the facts of the node.
func (k *Kernel) writeNode() error {
	host, err := cookie(k.NSFD)
	if err != nil {
		return err
	}
	v := nodeValue{Host: host}
	if k.node.Host {
		v.Flags = translateHost
	}
	if err := k.loaded.Maps["nodes"].Put(uint32(0), v); err != nil {
		return fmt.Errorf("sockets: node: %w", err)
	}
	want := map[podKey]bool{}
	for _, p := range k.node.Pods {
		want[encodePrefix(p)] = true
	}
	have := map[podKey]bool{}
	if err := each(k.loaded.Maps["pods"], func(key podKey, _ uint32) { have[key] = true }); err != nil {
		return fmt.Errorf("sockets: pods: %w", err)
	}
	for p := range want {
		if !have[p] {
			err = errors.Join(err, k.loaded.Maps["pods"].Put(p, uint32(1)))
		}
	}
	for p := range have {
		if !want[p] {
			err = errors.Join(err, k.loaded.Maps["pods"].Delete(p))
		}
	}
	if err != nil {
		return fmt.Errorf("sockets: pods: %w", err)
	}
	return nil
}

// change are entries to add or remove.
type change struct {
	slots    []slotKey
	backends []backend
	members  []memberKey
}

func (c *change) add(s state) {
	for i, at := range s.Backends {
		b := encodeBackend(at)
		c.slots = append(c.slots, slotKey{s.generation, uint32(i)})
		c.backends = append(c.backends, b)
		if s.Protocol == model.UDP {
			c.members = append(c.members, memberKey{s.generation, b})
		}
	}
}

// put writes entries.
func put[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(batch, len(keys))
		if _, err := m.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			if !errors.Is(err, ebpf.ErrNotSupported) {
				return full(err)
			}
			for i := range n {
				if err := m.Put(keys[i], values[i]); err != nil {
					return full(err)
				}
			}
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

func full(err error) error {
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// remove deletes entries; one that does not exist is no error.
func remove[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := m.BatchDelete(keys[:n], nil)
		switch {
		case err == nil:
		case errors.Is(err, ebpf.ErrKeyNotExist) && done < n:
			n = done + 1
		case errors.Is(err, ebpf.ErrNotSupported):
			for _, key := range keys[:n] {
				if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return err
				}
			}
		default:
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// each reads all entries.
func each[K comparable, V any](m *ebpf.Map, fn func(K, V)) error {
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for first := true; ; first = false {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			if first && errors.Is(err, ebpf.ErrNotSupported) {
				return eachSlowly(m, fn)
			}
			return err
		}
		for i := range n {
			fn(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}

func eachSlowly[K comparable, V any](m *ebpf.Map, fn func(K, V)) error {
	seen := map[K]V{}
	var key K
	var value V
	it := m.Iterate()
	for it.Next(&key, &value) {
		seen[key] = value
	}
	for _, key := range slices.Collect(maps.Keys(seen)) {
		fn(key, seen[key])
	}
	return it.Err()
}

// Memory returns how many bytes the maps use in the kernel, as far as it tells.
func (k *Kernel) Memory() (bytes uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return 0, nil
	}
	for name, m := range k.loaded.Maps {
		info, err := m.Info()
		if err != nil {
			return 0, fmt.Errorf("sockets: map %s: %w", name, err)
		}
		n, _ := info.Memlock()
		bytes += n
	}
	return bytes, nil
}
