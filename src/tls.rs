//! rustls settings from files on disk, for the listeners and for the endpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// What is offered by ALPN (RFC 7301), the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// PEM files, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the leaf first.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
}

/// A listener's side. Reads the files now; call again when they change.
///
/// # Errors
/// When a file cannot be read, is not PEM, or the key is not the certificate's: names the file and the remedy.
pub fn server(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.private_key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| unfit(files, &error))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

fn unfit(files: &TlsFiles, error: &rustls::Error) -> String {
    let (certificate, key) = (files.certificate.display(), files.private_key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            format!(
                "the key in {key} does not belong to the certificate in {certificate}; use a pair made together"
            )
        }
        _ => format!(
            "the certificate in {certificate} with the key in {key} cannot be used: {error}"
        ),
    }
}

/// Settings towards endpoints, and what tells two of them apart.
#[derive(Debug, Clone)]
pub struct Client {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// The authorities of a `ca` file; empty for those of the system.
    pub trust: Arc<[CertificateDer<'static>]>,
}

/// An endpoint's side: trusts the authorities in `ca`, or those of the system.
///
/// # Errors
/// When `ca` cannot be read or holds no certificate, or the system knows no authority.
pub fn client(ca: Option<&Path>) -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    let mut trust = Vec::new();
    match ca {
        Some(path) => {
            trust = certificates(path)?;
            for certificate in trust.clone() {
                roots.add(certificate).map_err(|error| {
                    format!("{} holds an unusable certificate: {error}", path.display())
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this system has no certificate authorities; install ca-certificates or set tls.ca".to_owned());
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Client {
        config: Arc::new(config),
        trust: trust.into(),
    })
}

/// Named, not taken from the process: another crate may have installed none, or two.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// Names the file and the cause.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = contents(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(format!(
            "{} holds no certificate; it must be PEM with BEGIN CERTIFICATE",
            path.display()
        )),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{} is not valid PEM: {error}", path.display())),
    }
}

/// The private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// Names the file and the cause.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&contents(path)?).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            format!(
                "{} holds no private key; it must be PEM with BEGIN PRIVATE KEY",
                path.display()
            )
        }
        error => format!("{} is not valid PEM: {error}", path.display()),
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
