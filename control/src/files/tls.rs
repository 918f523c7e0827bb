//! `tls/`: the relay's certificate and its private key. Made by whichever command needs them first;
//! a person may put others there.
//!
//! The key is written first and the certificate is made for it, so that a crash between the two
//! keeps the pin.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::server::ParsedCertificate;
use underpass_proto::key::Secret;
use underpass_proto::snapshot::Tls;
use underpass_proto::{Endpoint, Pin};

use super::keys::secret_text;
use super::{Directory, Fault, disk, unreadable};

/// Whom a certificate that is made here names as its subject.
const SUBJECT: &str = "underpass relay";

/// A certificate that is made here ends in this year: agents go by its key's pin, and the date
/// would only be one more thing to break.
const LAST_YEAR: i32 = 2999;

/// What the relay shows to its peers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// For the snapshot.
    pub tls: Tls,
    /// What connection strings carry.
    pub pin: Pin,
}

/// The key's file and the certificate's.
#[must_use]
pub fn paths(directory: &Directory) -> [PathBuf; 2] {
    let files = Files::of(directory);
    [files.key, files.certificate]
}

/// Makes what is missing; `name` goes into a new certificate.
///
/// # Errors
/// What could not be made.
pub fn make_missing(directory: &Directory, name: &Endpoint) -> Result<(), Fault> {
    let files = Files::of(directory);
    if !files.key.exists() && !files.certificate.exists() {
        files.make_key()?;
    }
    if !files.certificate.exists() {
        files.make_certificate(name)?;
    }
    Ok(())
}

/// Reads the certificate and its key.
///
/// # Errors
/// What is wrong with the files.
pub fn load(directory: &Directory) -> Result<Identity, Fault> {
    Files::of(directory).load()
}

/// Reads the certificate and its key, and makes what is missing.
///
/// # Errors
/// See [`make_missing`] and [`load`].
pub fn load_or_make(directory: &Directory, name: &Endpoint) -> Result<Identity, Fault> {
    make_missing(directory, name)?;
    load(directory)
}

struct Files {
    key: PathBuf,
    key_file: String,
    certificate: PathBuf,
    certificate_file: String,
}

impl Files {
    fn of(directory: &Directory) -> Self {
        let key = directory.tls().join("key.pem");
        let certificate = directory.tls().join("certificate.pem");
        Self {
            key_file: directory.shown(&key),
            key,
            certificate_file: directory.shown(&certificate),
            certificate,
        }
    }

    fn make_key(&self) -> Result<(), Fault> {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key =
            made.map_err(|error| Fault::whole(&self.key_file, format!("cannot be made: {error}")))?;
        let pem = zeroize::Zeroizing::new(key.serialize_pem());
        created(disk::create(&self.key, pem.as_bytes(), disk::SECRET))
            .map_err(|error| Fault::whole(&self.key_file, format!("cannot be made: {error}")))
    }

    fn make_certificate(&self, name: &Endpoint) -> Result<(), Fault> {
        let unmade = |error: String| {
            Fault::whole(&self.certificate_file, format!("cannot be made: {error}"))
        };
        let pem = secret_text(&self.key_file, &self.key)?;
        let key =
            rcgen::KeyPair::from_pem(&pem).map_err(|error| self.bad_key(&error.to_string()))?;
        let mut params = rcgen::CertificateParams::new(vec![name.host.to_string()])
            .map_err(|error| unmade(error.to_string()))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, SUBJECT);
        params.not_after = rcgen::date_time_ymd(LAST_YEAR, 12, 31);
        let certificate = params
            .self_signed(&key)
            .map_err(|error| unmade(error.to_string()))?;
        created(disk::create(
            &self.certificate,
            certificate.pem().as_bytes(),
            disk::OPEN,
        ))
        .map_err(|error| unmade(error.to_string()))
    }

    fn load(&self) -> Result<Identity, Fault> {
        let certificates = self.load_certificates()?;
        let key = self.load_key()?;
        let spki = certificates
            .first()
            .and_then(spki_of)
            .ok_or_else(|| self.bad_certificate("it is not an X.509 certificate"))?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|error| self.bad_key(&error.to_string()))?;
        if signer
            .public_key()
            .is_none_or(|public| public.as_ref() != spki.as_ref())
        {
            return Err(self.bad_certificate(&format!("it does not belong to {}", self.key_file)));
        }
        let PrivateKeyDer::Pkcs8(key) = &key else {
            return Err(self.bad_key("it is not in the PKCS#8 form (`BEGIN PRIVATE KEY`)"));
        };
        let tls = Tls {
            certificates: certificates
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            key: Secret::new(key.secret_pkcs8_der().to_vec()),
        };
        Ok(Identity {
            tls,
            pin: Pin::of_spki(&spki),
        })
    }

    fn load_certificates(&self) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let pem = disk::read(&self.certificate)
            .map_err(|error| unreadable(&self.certificate_file, &error))?;
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.text.as_bytes()).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) => Err(self.bad_certificate("there is no `BEGIN CERTIFICATE` in it")),
            Err(error) => Err(self.bad_certificate(&error.to_string())),
        }
    }

    fn load_key(&self) -> Result<PrivateKeyDer<'static>, Fault> {
        if !self.key.exists() {
            return Err(Fault::whole(
                &self.key_file,
                format!(
                    "is missing beside {0}; put it there, or delete {0} too, and both are made anew",
                    self.certificate_file
                ),
            ));
        }
        let pem = secret_text(&self.key_file, &self.key)?;
        PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| self.bad_key(&error.to_string()))
    }

    fn bad_key(&self, why: &str) -> Fault {
        Fault::whole(
            &self.key_file,
            format!(
                "cannot be used: {why}; put the right private key (PEM, PKCS#8) there, or delete both files in tls/, and new ones are made (with a new pin)"
            ),
        )
    }

    fn bad_certificate(&self, why: &str) -> Fault {
        let what = format!(
            "cannot be used: {why}; put the right certificate (PEM) there, or delete it, and one is made for {}",
            self.key_file
        );
        Fault::whole(&self.certificate_file, what)
    }
}

fn spki_of(certificate: &CertificateDer<'static>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    ParsedCertificate::try_from(certificate)
        .ok()
        .map(|parsed| parsed.subject_public_key_info())
}

/// That another process was quicker is as good.
fn created(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_pin_stays_and_outlives_the_certificate() {
        let (_folder, directory) = directory();
        let first = load_or_make(&directory, &name()).unwrap();
        assert_eq!(load_or_make(&directory, &name()).unwrap(), first);
        fs::remove_file(directory.tls().join("certificate.pem")).unwrap();
        let second = load_or_make(&directory, &name()).unwrap();
        assert_eq!(second.pin, first.pin);
        assert_eq!(second.tls.key, first.tls.key);
    }

    #[test]
    fn a_certificate_of_another_key_is_told() {
        let (_folder, directory) = directory();
        let (_other_folder, other) = self::directory();
        load_or_make(&directory, &name()).unwrap();
        load_or_make(&other, &name()).unwrap();
        fs::copy(
            other.tls().join("certificate.pem"),
            directory.tls().join("certificate.pem"),
        )
        .unwrap();
        let told = load_or_make(&directory, &name()).unwrap_err().to_string();
        assert!(told.starts_with("tls/certificate.pem: cannot be used: it does not belong to tls/key.pem; put the right certificate"), "{told}");
    }

    #[test]
    fn garbage_and_a_missing_key_are_told() {
        let (_folder, directory) = directory();
        load_or_make(&directory, &name()).unwrap();
        fs::write(directory.tls().join("certificate.pem"), "garbage").unwrap();
        assert!(
            load_or_make(&directory, &name())
                .unwrap_err()
                .what
                .contains("no `BEGIN CERTIFICATE`")
        );
        fs::remove_file(directory.tls().join("key.pem")).unwrap();
        let told = load_or_make(&directory, &name()).unwrap_err().to_string();
        assert!(told.contains("tls/"), "{told}");
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        (folder, directory)
    }

    fn name() -> Endpoint {
        "relay.example.com:4433".parse().unwrap()
    }
}
