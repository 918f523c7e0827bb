//! `namespace.toml`: what is true of the whole installation. Every field has a default.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use underpass_proto::connection_string::RELAY_PORT_DEFAULT;
use underpass_proto::limits::WORKERS_MAX;
use underpass_proto::snapshot::RelayLimits;
use underpass_proto::{Endpoint, Host};

use super::Fault;
use super::control_section::ControlSettings;
use super::document::{Document, Placed, Section};
use super::quota::Quota;
use super::wording::echo;

/// What a new directory gets: all defaults, said as comments.
pub const TEMPLATE: &str = r#"# The namespace: what is true of the whole installation. Every line is optional; the comments show the defaults.

# name = "default"

# Where agents reach the relay. Connection strings carry it; without it they carry this machine's host name.
# public_address = "relay.example.com:4433"

# UDP address on which the relay listens for agents.
# listen = "0.0.0.0:4433"

# What the namespace may have: free, developer, basic, standard, premium or unlimited. Each figure can be set by itself.
# edition = "unlimited"
# hybrid_connections = 5           # default: the edition's
# data_gb_month = 5                # default: the edition's; warned at 80 and 100 percent
# enforce_data = false             # true: no new flows once the data of the month is used up

# The REST API. Addresses that other machines reach need a certificate too.
# [control]
# listen = "127.0.0.1:8480"

# [relay]
# workers = 2                      # default: one for every two cores
# sessions_max = 4096
# flows_per_session_max = 16384
# flows_max = 65536
"#;

/// Name of a namespace that has none.
const NAME_DEFAULT: &str = "default";

/// Most characters of a namespace's name.
const NAME_MAX: usize = 50;

/// The most that a limit of the relay may be: a figure beyond is a slip of the finger.
const LIMIT_MAX: u32 = 10_000_000;

/// What the file says, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// What connection strings carry.
    pub public_address: Endpoint,
    /// Whether the file says so; else it was guessed from `listen` or the host's name.
    pub public_address_given: bool,
    /// UDP address of the relay.
    pub listen: SocketAddr,
    /// What it may have.
    pub quota: Quota,
    /// Where the REST API listens.
    pub control: ControlSettings,
    /// Workers of the relay.
    pub workers: Option<u16>,
    /// Bounds of the relay.
    pub limits: RelayLimits,
}

impl Namespace {
    /// Reads the text of the file. `host_name` is this machine's, for a public address that is not
    /// given.
    ///
    /// # Errors
    /// All that is wrong, with lines.
    pub fn parse(file: &str, text: &str, host_name: &str) -> Result<Self, Vec<Fault>> {
        let (mut document, mut root) = Document::parse(file, text)?;
        let name = document.string(&mut root, "name", "contoso");
        let public_address = document.string(&mut root, "public_address", "relay.example.com:4433");
        let listen = document.parsed::<SocketAddr>(&mut root, "listen", "0.0.0.0:4433");
        let quota = Quota::read(&mut document, &mut root);
        let control = ControlSettings::read(&mut document, &mut root);
        let relay = document.table(&mut root, "relay");
        document.end(root);
        let (workers, limits) = relay.map_or((None, RelayLimits::default()), |relay| {
            read_relay(&mut document, relay)
        });

        check_name(&mut document, name.as_ref());
        let listen = checked_listen(&mut document, listen);
        let given = public_address
            .as_ref()
            .and_then(|text| checked_address(&mut document, text, listen.port()));
        document.finish(Some(Self {
            name: name.map_or_else(|| NAME_DEFAULT.to_owned(), |name| name.value),
            public_address_given: given.is_some(),
            public_address: given.unwrap_or_else(|| guessed_address(listen, host_name)),
            listen,
            quota,
            control,
            workers,
            limits,
        }))
    }
}

impl Namespace {
    /// What a person should look at: agents dial one port, and the relay listens on another. Right
    /// only where something forwards it.
    #[must_use]
    pub fn port_note(&self) -> Option<String> {
        let (public, own) = (self.public_address.port.get(), self.listen.port());
        (public != own).then(|| {
            format!(
                "agents dial UDP port {public} (public_address in namespace.toml), and the relay listens on {own} (listen): right only if a router or firewall forwards {public} to {own}"
            )
        })
    }
}

fn read_relay<'t>(
    document: &mut Document<'t>,
    mut relay: Section<'t>,
) -> (Option<u16>, RelayLimits) {
    let default = RelayLimits::default();
    let workers = document.integer(&mut relay, "workers", 1..=WORKERS_MAX, 2);
    let memory = document.integer(&mut relay, "memory_mib_max", 1..=LIMIT_MAX, 4_096);
    let mut limit = |field, default| {
        document
            .integer(&mut relay, field, 1..=LIMIT_MAX, default)
            .map_or(default, |limit| limit.value)
    };
    let limits = RelayLimits {
        sessions_max: limit("sessions_max", default.sessions_max),
        flows_per_session_max: limit("flows_per_session_max", default.flows_per_session_max),
        flows_max: limit("flows_max", default.flows_max),
        memory_mib_max: memory.map(|memory| memory.value),
    };
    document.end(relay);
    (workers.map(|workers| workers.value), limits)
}

fn check_name(document: &mut Document<'_>, name: Option<&Placed<String>>) {
    let Some(name) = name else { return };
    let plain = name
        .value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain || name.value.is_empty() || name.value.len() > NAME_MAX {
        let what = format!(
            "name cannot be {}; write 1 to {NAME_MAX} letters, digits or hyphens, like `name = \"contoso\"`",
            echo(&name.value)
        );
        document.fault(name.line, what);
    }
}

fn checked_listen(document: &mut Document<'_>, listen: Option<Placed<SocketAddr>>) -> SocketAddr {
    let default = SocketAddr::from(([0, 0, 0, 0], RELAY_PORT_DEFAULT));
    let Some(listen) = listen else { return default };
    if listen.value.port() == 0 {
        document.fault(listen.line, "listen needs a port that stays, because agents dial it; write, for example, `listen = \"0.0.0.0:4433\"`");
        return default;
    }
    listen.value
}

/// `host:port`, or a host alone, which gets the port of `listen`.
fn checked_address(
    document: &mut Document<'_>,
    text: &Placed<String>,
    port: u16,
) -> Option<Endpoint> {
    read_address(text.value.trim(), port)
        .map_err(|error| {
            let what = format!("public_address cannot be {}: {error}; write, for example, `public_address = \"relay.example.com:4433\"`", echo(&text.value));
            document.fault(text.line, what);
        })
        .ok()
}

fn read_address(text: &str, port: u16) -> Result<Endpoint, String> {
    let endpoint = match text.parse::<Host>() {
        Ok(host) => Endpoint {
            host,
            port: NonZeroU16::new(port).ok_or("the port is missing")?,
        },
        Err(_) => text
            .parse::<Endpoint>()
            .map_err(|error| match text.contains("://") {
                true => "it is a URL; write the host and the UDP port alone".to_owned(),
                false => error.to_string(),
            })?,
    };
    match endpoint.host.ip() {
        Some(ip) if is_nowhere(ip) => Err(format!(
            "nobody can dial {ip}; write how agents reach this machine"
        )),
        _ => Ok(endpoint),
    }
}

/// An address to listen on or to send to many, that is nobody's own.
fn is_nowhere(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    ip.is_unspecified() || ip.is_multicast() || broadcast
}

fn guessed_address(listen: SocketAddr, host_name: &str) -> Endpoint {
    let host = if listen.ip().is_unspecified() {
        host_name
            .parse()
            .unwrap_or(Host::V4(std::net::Ipv4Addr::LOCALHOST))
    } else {
        listen.ip().into()
    };
    let port = NonZeroU16::new(listen.port()).unwrap_or(NonZeroU16::MIN);
    Endpoint { host, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_and_the_template_are_all_defaults() {
        for text in ["", TEMPLATE] {
            let namespace = Namespace::parse("namespace.toml", text, "cloud-7").unwrap();
            assert_eq!(namespace.name, "default");
            assert_eq!(namespace.listen.to_string(), "0.0.0.0:4433");
            assert_eq!(namespace.public_address.to_string(), "cloud-7:4433");
            assert!(!namespace.public_address_given);
            assert_eq!(namespace.limits, RelayLimits::default());
            assert_eq!(namespace.quota, Quota::default());
            assert_eq!(namespace.control, ControlSettings::default());
        }
    }

    #[test]
    fn the_templates_comments_are_the_defaults() {
        let text: String = TEMPLATE
            .lines()
            .filter(|line| line.starts_with("# ") && (line.contains(" = ") || line.contains("# [")))
            .map(|line| format!("{}\n", &line[2..]))
            .collect();
        let namespace = Namespace::parse("namespace.toml", &text, "cloud-7").unwrap();
        assert_eq!(
            (
                namespace.name.as_str(),
                namespace.listen.to_string().as_str()
            ),
            ("default", "0.0.0.0:4433")
        );
        assert_eq!(
            namespace.public_address.to_string(),
            "relay.example.com:4433"
        );
        assert_eq!(namespace.limits, RelayLimits::default());
        assert_eq!(namespace.control, ControlSettings::default());
        assert!(!namespace.quota.enforce_data);
    }

    #[test]
    fn a_public_address_without_a_port_takes_that_of_listen() {
        let namespace = Namespace::parse(
            "namespace.toml",
            "public_address = \"relay.example.com\"\nlisten = \"[::]:5000\"",
            "x",
        )
        .unwrap();
        assert_eq!(
            namespace.public_address.to_string(),
            "relay.example.com:5000"
        );
        assert!(namespace.public_address_given);
    }

    #[test]
    fn a_public_address_that_nobody_can_dial_is_told_what_to_be() {
        let told = |address: &str| {
            let text = format!("public_address = \"{address}\"");
            Namespace::parse("f", &text, "x").map_err(|faults| faults[0].to_string())
        };
        for nowhere in ["0.0.0.0:4433", "::", "[ff02::1]:4433", "255.255.255.255"] {
            let fault = told(nowhere).expect_err(nowhere);
            assert!(
                fault.contains("write how agents reach this machine"),
                "{fault}"
            );
        }
        let fault = told("https://relay.example.com:4433/").expect_err("a URL");
        assert!(
            fault.contains("write the host and the UDP port alone"),
            "{fault}"
        );
        let typed = told(" Relay.example.com.:4433 ").expect("an address");
        assert_eq!(typed.public_address.to_string(), "Relay.example.com:4433");
    }

    #[test]
    fn a_public_port_that_is_not_the_relays_is_noticed() {
        let note = |text: &str| Namespace::parse("f", text, "x").unwrap().port_note();
        let noted = note("public_address = \"relay.example.com:4434\"").unwrap();
        assert!(
            noted.contains("dial UDP port 4434") && noted.contains("listens on 4433"),
            "{noted}"
        );
        assert_eq!(
            note("public_address = \"relay.example.com\"\nlisten = \"0.0.0.0:5000\""),
            None
        );
        assert_eq!(note(""), None);
    }

    #[test]
    fn a_loopback_listener_is_its_own_public_address() {
        let namespace =
            Namespace::parse("namespace.toml", "listen = \"127.0.0.1:5000\"", "x").unwrap();
        assert_eq!(namespace.public_address.to_string(), "127.0.0.1:5000");
    }

    #[test]
    fn each_wrong_line_is_named_with_what_to_write() {
        let text = "name = \"con toso\"\nedition = \"gold\"\nlisten = \"0.0.0.0:0\"\npublic_address = \"a b:1\"\n[relay]\nworkers = 0\nsession_max = 3\n";
        let faults = Namespace::parse("namespace.toml", text, "x").unwrap_err();
        let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
        assert_eq!(
            told[0],
            "namespace.toml:1: name cannot be \"con toso\"; write 1 to 50 letters, digits or hyphens, like `name = \"contoso\"`"
        );
        assert_eq!(
            told[1],
            "namespace.toml:2: edition cannot be \"gold\"; write one of \"free\", \"developer\", \"basic\", \"standard\", \"premium\", \"unlimited\""
        );
        assert!(
            told[2].starts_with("namespace.toml:3: listen needs a port"),
            "{told:?}"
        );
        assert!(
            told[3].starts_with(
                "namespace.toml:4: public_address cannot be \"a b:1\": a host name has"
            ),
            "{told:?}"
        );
        assert_eq!(
            told[4],
            "namespace.toml:6: workers in [relay] must be a whole number from 1 to 255; write, for example, `workers = 2`"
        );
        assert_eq!(
            told[5],
            "namespace.toml:7: unknown field \"session_max\" in [relay]; did you mean `sessions_max`?"
        );
    }
}
