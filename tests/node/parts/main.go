// What makes a machine a node of a cluster, in one binary: the kubelet, the proxy for Services, the
// scheduler and the cluster's names, each as it is published. `tests/node/start` runs them.
//
// They are of the version of the control plane in tests/cluster/plane, and so compile the same
// packages.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// What a Corefile may say here.
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	if len(os.Args) < 2 {
		wrongUsage()
	}
	// Only the part that was asked for is made: making one takes the process' signals.
	part := os.Args[1]
	os.Args = append([]string{part}, os.Args[2:]...)
	switch part {
	case "kubelet":
		run(kubelet.NewKubeletCommand(context.Background()))
	case "kube-proxy":
		run(proxy.NewProxyCommand())
	case "kube-scheduler":
		run(scheduler.NewSchedulerCommand())
	case "coredns":
		coremain.Run()
	case "kubectl":
		run(kubectl.NewDefaultKubectlCommand())
	default:
		wrongUsage()
	}
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}

func wrongUsage() {
	fmt.Fprintln(os.Stderr, "usage: node kubelet|kube-proxy|kube-scheduler|coredns|kubectl [flags]")
	os.Exit(2)
}
