// kubectl, from the module in which Kubernetes publishes it: pinned and checked by go.sum, for every
// architecture that Go builds for.
package main

import (
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways of a kubeconfig to log in
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	util.CheckErr(cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()))
}
