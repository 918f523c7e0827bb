//! `[control]` of `namespace.toml`: where the REST API listens, and with which certificate. Opens
//! nothing.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::document::{Document, Placed, Section};

/// Where the REST API listens unless the file says otherwise.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8480);

/// What the section says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlSettings {
    /// Address of the REST API.
    pub listen: SocketAddr,
    /// How it proves who it is: needed on every address but loopback.
    pub tls: Option<ApiTls>,
}

/// The certificate of the REST API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiTls {
    /// The relay's, in `tls/`.
    Relay,
    /// Files of its own.
    Files {
        /// Certificates, PEM.
        certificate: PathBuf,
        /// The private key, PEM.
        key: PathBuf,
    },
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            listen: LISTEN_DEFAULT,
            tls: None,
        }
    }
}

impl ControlSettings {
    /// Reads the section, if it is there.
    pub(super) fn read<'t>(document: &mut Document<'t>, root: &mut Section<'t>) -> Self {
        let Some(mut section) = document.table(root, "control") else {
            return Self::default();
        };
        let listen = document.parsed::<SocketAddr>(&mut section, "listen", "127.0.0.1:8480");
        let certificate = document.string(&mut section, "certificate", "/etc/underpass/api.pem");
        let key = document.string(&mut section, "key", "/etc/underpass/api-key.pem");
        document.end(section);
        let tls = read_tls(document, certificate, key);
        if let Some(listen) = listen
            .as_ref()
            .filter(|listen| tls.is_none() && !is_loopback(listen.value))
        {
            let what = format!(
                "listen = \"{}\" in [control] can be reached from other machines, and then needs TLS; add `certificate = \"relay\"` to use the relay's certificate, or `certificate` and `key` with paths of PEM files, or listen on 127.0.0.1",
                listen.value
            );
            document.fault(listen.line, what);
        }
        Self {
            listen: listen.map_or(LISTEN_DEFAULT, |listen| listen.value),
            tls,
        }
    }
}

/// Whether only this machine reaches an address.
#[must_use]
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn read_tls(
    document: &mut Document<'_>,
    certificate: Option<Placed<String>>,
    key: Option<Placed<String>>,
) -> Option<ApiTls> {
    match (certificate, key) {
        (Some(certificate), None) if certificate.value == "relay" => Some(ApiTls::Relay),
        (Some(certificate), Some(key)) => Some(ApiTls::Files {
            certificate: certificate.value.into(),
            key: key.value.into(),
        }),
        (Some(certificate), None) => {
            document.fault(certificate.line, "certificate in [control] needs the path of its private key beside it; add `key = \"/etc/underpass/api-key.pem\"`, or write `certificate = \"relay\"`");
            None
        }
        (None, Some(key)) => {
            document.fault(key.line, "key in [control] needs the path of its certificate beside it; add `certificate = \"/etc/underpass/api.pem\"`");
            None
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Fault;

    #[test]
    fn without_a_section_it_is_loopback_without_tls() {
        assert_eq!(read("").unwrap(), ControlSettings::default());
        assert_eq!(
            read("[control]\nlisten = \"[::1]:0\"")
                .unwrap()
                .listen
                .to_string(),
            "[::1]:0"
        );
    }

    #[test]
    fn other_addresses_need_a_certificate() {
        let told = read("[control]\nlisten = \"0.0.0.0:8480\"").unwrap_err();
        assert!(told[0].starts_with("f:2: listen = \"0.0.0.0:8480\" in [control] can be reached from other machines, and then needs TLS; add `certificate = \"relay\"`"), "{told:?}");
        let relays = read("[control]\nlisten = \"0.0.0.0:8480\"\ncertificate = \"relay\"").unwrap();
        assert_eq!(relays.tls, Some(ApiTls::Relay));
        let own = read("[control]\ncertificate = \"/a\"\nkey = \"/b\"").unwrap();
        assert_eq!(
            own.tls,
            Some(ApiTls::Files {
                certificate: "/a".into(),
                key: "/b".into()
            })
        );
    }

    #[test]
    fn half_a_certificate_is_told() {
        assert!(
            read("[control]\ncertificate = \"/a\"").unwrap_err()[0]
                .starts_with("f:2: certificate in [control] needs the path of its private key")
        );
        assert!(
            read("[control]\nkey = \"/a\"").unwrap_err()[0]
                .starts_with("f:2: key in [control] needs the path of its certificate")
        );
    }

    fn read(text: &str) -> Result<ControlSettings, Vec<String>> {
        let read = || {
            let (mut document, mut root) = Document::parse("f", text)?;
            let settings = ControlSettings::read(&mut document, &mut root);
            document.end(root);
            document.finish(Some(settings))
        };
        read().map_err(|faults: Vec<Fault>| faults.iter().map(Fault::to_string).collect())
    }
}
