//! The certificate of the REST API: the relay's, or files of its own. Looked at again when they
//! change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::control_section::ApiTls;
use crate::files::keys::secret_text;
use crate::files::{Directory, Fault, disk, tls, unreadable};

/// What was loaded, and from which state of the files.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    stamps: Vec<Option<disk::Stamp>>,
}

impl Loaded {
    /// Whether the files are still those that were loaded.
    pub(super) fn is_current(&self, directory: &Directory, tls: &ApiTls) -> bool {
        self.stamps == stamps(directory, tls)
    }
}

/// Reads certificate and key.
///
/// # Errors
/// What is wrong with them.
pub(super) fn load(directory: &Directory, tls: &ApiTls) -> Result<Loaded, Fault> {
    let stamps = stamps(directory, tls);
    let [certificate, key] = paths(directory, tls);
    let [certificate_file, key_file] = [directory.shown(&certificate), directory.shown(&key)];
    let bad = |file: &str, why: &dyn std::fmt::Display| {
        Fault::whole(
            file,
            format!(
                "cannot be used for the REST API: {why}; put a certificate and its key there, both PEM, or name others in [control] of namespace.toml"
            ),
        )
    };
    let pem = disk::read(&certificate).map_err(|error| unreadable(&certificate_file, &error))?;
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.text.as_bytes()).collect();
    let certificates = certificates.map_err(|error| bad(&certificate_file, &error))?;
    if certificates.is_empty() {
        return Err(bad(
            &certificate_file,
            &"there is no `BEGIN CERTIFICATE` in it",
        ));
    }
    let pem = secret_text(&key_file, &key)?;
    let key =
        PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(&key_file, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|error| bad(&certificate_file, &error))?;
    Ok(Loaded {
        config: Arc::new(config),
        stamps,
    })
}

fn paths(directory: &Directory, tls: &ApiTls) -> [PathBuf; 2] {
    match tls {
        ApiTls::Relay => {
            let [key, certificate] = tls::paths(directory);
            [certificate, key]
        }
        // A relative path is one below the directory.
        ApiTls::Files { certificate, key } => {
            [certificate, key].map(|path| directory.root().join(path))
        }
    }
}

fn stamps(directory: &Directory, tls: &ApiTls) -> Vec<Option<disk::Stamp>> {
    let stamp = |path: &PathBuf| disk::stamp(Path::new(path)).ok().flatten();
    paths(directory, tls).iter().map(stamp).collect()
}
