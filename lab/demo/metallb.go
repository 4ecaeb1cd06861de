package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// vipYAML is MetalLB's configuration, and a Service that gets an address of it.
const vipYAML = `
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan, namespace: metallb-system}
spec: {addresses: [172.30.0.100-172.30.0.120]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan, namespace: metallb-system}
spec: {ipAddressPools: [lan]}
---
apiVersion: v1
kind: Service
metadata: {name: echo-vip}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{name: tcp, port: 7, protocol: TCP}, {name: udp, port: 7, protocol: UDP}]
`

// quickARP makes the external client ask for the addresses of its neighbours all the time.
const quickARP = `cd /proc/sys/net/ipv4/neigh/eth0 && echo 500 >base_reachable_time_ms && echo 1 ` +
	`>delay_first_probe_time`

// installMetalLB installs MetalLB from its own manifest, beside Wayleave.
func installMetalLB(ctx context.Context, t *Tour) error {
	manifest, err := t.command(ctx, nil, t.Lab, "addon", "metallb")
	if err != nil {
		return err
	}
	// The check "beside" has another pod with the labels of a speaker.
	if _, err := t.kubectl(ctx, "-n", "metallb-system", "delete", "pod", "speaker", "--ignore-not-found"); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "apply", "-f", manifest); err != nil {
		return err
	}
	for _, w := range []string{"deployment/controller", "daemonset/speaker"} {
		if _, err := t.kubectl(ctx, "-n", "metallb-system", "rollout", "status", w, "--timeout=200s"); err != nil {
			return err
		}
	}
	if _, err := t.at(ctx, "outside", "sh", "-c", quickARP); err != nil {
		return err
	}
	return eventually(ctx, func() error { // its webhook needs a moment
		if err := t.apply(ctx, vipYAML); err != nil {
			return err
		}
		addr, err := t.vip(ctx)
		if err != nil {
			return err
		}
		_, err = t.mac(ctx, addr)
		return err
	})
}

func (t *Tour) vip(ctx context.Context) (string, error) {
	list, err := t.addresses(ctx, "echo-vip")
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// meterOutside is meter at the external client.
func (t *Tour) meterOutside(ctx context.Context, d time.Duration, disturb func() error, probes ...string) error {
	meter := []string{t.Lab, "exec", "outside", "--", filepath.Join(filepath.Dir(t.program()), "lossmeter")}
	return t.measureBy(ctx, d, disturb, false, meter, probes...)
}

// meterVIP measures from the external client.
func (t *Tour) meterVIP(ctx context.Context, disturb func(addr string) error) error {
	addr, err := t.vip(ctx)
	if err != nil {
		return err
	}
	err = t.meterOutside(ctx, 30*time.Second, func() error { return disturb(addr) },
		"udp="+addr+":7", "connect="+addr+":7")
	if err != nil {
		return err
	}
	now, err := t.vip(ctx)
	if err == nil && now != addr {
		err = fmt.Errorf("the address was %s, is %s", addr, now)
	}
	return err
}

// answersAlone requires that one machine answers for the address, every time.
func (t *Tour) answersAlone(ctx context.Context, addr string) error {
	for range 5 {
		if _, err := t.mac(ctx, addr); err != nil {
			return err
		}
	}
	return nil
}

// takeAddresses follows the guide. Before Wayleave takes over, a pool with MetalLB's addresses changes nothing.
func takeAddresses(ctx context.Context, t *Tour) error {
	return t.meterVIP(ctx, func(addr string) error {
		lines, err := guide("metallb.md", "Switch over")
		if err != nil {
			return err
		}
		for _, line := range lines {
			if strings.Contains(line, "patch daemonset speaker") {
				time.Sleep(3 * time.Second) // agents would have begun to answer by now
				if err := errors.Join(t.ownsNothing(ctx), t.answersAlone(ctx, addr)); err != nil {
					return err
				}
			}
			if err := t.inDesk(ctx, line); err != nil {
				return err
			}
		}
		return eventually(ctx, func() error {
			pods, err := t.kubectl(ctx, "-n", "metallb-system", "get", "pods", "-o", "name")
			if err == nil && (strings.Contains(pods, "speaker-") || strings.Contains(pods, "controller-")) {
				err = fmt.Errorf("MetalLB still runs: %s", pods)
			}
			return errors.Join(err, t.eventuallyOwned(ctx, addr), t.answersAlone(ctx, addr))
		})
	})
}

// giveAddressesBack follows the guide, and removes what the next check would find.
func giveAddressesBack(ctx context.Context, t *Tour) error {
	err := t.meterVIP(ctx, func(addr string) error {
		lines, err := guide("metallb.md", "Back")
		if err != nil {
			return err
		}
		for _, line := range lines {
			if err := t.inDesk(ctx, line); err != nil {
				return err
			}
		}
		if err := t.ownsNothing(ctx); err != nil {
			return err
		}
		return eventually(ctx, func() error { return t.answersAlone(ctx, addr) })
	})
	if err != nil {
		return err
	}
	_, err = t.kubectl(ctx, "-n", "kube-system", "delete", "configmap", "wayleave-settings")
	return err
}

// inDesk runs a line of a guide in the reader's folder.
func (t *Tour) inDesk(ctx context.Context, line string) error {
	dir, err := t.desk()
	if err != nil {
		return err
	}
	return t.commands(ctx, "cd "+dir+"; export PATH="+dir+"/bin:$PATH; "+line)
}

func (t *Tour) ownsNothing(ctx context.Context) error {
	owners, err := t.owners(ctx)
	if err == nil && len(owners) > 0 {
		err = fmt.Errorf("agents answer for %v", owners)
	}
	return err
}

func (t *Tour) eventuallyOwned(ctx context.Context, addr string) error {
	return eventually(ctx, func() error {
		owner, err := t.owner(ctx, addr)
		if err == nil && owner == "" {
			err = fmt.Errorf("no agent answers for %s", addr)
		}
		return err
	})
}
