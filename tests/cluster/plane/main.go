// A Kubernetes control plane for tests, in one binary: etcd, the API server and the controller
// manager as they are published, and `start`, which runs the three of them on loopback.
//
// There is no node and no kubelet: pods are stored, owned, counted and collected, but never run.
// The tests play the kubelet. Told an address at which nodes reach it, the plane serves a real one
// (tests/node).
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

const usage = `usage: control-plane start DIR [ADDRESS]        a whole plane, until it is told to end;
                                                with ADDRESS: for nodes and pods that reach it there
       control-plane etcd [flags]               one part of it
       control-plane kube-apiserver [flags]
       control-plane kube-controller-manager [flags]
`

func main() {
	if len(os.Args) < 2 {
		wrongUsage()
	}
	// Only the command that was asked for is made: making one takes the process' signals.
	switch os.Args[1] {
	case "etcd":
		etcdmain.Main(os.Args[1:])
	case "kube-apiserver":
		run(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		run(controllers.NewControllerManagerCommand())
	case "start":
		if len(os.Args) != 3 && len(os.Args) != 4 {
			wrongUsage()
		}
		var address net.IP
		if len(os.Args) == 4 {
			if address = net.ParseIP(os.Args[3]); address == nil {
				wrongUsage()
			}
		}
		if err := start(os.Args[2], address); err != nil {
			fmt.Fprintln(os.Stderr, "control-plane:", err)
			os.Exit(1)
		}
	default:
		wrongUsage()
	}
}

func run(command *cobra.Command) {
	command.SetArgs(os.Args[2:])
	os.Exit(cli.Run(command))
}

func wrongUsage() {
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
}
