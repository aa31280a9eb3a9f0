//! Throw-away certificates, and rustls settings that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

/// A self-signed certificate for `localhost`, `app.test` and 127.0.0.1, in memory and as PEM files.
pub struct Certs {
    key: rcgen::CertifiedKey<rcgen::KeyPair>,
    folder: TempDir,
}

impl Certs {
    pub fn new() -> Self {
        let names = ["localhost", "app.test", "127.0.0.1"].map(str::to_owned);
        let key = rcgen::generate_simple_self_signed(names).expect("the names are valid");
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let certs = Self { key, folder };
        certs.write_to(certs.folder.path());
        certs
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    pub fn private_key(&self) -> PathBuf {
        self.folder.path().join("tls.key")
    }

    /// Puts `tls.crt` and `tls.key` into a folder: a rotation, when others are there.
    pub fn write_to(&self, folder: &Path) {
        std::fs::write(folder.join("tls.crt"), self.key.cert.pem())
            .expect("the folder is writable");
        std::fs::write(folder.join("tls.key"), self.key.signing_key.serialize_pem())
            .expect("the folder is writable");
    }

    pub fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            self.key.signing_key.serialize_der(),
        ));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![self.key.cert.der().clone()], key)
            .expect("the key belongs to the certificate");
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }

    pub fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.key.cert.der().clone())
            .expect("a certificate can be a root");
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}
