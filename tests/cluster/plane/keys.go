package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The plane's own authority, and the key of its administrator.
type keys struct {
	ca    *x509.Certificate
	caKey crypto.Signer
	admin tls.Certificate
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: plane
  cluster:
    server: https://127.0.0.1:%d
    certificate-authority-data: %s
users:
- name: admin
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: plane
  context: { cluster: plane, user: admin }
current-context: plane
`

// cut makes all keys and certificates of a plane in dir, and the administrator's kubeconfig.
func cut(dir string, apiPort int, address net.IP) (*keys, error) {
	k := &keys{}
	if err := k.found(); err != nil {
		return nil, err
	}
	write := func(name string, data []byte) error {
		return os.WriteFile(filepath.Join(dir, name), data, 0o600)
	}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1)}
	if address != nil {
		// And the Service by which pods reach it.
		addresses = append(addresses, address, net.IPv4(10, 0, 0, 1))
	}
	serverCertificate, serverKey, err := k.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		DNSNames:    []string{"localhost", "kubernetes.default.svc", "kubernetes.default"},
		IPAddresses: addresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, err
	}
	adminCertificate, adminKey, err := k.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	if k.admin, err = tls.X509KeyPair(adminCertificate, adminKey); err != nil {
		return nil, err
	}
	_, accountsKey, err := newKey()
	if err != nil {
		return nil, err
	}

	ca := certificatePEM(k.ca.Raw)
	base64 := base64.StdEncoding.EncodeToString
	admin := fmt.Sprintf(kubeconfig, apiPort, base64(ca), base64(adminCertificate), base64(adminKey))
	for name, data := range map[string][]byte{
		"ca.crt":           ca,
		"api.crt":          serverCertificate,
		"api.key":          serverKey,
		"accounts.key":     accountsKey,
		"admin.crt":        adminCertificate,
		"admin.key":        adminKey,
		"admin.kubeconfig": []byte(admin),
	} {
		if err := write(name, data); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// administrator speaks to the plane as its administrator.
func (k *keys) administrator() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(k.ca)
	return client(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{k.admin}})
}

// found makes the authority.
func (k *keys) found() error {
	key, _, err := newKey()
	if err != nil {
		return err
	}
	template := dated(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "a control plane for tests"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	k.caKey = key
	k.ca, err = x509.ParseCertificate(der)
	return err
}

// sign makes a key and its certificate, both as PEM.
func (k *keys) sign(template *x509.Certificate) ([]byte, []byte, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template = dated(template)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, k.ca, key.Public(), k.caKey)
	if err != nil {
		return nil, nil, err
	}
	return certificatePEM(der), keyPEM, nil
}

// dated makes a certificate valid for as long as anybody keeps a plane running.
func dated(template *x509.Certificate) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	return template
}

// newKey makes a key, also in the form that Kubernetes reads everywhere: SEC 1, not PKCS 8.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
