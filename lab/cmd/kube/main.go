// Command kube contains every Kubernetes component that the lab runs, in one static program. The name by which it is
// called (argv[0], a symlink), or otherwise its first argument, selects the component.
//
// It is a module of its own, so that its versions are exactly those of the Kubernetes release, whatever the lab and
// Wayleave depend on.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // CronJobs may name a time zone; the lab's hosts may lack the database

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	if command(name) == nil && name != "etcd" && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	if name == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	build := command(name)
	if build == nil {
		fmt.Fprintf(os.Stderr, "kube: %q is not one of etcd, kube-apiserver, kube-controller-manager, "+
			"kube-scheduler, kubelet, kube-proxy\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(build()))
}

// command returns the constructor of the named component's command, or nil. It returns constructors, because building
// one component registers its flags and feature gates globally.
func command(name string) func() *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand
	case "kube-controller-manager":
		return controllermanager.NewControllerManagerCommand
	case "kube-scheduler":
		return func() *cobra.Command { return scheduler.NewSchedulerCommand() }
	case "kubelet":
		return func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }
	case "kube-proxy":
		return proxy.NewProxyCommand
	}
	return nil
}
