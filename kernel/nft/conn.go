package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Batch is what one transaction does to one table, in the order of the fields.
type Batch struct {
	// Recreate removes the table first: its layout is of another version.
	Recreate bool
	// Base makes the table, its sets and chains where they are missing, and replaces the rules of its chains.
	Base bool
	// Sets are made in addition to those of the table.
	Sets []Set
	// Chains are made, with their rules, in addition to those of the table.
	Chains []Chain
	// Clear empties sets.
	Clear []string
	// Delete and Add elements by set.
	Delete, Add map[string][]Element
	// DropChains removes chains, once nothing refers to them.
	DropChains []string
	// DropSets removes sets, once no rule refers to them.
	DropSets []string
}

// Change is a batch and the table that it is for.
type Change struct {
	Table Table
	Batch Batch
}

// State is what the kernel has of a table.
type State struct {
	// Exists is false when there is no such table.
	Exists bool
	// Fits is false when a set has another type, or a chain another hook, than the table says. Only Recreate helps
	// then.
	Fits bool
	// Elements has a list for every set that is there, which may be empty.
	Elements map[string][]Element
	Chains   []string
}

// Conn changes nftables. Its methods may be called concurrently.
type Conn interface {
	// Read returns what the kernel has of the table.
	Read(ctx context.Context, t Table) (State, error)
	// Filled returns the elements of a set that rules fill.
	Filled(ctx context.Context, t Table, set string) ([]Element, error)
	// Counted returns how many packets the elements of a Counted set have seen, by key.
	Counted(ctx context.Context, t Table, set string) (map[string]uint64, error)
	// Forget removes elements of a set that rules fill. What ended or was changed
	// meanwhile is no error.
	Forget(ctx context.Context, t Table, set string, list []Element) error
	// Commit applies a batch, whole or not at all.
	Commit(ctx context.Context, t Table, b Batch) error
	// CommitAll applies batches to several tables, all or none of them.
	CommitAll(ctx context.Context, changes ...Change) error
	// Remove deletes the table; no error when there is none.
	Remove(ctx context.Context, t Table) error
	// Watch reports changes by others to tables of these names, until ctx ends. What this Conn commits is left out.
	Watch(ctx context.Context, names ...string) (<-chan struct{}, error)
}

// Kernel is the Conn of a network namespace.
type Kernel struct {
	// Changed, which may be nil, is called after each transaction, before its method returns; an error of Changed is
	// one of the method. It may not be set while methods run.
	Changed func() error

	netns int
	own   *ownPorts

	// mu guards the socket that transactions go by. It stays open: closing a socket
	// has the kernel wait, with nftables locked, until what was deleted is freed, which
	// is most of the time of a small transaction.
	mu   sync.Mutex
	kept *netlink.Conn
}

var _ Conn = (*Kernel)(nil)

// NewKernel makes a Conn for the namespace of this process, or with a descriptor
// other than 0 for that one. It fails when the kernel has no nf_tables.
func NewKernel(netns int) (*Kernel, error) {
	k := &Kernel{netns: netns, own: newOwnPorts()}
	c, err := k.conn()
	if err != nil {
		return nil, err
	}
	if _, err := c.ListTables(); err != nil {
		return nil, fmt.Errorf("nftables: this kernel has no nf_tables, which Wayleave needs (modprobe nf_tables): %w",
			err)
	}
	return k, nil
}

func (k *Kernel) conn(opts ...nftables.ConnOption) (*nftables.Conn, error) {
	opts = append(opts, nftables.WithSockOptions(bigBuffers, k.own.note))
	if k.netns != 0 {
		opts = append(opts, nftables.WithNetNSFd(k.netns))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return c, nil
}

// bigBuffers lets 100,000 elements go in one transaction: it is one message to
// the kernel, and an acknowledgement per thousand elements back.
func bigBuffers(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		for opt, size := range map[int]int{unix.SO_SNDBUFFORCE: 64 << 20, unix.SO_RCVBUFFORCE: 16 << 20} {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, size); err != nil {
				inner = errors.Join(inner, err)
			}
		}
	})
	return errors.Join(err, inner)
}

// Commit implements Conn.
func (k *Kernel) Commit(ctx context.Context, t Table, b Batch) error {
	return k.CommitAll(ctx, Change{t, b})
}

// CommitAll implements Conn.
func (k *Kernel) CommitAll(ctx context.Context, changes ...Change) error {
	names := make([]string, len(changes))
	var x transaction
	for i, ch := range changes {
		names[i] = fmt.Sprintf("%s %s", ch.Table.Family, ch.Table.Name)
		if err := ch.build(&x); err != nil {
			return fmt.Errorf("nftables: table %s: %w", names[i], err)
		}
	}
	return k.transact(ctx, &x, strings.Join(names, " and "))
}

// Try says whether the kernel takes the table, by a transaction that makes it and
// takes it away: no packet ever meets it.
func (k *Kernel) Try(ctx context.Context, t Table) error {
	var x transaction
	x.base(t)
	x.delTable(t)
	return k.transact(ctx, &x, fmt.Sprintf("%s %s", t.Family, t.Name))
}

// Remove implements Conn.
func (k *Kernel) Remove(ctx context.Context, t Table) error {
	var x transaction
	x.addTable(t) // so that deleting cannot fail
	x.delTable(t)
	return k.transact(ctx, &x, fmt.Sprintf("%s %s", t.Family, t.Name))
}

// transact sends a transaction to the tables of these names.
func (k *Kernel) transact(ctx context.Context, x *transaction, names string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.keep(ctx)
	if err == nil {
		if err = x.send(k.kept); err != nil {
			// Answers that were not read must not be taken for those of the next one.
			_ = k.kept.Close()
			k.kept = nil
		}
	}
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		err = fmt.Errorf("nftables: table %s: the kernel refused the transaction: %w", names, errno)
	case err != nil:
		err = fmt.Errorf("nftables: table %s: %w", names, err)
	}
	if k.Changed != nil {
		// Also after an error: the kernel may have done it all the same.
		err = errors.Join(err, k.Changed())
	}
	return err
}

// keep opens the socket for transactions when there is none.
func (k *Kernel) keep(ctx context.Context) error {
	if k.kept == nil {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
		if err != nil {
			return err
		}
		if err := bigBuffers(c); err != nil {
			return errors.Join(err, c.Close())
		}
		k.kept = c
	}
	return errors.Join(k.kept.SetDeadline(latest(ctx)), k.own.note(k.kept))
}

// slow is how long a transaction may take at the most.
const slow = 2 * time.Minute

// deadline keeps a conversation with the kernel from hanging forever.
func deadline(ctx context.Context) nftables.ConnOption {
	return nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetDeadline(latest(ctx)) })
}

func latest(ctx context.Context) time.Time {
	at := time.Now().Add(slow)
	if d, ok := ctx.Deadline(); ok && d.Before(at) {
		return d
	}
	return at
}

func netlinkTable(t Table) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamily(t.Family), Name: t.Name}
}

// build adds the messages of the change.
func (ch Change) build(x *transaction) error {
	t, b := ch.Table, ch.Batch
	if b.Recreate {
		x.addTable(t) // so that deleting cannot fail
		x.delTable(t)
	}
	if b.Base || b.Recreate {
		x.base(t)
	}
	for i, s := range b.Sets {
		x.addSet(t, s, len(t.Sets)+i+1)
	}
	x.addChains(t, b.Chains)
	for _, name := range b.Clear {
		x.flushSet(t, name)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Delete)) {
		s, err := t.set(name)
		if err != nil {
			return err
		}
		x.elements(unix.NFT_MSG_DELSETELEM, 0, t, s, b.Delete[name])
	}
	for _, name := range slices.Sorted(maps.Keys(b.Add)) {
		s, err := t.set(name)
		if err != nil {
			return err
		}
		x.elements(unix.NFT_MSG_NEWSETELEM, netlink.Create, t, s, b.Add[name])
	}
	for _, name := range b.DropChains { // all rules first: they may go from one to the other
		x.flushChain(t, name)
	}
	for _, name := range b.DropChains {
		x.delChain(t, name)
	}
	for _, name := range b.DropSets {
		x.delSet(t, name)
	}
	return nil
}

// base makes the fixed part of a table, where it is missing.
func (x *transaction) base(t Table) {
	x.addTable(t)
	for i, s := range t.Sets {
		x.addSet(t, s, i+1)
	}
	x.addChains(t, slices.DeleteFunc(slices.Clone(t.Chains), func(ch Chain) bool { return ch.OnDemand }))
}

// addChains makes chains where they are missing, and replaces their rules: all chains before all rules, since rules go
// to chains that come later.
func (x *transaction) addChains(t Table, list []Chain) {
	for _, ch := range list {
		x.addChain(t, ch)
	}
	for _, ch := range list {
		x.flushChain(t, ch.Name)
		for _, r := range ch.Rules {
			x.addRule(t, ch.Name, r)
		}
	}
}

// Read implements Conn.
func (k *Kernel) Read(ctx context.Context, t Table) (State, error) {
	st := State{Fits: true, Elements: map[string][]Element{}}
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return st, err
	}
	fail := func(err error) (State, error) {
		return st, fmt.Errorf("nftables: read table %s %s: %w", t.Family, t.Name, err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamily(t.Family))
	if err != nil {
		return fail(err)
	}
	i := slices.IndexFunc(tables, func(x *nftables.Table) bool { return x.Name == t.Name })
	if i < 0 {
		return st, nil
	}
	st.Exists = true
	sets, err := c.GetSets(tables[i])
	if err != nil {
		return fail(err)
	}
	for _, have := range sets {
		s, err := t.set(have.Name)
		if err != nil {
			st.Fits = false // a set that this version does not have
			continue
		}
		want, err := s.netlink(tables[i], t.Family)
		if err != nil {
			return fail(err)
		}
		if !s.fits(have, want) {
			st.Fits = false
			continue
		}
		if s.Filled {
			continue
		}
		if st.Elements[s.Name], err = k.dump(ctx, t.Family, t.Name, s); err != nil {
			return fail(err)
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamily(t.Family))
	if err != nil {
		return fail(err)
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			st.Chains = append(st.Chains, ch.Name)
			st.Fits = st.Fits && t.hookFits(ch)
		}
	}
	return st, nil
}

// Filled implements Conn.
func (k *Kernel) Filled(ctx context.Context, t Table, set string) ([]Element, error) {
	s, err := t.set(set)
	if err != nil {
		return nil, err
	}
	list, err := k.dump(ctx, t.Family, t.Name, s)
	if err != nil {
		return nil, fmt.Errorf("nftables: read table %s %s: %w", t.Family, t.Name, err)
	}
	return list, nil
}

// Forget implements Conn. What is deleted is added before, in the same transaction,
// since deleting what has just ended would fail. One that was changed meanwhile has
// other data and fails to be added: then each goes alone.
func (k *Kernel) Forget(ctx context.Context, t Table, set string, list []Element) error {
	var errs []error
	for part := range slices.Chunk(list, chunk) {
		bySet := map[string][]Element{set: part}
		err := k.CommitAll(ctx, Change{t, Batch{Add: bySet}}, Change{t, Batch{Delete: bySet}})
		switch {
		case err == nil:
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY):
			errs = append(errs, err)
		case len(part) > 1:
			for _, e := range part {
				errs = append(errs, k.Forget(ctx, t, set, []Element{e}))
			}
		}
	}
	return errors.Join(errs...)
}

// hookFits says whether a chain is entered where the table says: the kernel does
// not let that be changed.
func (t Table) hookFits(have *nftables.Chain) bool {
	i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == have.Name })
	if i < 0 || t.Chains[i].Hook == nil || have.Hooknum == nil {
		return have.Hooknum == nil && (i < 0 || t.Chains[i].Hook == nil)
	}
	h := t.Chains[i].Hook
	return uint32(*have.Hooknum) == h.number() && int32(*have.Priority) == h.Priority && string(have.Type) == h.Type
}

// fits compares the kernel's set with ours. Of a verdict map the library does not
// tell the key's length.
func (s Set) fits(have, want *nftables.Set) bool {
	if have.IsMap != want.IsMap || have.Interval != want.Interval || have.Dynamic != want.Dynamic {
		return false
	}
	if len(s.Data) > 0 && s.Data[0] == Verdict {
		return have.KeyType.Name == nftables.TypeVerdict.Name
	}
	return have.KeyType.Bytes == want.KeyType.Bytes && (!have.IsMap || have.DataType.Bytes == want.DataType.Bytes)
}

// Remains names those of the tables that are in the kernel.
func Remains(ctx context.Context, conn Conn, tables ...Table) (left []string, err error) {
	for _, t := range tables {
		st, err := conn.Read(ctx, t)
		if err != nil {
			return left, err
		}
		if st.Exists {
			left = append(left, fmt.Sprintf("table %s %s", t.Family, t.Name))
		}
	}
	return left, nil
}
