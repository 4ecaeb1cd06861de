// Package iptables reads and changes tables by the programs of iptables, in both of its
// flavours: that which keeps rules in nf_tables and the legacy one.
//
// Invariants:
//   - A restored text takes effect whole or not at all, table by table.
//   - Only chains that a text names are changed (iptables-restore --noflush).
//   - Rules are text as iptables-save prints it, so that what was read can be compared
//     with what is wanted.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel/namespace"
)

// Family is an address family.
type Family string

// The two families; the values are the beginnings of the programs' names.
const (
	IPv4 Family = "iptables"
	IPv6 Family = "ip6tables"
)

// Families lists both.
func Families() []Family { return []Family{IPv4, IPv6} }

// Flavour is where the rules are kept.
type Flavour string

// The two flavours, which a kernel may have side by side: packets pass both.
const (
	NFT    Flavour = "nft"
	Legacy Flavour = "legacy"
)

// Table is the chains of a table with their rules, each without "-A CHAIN".
type Table map[string][]string

// Conn changes the tables of one flavour in one network namespace. It is safe for
// concurrent use.
type Conn interface {
	// Flavour is that of the tables.
	Flavour() Flavour
	// Has says whether the table exists; reading one that does not would make it.
	Has(ctx context.Context, f Family, table string) (bool, error)
	// Read returns a table; one that does not exist is empty.
	Read(ctx context.Context, f Family, table string) (Table, error)
	// Restore applies a text of iptables-restore.
	Restore(ctx context.Context, f Family, text []byte) error
	// Tidy removes the kernel's chains that restoring made in a table of nf_tables, and
	// the table, when nothing is in them. Tables of iptables-legacy stay: the kernel's
	// module has them.
	Tidy(ctx context.Context, f Family, table string) error
	// Watch reports changes by others to chains that concerns selects, until
	// ctx ends. The chain is empty when a whole table went.
	Watch(ctx context.Context, concerns func(table, chain string) bool) (<-chan struct{}, error)
}

// Kernel is the Conn of a network namespace.
type Kernel struct {
	flavour Flavour
	netns   int
	journal journal
	// LockFile is what programs of iptables-legacy lock, by default /run/xtables.lock. The programs of the host and
	// ours must lock the same file. Set it before the first use.
	LockFile string
	// Memory is a file that records what tables had before, for Tidy. If it is empty, Tidy does nothing. Set it before
	// the first use.
	Memory string
	// Tell is told of a Memory that is damaged or cannot be written. Set it before the first use.
	Tell statefile.Tell
}

var _ Conn = (*Kernel)(nil)

// NewKernel makes a Conn for the namespace of this process, or with a descriptor other
// than 0 for that one. It fails when the programs are not there.
func NewKernel(nsfd int, flavour Flavour) (*Kernel, error) {
	k := &Kernel{flavour: flavour, netns: nsfd, journal: journal{infos: map[Family]string{}}}
	for _, f := range Families() {
		for _, what := range []string{"save", "restore"} {
			if _, err := exec.LookPath(k.program(f, what)); err != nil {
				return nil, fmt.Errorf("iptables: %w; the package iptables has it", err)
			}
		}
	}
	return k, nil
}

func (k *Kernel) program(f Family, what string) string {
	return fmt.Sprintf("%s-%s-%s", f, k.flavour, what)
}

// Flavour implements Conn.
func (k *Kernel) Flavour() Flavour { return k.flavour }

// Has implements Conn. Of nf_tables it says yes: reading makes nothing there.
func (k *Kernel) Has(_ context.Context, f Family, table string) (has bool, err error) {
	if k.flavour == NFT {
		return true, nil
	}
	file := map[Family]string{IPv4: "ip_tables_names", IPv6: "ip6_tables_names"}[f]
	err = namespace.Do(k.netns, func() error {
		raw, err := os.ReadFile("/proc/thread-self/net/" + file)
		if errors.Is(err, os.ErrNotExist) {
			return nil // the kernel has no legacy tables
		}
		has = slices.Contains(strings.Fields(string(raw)), table)
		return err
	})
	return has, err
}

// Read implements Conn.
func (k *Kernel) Read(ctx context.Context, f Family, table string) (Table, error) {
	if has, err := k.Has(ctx, f, table); err != nil || !has {
		return Table{}, err
	}
	out, err := k.run(ctx, nil, k.program(f, "save"), "-t", table)
	if err != nil {
		return nil, err
	}
	return Parse(out), nil
}

// Restore implements Conn.
func (k *Kernel) Restore(ctx context.Context, f Family, text []byte) error {
	k.journal.mu.Lock()
	defer k.journal.mu.Unlock()
	if k.flavour == Legacy {
		if was, ok := k.journal.infos[f]; ok && k.info(f) != was {
			k.journal.missed = true
		}
		// others hold the lock for a moment
		_, err := k.run(ctx, text, k.program(f, "restore"), "--noflush", "-w", "10")
		k.journal.infos[f] = k.info(f)
		return err
	}
	if err := k.remember(f, text); err != nil {
		return err
	}
	before, err := k.generation()
	if err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	_, err = k.run(ctx, text, k.program(f, "restore"), "--noflush")
	after, genErr := k.generation()
	if genErr == nil {
		k.journal.note(before, after)
	}
	return err
}

func (k *Kernel) run(ctx context.Context, stdin []byte, program string, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	err := namespace.Do(k.netns, func() error {
		cmd := exec.CommandContext(ctx, program, args...)
		if k.LockFile != "" {
			cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+k.LockFile)
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
		return cmd.Run()
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, firstLines(errs.String()))
	}
	return out.Bytes(), nil
}

func firstLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[:min(len(lines), 3)], "; ")
}

// Parse reads what iptables-save prints of one table.
func Parse(text []byte) Table {
	t := Table{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ":"):
			if name, _, ok := strings.Cut(line[1:], " "); ok {
				t[name] = nil
			}
		case strings.HasPrefix(line, "-A "):
			if name, rule, ok := strings.Cut(line[3:], " "); ok {
				t[name] = append(t[name], rule)
			}
		}
	}
	return t
}
