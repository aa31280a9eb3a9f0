package main

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A plane in its folder: keys, addresses, and the three parts, not yet started.
type plane struct {
	dir                    string
	etcd, api, controllers *part
	// Empty until somebody asks for it.
	tekton []*part
	// Where the API server is.
	address string
	// Speaks as the administrator.
	client *http.Client
	deaths chan *part
}

// The controllers that a namespaced application meets, where there are no nodes. None that deletes
// pods because their node is missing or silent.
const controllerNames = "namespace-controller,serviceaccount-controller," +
	"root-ca-certificate-publisher-controller,clusterrole-aggregation-controller," +
	"garbage-collector-controller,resourcequota-controller,deployment-controller," +
	"replicaset-controller,statefulset-controller,job-controller"

// lay makes the folder ready for a plane of its own. Without an address it is on loopback alone.
func lay(dir string, address net.IP) (*plane, error) {
	dir, err := emptyFolder(dir)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	etcdClients, etcdPeers, api, controllers := ports[0], ports[1], ports[2], ports[3]
	keys, err := cut(dir, api, address)
	if err != nil {
		return nil, err
	}
	return &plane{
		dir:         dir,
		etcd:        etcdPart(dir, etcdClients, etcdPeers),
		api:         apiPart(dir, api, etcdClients, address),
		controllers: controllersPart(dir, controllers, address),
		address:     fmt.Sprintf("https://127.0.0.1:%d", api),
		client:      keys.administrator(),
		// Room for everybody, so that nobody's end waits for somebody to hear of it.
		deaths: make(chan *part, 16),
	}, nil
}

func etcdPart(dir string, clients, peers int) *part {
	url := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	return newPart(dir, "etcd", url(clients)+"/health",
		"--name=plane",
		"--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client-urls="+url(clients),
		"--advertise-client-urls="+url(clients),
		"--listen-peer-urls="+url(peers),
		"--initial-advertise-peer-urls="+url(peers),
		"--initial-cluster=plane="+url(peers),
		// The data lives as long as the test.
		"--unsafe-no-fsync",
		"--log-level=warn",
	)
}

func apiPart(dir string, port, etcd int, address net.IP) *part {
	in := func(name string) string { return filepath.Join(dir, name) }
	reach := []string{
		"--bind-address=127.0.0.1",
		// Nobody reaches this server through a Service, and loopback would be refused there.
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
	}
	if address != nil {
		reach = []string{
			"--bind-address=0.0.0.0",
			"--advertise-address=" + address.String(),
			"--kubelet-client-certificate=" + in("admin.crt"),
			"--kubelet-client-key=" + in("admin.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--allow-privileged",
		}
	}
	return newPart(dir, "kube-apiserver", fmt.Sprintf("https://127.0.0.1:%d/readyz", port), append(reach,
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcd),
		fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file="+in("api.crt"),
		"--tls-private-key-file="+in("api.key"),
		"--client-ca-file="+in("ca.crt"),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+in("accounts.key"),
		"--service-account-signing-key-file="+in("accounts.key"),
		"--service-cluster-ip-range=10.0.0.0/24",
		// One client per test: nothing has to be shared out fairly.
		"--enable-priority-and-fairness=false",
		"--profiling=false",
	)...)
}

func controllersPart(dir string, port int, address net.IP) *part {
	in := func(name string) string { return filepath.Join(dir, name) }
	names := controllerNames
	if address != nil {
		names = "*"
	}
	return newPart(dir, "kube-controller-manager", fmt.Sprintf("https://127.0.0.1:%d/healthz", port),
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file="+in("api.crt"),
		"--tls-private-key-file="+in("api.key"),
		"--kubeconfig="+in("admin.kubeconfig"),
		"--root-ca-file="+in("ca.crt"),
		"--controllers="+names,
		"--leader-elect=false",
		// The limits meant for a shared server would be what the tests wait for.
		"--kube-api-qps=500",
		"--kube-api-burst=500",
		"--profiling=false",
	)
}

// emptyFolder makes the folder, and refuses one that holds something: it might be another plane.
func emptyFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("%s is not empty: name a new folder", dir)
	}
	return dir, nil
}

// freePorts finds ports on loopback below those that the kernel gives to outgoing connections, so
// that the API server finds its own again after a stop.
func freePorts(count int) ([]int, error) {
	var ports []int
	for tries := 0; len(ports) < count; tries++ {
		if tries == 1000 {
			return nil, fmt.Errorf("no free port between 20000 and 32000 on 127.0.0.1")
		}
		port := 20000 + rand.IntN(12000)
		listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		// Held until all are found: no port twice.
		defer listener.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

// client speaks to the parts, one connection per question: a stopped server leaves none behind.
func client(tlsConfig *tls.Config) *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true},
	}
}
