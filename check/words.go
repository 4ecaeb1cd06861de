package check

import (
	"fmt"
	"net/netip"
	"strings"
)

func join(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// MinKernel is the oldest supported kernel, and MinKubernetes the oldest supported minor version of Kubernetes 1.
const (
	minKernelMajor, minKernelMinor = 5, 15
	minKubernetes                  = 33
)

// isKernel reads a release such as 6.1.0-18-amd64.
func isKernel(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > minKernelMajor || major == minKernelMajor && minor >= minKernelMinor
}
