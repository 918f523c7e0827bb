//! What a connection string may take on this machine. A relay names an endpoint; the operator's
//! list, or the target in the string, decides whether its host and port become a hosts entry and a
//! binding here. Knows no sockets and no files.

use std::path::PathBuf;

use underpass_proto::{Endpoint, Host, HostName, HycoName};

use crate::cli::source::Source;
use crate::files::agent::host_name;
use crate::shell;

/// Names by which machines find their proxy (WPAD) and their cloud's credentials. No database is
/// called so, and a hosts entry for one of them hands both to the endpoint.
const TRUSTED_BLINDLY: [&str; 6] = [
    "wpad",
    "metadata",
    "metadata.google.internal",
    "metadata.azure.internal",
    "instance-data",
    "instance-data.ec2.internal",
];

/// Names of this machine in the usual hosts files, beside `localhost`.
const LOCAL_NAMES: [&str; 4] = [
    "localhost.localdomain",
    "ip6-localhost",
    "ip6-loopback",
    "broadcasthost",
];

/// An endpoint that a relay names and that may not be taken here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) hyco: HycoName,
    pub(super) endpoint: Endpoint,
    /// What its applications reach meanwhile.
    pub(super) kept: Option<Endpoint>,
}

/// How an operator allows an endpoint, by how this sender was started.
#[derive(Clone, Debug)]
pub(super) enum NextStep {
    /// In the list of this file.
    List(PathBuf),
    /// By a new string in this file, or by an option.
    StringFile(PathBuf),
    /// By another string, or by an option.
    Restart,
}

impl NextStep {
    pub(super) fn of(source: &Source) -> Self {
        match source {
            Source::Config(path) => Self::List(path.clone()),
            Source::File(path) => Self::StringFile(path.clone()),
            Source::Text(_) => Self::Restart,
        }
    }

    /// What to type.
    pub(super) fn words(&self, refused: &Refused) -> String {
        let Refused { hyco, endpoint, .. } = refused;
        let endpoint = shell::word(endpoint.to_string());
        let string = format!(
            "`underpass connection string {hyco} --role application` on the relay's machine"
        );
        match self {
            Self::List(path) => format!(
                "if that is right, run `underpass sender allow {endpoint} --connection {hyco} --config {}`",
                shell::word(path)
            ),
            Self::StringFile(path) => format!(
                "if that is right, put a new string into {} (by {string}), or start the sender with `--allow {endpoint}`",
                path.display()
            ),
            Self::Restart => format!(
                "if that is right, start the sender with a new string (by {string}), or with `--allow {endpoint}`"
            ),
        }
    }
}

impl Refused {
    /// What happened, and what applications have meanwhile.
    pub(super) fn words(&self) -> String {
        let Self {
            hyco,
            endpoint,
            kept,
        } = self;
        let meanwhile = match kept {
            Some(kept) => format!("applications keep the address of {kept}"),
            None => "it is not bound".into(),
        };
        format!(
            "{hyco}: the relay names {endpoint} as the endpoint, and neither the string's target nor the allow-list names it; {meanwhile}"
        )
    }
}

/// Names that no hosts entry leads here, whatever a list says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Reserved {
    /// This machine's own.
    own: Vec<String>,
    /// Those of the relays: a sender that takes them cannot find its relay again.
    relays: Vec<HostName>,
}

impl Reserved {
    /// With this machine's own names.
    pub(super) fn of_this_machine(relays: Vec<HostName>) -> Self {
        let name = host_name();
        let short = name.split('.').next().unwrap_or_default().to_owned();
        let own = [name, short].into_iter().filter(|name| !name.is_empty());
        Self {
            own: own.collect(),
            relays,
        }
    }

    /// The name that a hosts entry can lead to this sender, or what is in its way.
    pub(super) fn led_here<'a>(&self, host: &'a Host) -> Result<&'a HostName, &'static str> {
        let Host::Name(name) = host else {
            return Err("is an address");
        };
        let is = |other: &str| name.matches(other);
        if name.is_localhost() || LOCAL_NAMES.into_iter().any(is) {
            Err("is this machine itself to everybody here")
        } else if self.own.iter().any(|own| is(own)) {
            Err("is this machine's own name")
        } else if self.relays.iter().any(|relay| is(relay)) {
            Err("is the relay's own name")
        } else if TRUSTED_BLINDLY.into_iter().any(is)
            || first_label(name).eq_ignore_ascii_case("wpad")
        {
            Err("tells machines where their proxy or their cloud's credentials are")
        } else {
            Ok(name)
        }
    }
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kept: Option<&str>) -> Refused {
        Refused {
            hyco: "payroll-sql".parse().unwrap(),
            endpoint: "db02.corp:1433".parse().unwrap(),
            kept: kept.map(|kept| kept.parse().unwrap()),
        }
    }

    #[test]
    fn a_refused_endpoint_is_named_with_what_to_type() {
        assert_eq!(
            refused(None).words(),
            "payroll-sql: the relay names db02.corp:1433 as the endpoint, and neither the string's target nor the allow-list names it; it is not bound"
        );
        assert!(
            refused(Some("db01.corp:1433"))
                .words()
                .ends_with("applications keep the address of db01.corp:1433")
        );
        assert_eq!(
            NextStep::List("/etc/underpass/sender.toml".into()).words(&refused(None)),
            "if that is right, run `underpass sender allow db02.corp:1433 --connection payroll-sql --config /etc/underpass/sender.toml`"
        );
        for single in [NextStep::StringFile("/s".into()), NextStep::Restart] {
            let words = single.words(&refused(None));
            assert!(
                words.contains("`underpass connection string payroll-sql --role application`")
                    && words.ends_with("`--allow db02.corp:1433`"),
                "{words}"
            );
        }
    }

    #[test]
    fn names_that_machines_trust_blindly_are_never_led_here() {
        let reserved = Reserved {
            own: vec!["app01.corp".into(), "app01".into()],
            relays: vec!["relay.example.com".parse().unwrap()],
        };
        for name in [
            "localhost",
            "sql01.localhost.",
            "IP6-localhost",
            "App01",
            "app01.corp.",
            "Relay.example.com",
            "wpad",
            "WPAD.corp",
            "metadata.google.internal",
        ] {
            let host: Host = name.parse().unwrap();
            assert!(reserved.led_here(&host).is_err(), "{name}");
        }
        for name in ["sql01.corp", "wpad1.corp", "metadata.corp"] {
            let host: Host = name.parse().unwrap();
            assert!(reserved.led_here(&host).is_ok(), "{name}");
        }
    }
}
