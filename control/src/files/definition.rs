//! `connections/NAME.toml`: one hybrid connection. Only host and port must be there.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::Path;

use ipnet::IpNet;
use underpass_proto::snapshot::HycoLimits;
use underpass_proto::{Endpoint, HycoName};

use super::Fault;
use super::agent::{WEIGHT_DEFAULT, WEIGHT_MAX};
use super::document::{Document, Placed, Section};
use super::edit::Edit;
use super::typed::{Binding, Network, ServiceHost};

/// The most that a limit may be: a figure beyond is a slip of the finger.
pub const LIMIT_MAX: u32 = 10_000_000;

/// One definition, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Its name, from the file's name.
    pub name: HycoName,
    /// What it leads to.
    pub endpoint: Endpoint,
    /// Where applications connect.
    pub bind: Option<SocketAddr>,
    /// Who may connect there.
    pub allow_from: Vec<IpNet>,
    /// Its bounds.
    pub limits: HycoLimits,
    /// Whether the relay may dial the endpoint to learn its health.
    pub probe: Probe,
    /// Line of `bind`, for faults that show only beside other definitions.
    pub bind_line: usize,
}

/// Whether and how often the endpoint is dialled to learn its health.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Probe {
    /// As little as is needed, and never so often that a service could take it for an attack.
    #[default]
    Auto,
    /// Each minute without a flow, without end.
    On,
    /// Never.
    Off,
}

impl Probe {
    const WORDS: [(&str, Self); 3] = [("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];

    /// What a word stands for.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let mut words = Self::WORDS.into_iter();
        words
            .find(|(known, _)| *known == word)
            .map(|(_, probe)| probe)
    }

    /// How it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        let mut words = Self::WORDS.into_iter();
        words
            .find(|(_, probe)| *probe == self)
            .map_or("auto", |(word, _)| word)
    }
}

/// The name that a file in `connections/` or `keys/` stands for.
///
/// # Errors
/// A fault: the file's name is no name.
pub fn name_of(file: &str, path: &Path) -> Result<HycoName, Fault> {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    stem.parse().map_err(|error| Fault::whole(file, format!("the file's name is the name of the hybrid connection, and {error}; rename it, like `payroll-sql.toml`")))
}

impl Definition {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All that is wrong, with lines.
    pub fn parse(name: HycoName, file: &str, text: &str) -> Result<Self, Vec<Fault>> {
        let faulty = name.clone();
        Self::read(name, file, text)
            .map_err(|faults| faults.into_iter().map(|fault| fault.of(&faulty)).collect())
    }

    fn read(name: HycoName, file: &str, text: &str) -> Result<Self, Vec<Fault>> {
        let (mut document, mut root) = Document::parse(file, text)?;
        let host = document.parsed::<ServiceHost>(&mut root, "host", "sql01.corp.example");
        let port = document.integer(&mut root, "port", 1..=u16::MAX, 1433);
        let bind = document.parsed::<Binding>(&mut root, "bind", "127.0.0.1:14330");
        let allow_from = document.list::<Network>(&mut root, "allow_from", "10.0.0.0/8", 1);
        let probe = document.word(&mut root, "probe", &Probe::WORDS);
        let limits = document.table(&mut root, "limits");
        document.missing(&root, "host", "\"sql01.corp.example\"");
        document.missing(&root, "port", "1433");
        document.end(root);

        let limits = limits.map_or_else(HycoLimits::default, |limits| {
            read_limits(&mut document, limits)
        });
        let bind = bind.map(|bind| Placed {
            value: bind.value.0,
            line: bind.line,
        });
        check_open_door(&mut document, bind.as_ref(), allow_from.as_ref());
        let endpoint = host.zip(port).and_then(|(host, port)| {
            Some(Endpoint {
                host: host.value.0,
                port: NonZeroU16::new(port.value)?,
            })
        });
        document.finish(endpoint.map(|endpoint| Self {
            name,
            endpoint,
            bind_line: bind.as_ref().map_or(0, |bind| bind.line),
            bind: bind.map(|bind| bind.value),
            allow_from: allow_from.map_or_else(Vec::new, |list| {
                list.value.into_iter().map(|network| network.0).collect()
            }),
            limits,
            probe: probe.map_or_else(Probe::default, |probe| probe.value),
        }))
    }

    /// The text of a file that says this: what `connection create` writes.
    #[must_use]
    pub fn text(&self) -> String {
        let mut edit = Edit::default();
        self.write(&mut edit, None);
        edit.text()
    }

    /// The text of a file, changed to say this instead of what it says. Comments and what does not
    /// change stay as they are.
    ///
    /// # Errors
    /// What is wrong with the text, or would be afterwards.
    pub fn edited(&self, file: &str, text: &str) -> Result<String, Vec<Fault>> {
        let before = Self::parse(self.name.clone(), file, text)?;
        let mut edit = Edit::new(text).map_err(|error| vec![Fault::whole(file, error)])?;
        self.write(&mut edit, Some(&before));
        let changed = edit.text();
        Self::parse(self.name.clone(), file, &changed)?;
        Ok(changed)
    }

    /// Whether both want a binding that only one can have.
    #[must_use]
    pub fn contends_with(&self, other: &Self) -> bool {
        self.bind
            .zip(other.bind)
            .is_some_and(|(own, other)| overlap(own, other))
    }

    /// Writes what differs from `before`, or from the defaults.
    fn write(&self, edit: &mut Edit, before: Option<&Self>) {
        let differs =
            |changed: fn(&Self, &Self) -> bool| before.is_none_or(|before| changed(self, before));
        if differs(|a, b| a.endpoint.host != b.endpoint.host) {
            edit.set("host", Some(self.endpoint.host.to_string().into()));
        }
        if differs(|a, b| a.endpoint.port != b.endpoint.port) {
            edit.set("port", Some(i64::from(self.endpoint.port.get()).into()));
        }
        if differs(|a, b| a.bind != b.bind) {
            edit.set("bind", self.bind.map(|bind| bind.to_string().into()));
        }
        if differs(|a, b| a.allow_from != b.allow_from) {
            let networks: toml_edit::Array = self.allow_from.iter().map(IpNet::to_string).collect();
            edit.set(
                "allow_from",
                (!networks.is_empty()).then(|| networks.into()),
            );
        }
        if before.map_or_else(Probe::default, |before| before.probe) != self.probe {
            edit.set("probe", Some(self.probe.word().into()));
        }
        let default = HycoLimits::default();
        let limits_before = before.map_or(&default, |before| &before.limits);
        for (field, limit, before) in [
            (
                "listeners_max",
                self.limits.listeners_max,
                limits_before.listeners_max,
            ),
            ("flows_max", self.limits.flows_max, limits_before.flows_max),
        ] {
            if limit != before {
                // It was read as a section, or is not there: either can be written to.
                let _ = edit.set_in("limits", field, i64::from(limit).into());
            }
        }
    }
}

/// Whether both cannot be listened on at once. Port 0 is never the same twice.
#[must_use]
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let ip = |address: SocketAddr| address.ip().to_canonical();
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide == narrow || (wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4()))
    };
    one.port() == other.port()
        && one.port() != 0
        && (covers(ip(one), ip(other)) || covers(ip(other), ip(one)))
}

fn read_limits<'t>(document: &mut Document<'t>, mut section: Section<'t>) -> HycoLimits {
    let default = HycoLimits::default();
    let mut limit = |field, default| {
        document
            .integer(&mut section, field, 1..=LIMIT_MAX, default)
            .map_or(default, |limit| limit.value)
    };
    let (listeners_max, flows_max) = (
        limit("listeners_max", default.listeners_max),
        limit("flows_max", default.flows_max),
    );
    let weight = document.integer(&mut section, "weight", 1..=WEIGHT_MAX, WEIGHT_DEFAULT);
    let priority = document.integer(&mut section, "priority", 0..=u8::MAX, 0);
    let limits = HycoLimits {
        listeners_max,
        flows_max,
        weight: weight.map(|weight| weight.value),
        priority: priority.map(|priority| priority.value),
    };
    document.end(section);
    limits
}

/// A binding that others reach is an open door to the endpoint: who may pass must be said.
fn check_open_door(
    document: &mut Document<'_>,
    bind: Option<&Placed<SocketAddr>>,
    allow_from: Option<&Placed<Vec<Network>>>,
) {
    match (bind, allow_from) {
        (Some(bind), None) if !bind.value.ip().to_canonical().is_loopback() => {
            let address = bind.value;
            let what = format!(
                "bind = \"{address}\" is open to other machines; add `allow_from = [\"10.0.0.0/8\"]` with the networks that may connect, or bind to 127.0.0.1"
            );
            document.fault(bind.line, what);
        }
        (None, Some(list)) => {
            document.fault(list.line, "allow_from says who may connect to the binding, and there is none; add `bind = \"127.0.0.1:14330\"`, or leave allow_from out");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_enough() {
        let definition = parse("host = \"sql01\"\nport = 1433").unwrap();
        assert_eq!(definition.endpoint.to_string(), "sql01:1433");
        assert_eq!((definition.bind, definition.probe), (None, Probe::Auto));
        assert_eq!(definition.limits, HycoLimits::default());
    }

    #[test]
    fn what_create_writes_is_read_back_the_same() {
        let text = "host = \"2001:db8::1\"\nport = 443\nbind = \"0.0.0.0:14330\"\nallow_from = [\"10.0.0.0/8\", \"192.0.2.7\"]";
        let definition = parse(text).unwrap();
        let again = parse(&definition.text()).unwrap();
        assert_eq!(again, definition);
        assert_eq!(again.allow_from[1].to_string(), "192.0.2.7/32");
    }

    #[test]
    fn an_edited_file_says_the_new_and_keeps_its_comments() {
        let text = "# ask Ann\nhost = 'sql01' # old\nport = 0x599\nbind = \"127.0.0.1:1\"\n";
        let mut definition = parse(text).unwrap();
        definition.endpoint.host = "sql02".parse().unwrap();
        (definition.bind, definition.bind_line) = (None, 0);
        definition.probe = Probe::Off;
        definition.limits.flows_max = 7;
        let changed = definition.edited("f", text).unwrap();
        assert_eq!(
            changed,
            "# ask Ann\nhost = \"sql02\" # old\nport = 0x599\nprobe = \"off\"\n\n[limits]\nflows_max = 7\n"
        );
        assert_eq!(parse(&changed).unwrap(), definition);
        assert_eq!(parse(&definition.text()).unwrap(), definition);
        definition.limits = HycoLimits::default();
        definition.probe = Probe::On;
        assert_eq!(
            parse(&definition.edited("f", &changed).unwrap()).unwrap(),
            definition
        );
    }

    #[test]
    fn a_file_with_a_fault_is_not_edited() {
        let definition = parse("host = 'a'\nport = 1").unwrap();
        let faults = definition
            .edited("f", "host = 'a'\nport = 1\nprot = 2\n")
            .unwrap_err();
        assert!(
            faults[0].to_string().starts_with("f:3: unknown field"),
            "{faults:?}"
        );
    }

    #[test]
    fn every_field_is_read() {
        let definition = parse("host = \"a\"\nport = 1\nprobe = \"off\"\nbind = \"[::1]:0\"\n[limits]\nlisteners_max = 3\nflows_max = 4\nweight = 100\npriority = 2").unwrap();
        assert_eq!(definition.bind.unwrap().to_string(), "[::1]:0");
        assert_eq!(
            definition.limits,
            HycoLimits {
                listeners_max: 3,
                flows_max: 4,
                weight: Some(100),
                priority: Some(2),
            }
        );
        assert_eq!(definition.probe, Probe::Off);
        for probe in [Probe::Auto, Probe::On, Probe::Off] {
            let text = format!("host = \"a\"\nport = 1\nprobe = \"{}\"", probe.word());
            assert_eq!(parse(&text).unwrap().probe, probe);
            assert_eq!(Probe::of_word(probe.word()), Some(probe));
        }
    }

    #[test]
    fn a_binding_open_to_others_needs_to_say_to_whom() {
        let faults = told("host = \"a\"\nport = 1\nbind = \"0.0.0.0:5000\"");
        assert!(faults[0].starts_with("connections/payroll-sql.toml:3: bind = \"0.0.0.0:5000\" is open to other machines; add `allow_from"), "{faults:?}");
    }

    #[test]
    fn wrong_lines_are_named_with_what_to_write() {
        assert_eq!(
            told("")[0],
            "connections/payroll-sql.toml:1: host is missing; write host = \"sql01.corp.example\""
        );
        assert_eq!(
            told("")[1],
            "connections/payroll-sql.toml:1: port is missing; write port = 1433"
        );
        assert_eq!(
            told("host = \"a\"\nport = 70000")[0],
            "connections/payroll-sql.toml:2: port must be a whole number from 1 to 65535; write, for example, `port = 1433`"
        );
        assert_eq!(
            told("host = \"a b\"\nport = 1")[0],
            "connections/payroll-sql.toml:1: host cannot be \"a b\": a host name has letters, digits, hyphens and dots only; write, for example, `host = \"sql01.corp.example\"`"
        );
        assert_eq!(
            told("host = \"a\"\nport = 1\nallow_from = [\"x\"]\nbind = \"127.0.0.1:1\"").len(),
            1
        );
        assert!(
            told("host = \"a\"\nport = 1\nprobe = \"no\"")[0]
                .ends_with("write one of \"auto\", \"on\", \"off\"")
        );
        // Not taken for "on", which is not what it was in JSON.
        assert_eq!(
            told("host = \"a\"\nport = 1\nprobe = true")[0],
            "connections/payroll-sql.toml:3: probe is true or false; write a text, like `probe = \"auto\"`"
        );
    }

    #[test]
    fn a_file_name_that_is_no_name_is_told() {
        let fault =
            name_of("connections/a_b.toml", Path::new("/x/connections/a_b.toml")).unwrap_err();
        assert!(fault.to_string().starts_with("connections/a_b.toml: the file's name is the name of the hybrid connection, and a name has letters"), "{fault}");
    }

    fn parse(text: &str) -> Result<Definition, Vec<Fault>> {
        Definition::parse(
            "payroll-sql".parse().unwrap(),
            "connections/payroll-sql.toml",
            text,
        )
    }

    fn told(text: &str) -> Vec<String> {
        parse(text)
            .unwrap_err()
            .iter()
            .map(Fault::to_string)
            .collect()
    }
}
