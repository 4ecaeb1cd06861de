package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	_ "golang.org/x/crypto/x509roots/fallback" // the image contains no certificates

	"wayleave.dev/model"
)

// Search reads the search list of a resolv.conf: the last line of that name applies. The root stays ".", as the kubelet
// passes it to pods.
func Search(file string) ([]string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("search list: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "search" {
			out = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// Upstreams reads the name servers of a resolv.conf. own are Wayleave's addresses, which are left out and named in the
// error: queries would loop.
func Upstreams(file string, own []netip.Addr) ([]model.Nameserver, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("upstream servers: %w", err)
	}
	var out []model.Nameserver
	var errs []error
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: nameserver: %w", file, err))
			continue
		}
		out = append(out, model.Nameserver{Addr: netip.AddrPortFrom(a, 53)})
	}
	out, ours := Foreign(out, own)
	if ours != nil {
		errs = append(errs, fmt.Errorf("%s: nameserver %w", file, ours))
	}
	return out, errors.Join(errs...)
}

// Foreign leaves out servers at Wayleave's own addresses, and names them in the error.
func Foreign(list []model.Nameserver, own []netip.Addr) ([]model.Nameserver, error) {
	var out []model.Nameserver
	var errs []error
	for _, n := range list {
		if slices.Contains(own, n.Addr.Addr()) && n.Addr.Port() == 53 {
			errs = append(errs, fmt.Errorf("%s is the cluster DNS itself and is left out: queries would loop",
				n.Addr.Addr()))
			continue
		}
		out = append(out, n)
	}
	return out, errors.Join(errs...)
}
