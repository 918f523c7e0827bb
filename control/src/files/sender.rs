//! `sender.toml`: what a sender is told on the application's machine. Knows no keys: those are in
//! the files that it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use underpass_proto::AllowList;

use super::agent::read_allow;
use super::data_plane::DataPlane;
use super::document::{Document, Placed, Section};
use super::{Fault, disk, unreadable};

/// What `sender.toml` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SenderFile {
    /// What applications can reach.
    pub connects: Vec<ConnectEntry>,
    /// Hosts and ports that every string may take on this machine. With an entry here, the targets
    /// of the strings no longer count.
    pub allow: AllowList,
    /// How the process works.
    pub data_plane: DataPlane,
}

/// One `[[connect]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectEntry {
    /// The file of the connection string; relative to the folder of `sender.toml`.
    pub string_file: PathBuf,
    /// Where applications connect; `None`: on the endpoint's own port, at a loopback address of its
    /// own.
    pub bind: Option<SocketAddr>,
    /// Hosts and ports that this string alone may take on this machine.
    pub allow: AllowList,
}

impl SenderFile {
    /// What the file would say of a single connection string, and nothing else.
    #[must_use]
    pub fn of_one(string_file: PathBuf) -> Self {
        Self {
            connects: vec![ConnectEntry {
                string_file,
                bind: None,
                allow: AllowList::default(),
            }],
            allow: AllowList::default(),
            data_plane: DataPlane::default(),
        }
    }

    /// Reads `sender.toml`. Relative paths in it start from its own folder.
    ///
    /// # Errors
    /// All that is wrong, with lines.
    pub fn load(path: &Path) -> Result<Self, Vec<Fault>> {
        let file = path.display().to_string();
        let text = disk::read(path).map_err(|error| vec![unreadable(&file, &error)])?;
        Self::parse(&file, &text.text, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads the text of the file; `folder` is where relative paths start.
    ///
    /// # Errors
    /// All that is wrong, with lines.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, Vec<Fault>> {
        let (mut document, mut root) = Document::parse(file, text)?;
        let connects = document.tables(&mut root, "connect");
        let allow = read_allow(&mut document, &mut root);
        let data_plane = DataPlane::read(&mut document, &mut root, folder);
        document.missing_section(&root, "connect", "[[connect]]", "with `string_file = \"payroll-sql.connection\"` under it, once for each hybrid connection");
        document.end(root);
        let mut lines_by_bind = HashMap::new();
        let connects: Vec<_> = connects
            .into_iter()
            .map(|section| read_connect(&mut document, section, folder, &mut lines_by_bind))
            .collect();
        let connects: Option<Vec<_>> = connects.into_iter().collect();
        document.finish(connects.map(|connects| Self {
            connects,
            allow,
            data_plane,
        }))
    }
}

fn read_connect<'t>(
    document: &mut Document<'t>,
    mut section: Section<'t>,
    folder: &Path,
    lines_by_bind: &mut HashMap<SocketAddr, usize>,
) -> Option<ConnectEntry> {
    let string_file = document.string(&mut section, "string_file", "payroll-sql.connection");
    let bind = document.parsed::<SocketAddr>(&mut section, "bind", "127.0.0.1:14330");
    let allow = read_allow(document, &mut section);
    document.missing(&section, "string_file", "\"payroll-sql.connection\"");
    document.end(section);
    if let Some(bind) = &bind {
        check_bind(document, bind, lines_by_bind);
    }
    let Placed { value, .. } = string_file?;
    Some(ConnectEntry {
        string_file: folder.join(value),
        bind: bind.map(|bind| bind.value),
        allow,
    })
}

fn check_bind(
    document: &mut Document<'_>,
    bind: &Placed<SocketAddr>,
    lines_by_bind: &mut HashMap<SocketAddr, usize>,
) {
    if let Some(why) = open_to_others(bind.value) {
        document.fault(bind.line, format!("bind = \"{}\" {why}", bind.value));
    }
    if bind.value.port() == 0 {
        return; // Each takes a free one.
    }
    if let Some(line) = lines_by_bind.insert(bind.value, bind.line) {
        let what = format!(
            "bind = \"{}\" stands in line {line} already; give each its own address or port, or leave bind out",
            bind.value
        );
        document.fault(bind.line, what);
    }
}

/// Why an address is none for a sender: it is an open door to the endpoint for everybody who
/// reaches it.
#[must_use]
pub fn open_to_others(bind: SocketAddr) -> Option<&'static str> {
    (!bind.ip().to_canonical().is_loopback()).then_some(
        "is open to other machines, and a sender serves the applications of its own; bind to a loopback address, like 127.0.0.2:1433",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_field_is_read_and_paths_start_at_the_file() {
        let text = "workers = 3\nio = \"poll\"\nmtu_max = 1452\nkeep_alive = \"30s\"\nca_file = \"ca.pem\"\n[[connect]]\nstring_file = \"a.connection\"\n[[connect]]\nstring_file = \"/b\"\nbind = \"[::1]:1433\"\nallow = [\"*.corp:1433\"]\n";
        let file = SenderFile::parse("sender.toml", text, Path::new("/etc/underpass")).unwrap();
        assert_eq!(
            file.connects,
            [
                ConnectEntry {
                    string_file: "/etc/underpass/a.connection".into(),
                    bind: None,
                    allow: AllowList::default(),
                },
                ConnectEntry {
                    string_file: "/b".into(),
                    bind: Some("[::1]:1433".parse().unwrap()),
                    allow: AllowList(vec!["*.corp:1433".parse().unwrap()]),
                }
            ]
        );
        let data_plane = file.data_plane;
        assert_eq!(data_plane.keep_alive, Some(Duration::from_secs(30)));
        assert_eq!(
            (data_plane.workers, data_plane.io, data_plane.mtu_max),
            (Some(3), Some("poll"), Some(1452))
        );
        assert_eq!(
            data_plane.ca_file.unwrap(),
            Path::new("/etc/underpass/ca.pem")
        );
    }

    #[test]
    fn wrong_lines_are_named() {
        let told = |text: &str| {
            SenderFile::parse("sender.toml", text, Path::new(""))
                .unwrap_err()
                .iter()
                .map(Fault::to_string)
                .collect::<Vec<_>>()
        };
        assert!(
            told("")[0]
                .starts_with("sender.toml:1: [[connect]] is missing; add it with `string_file")
        );
        let twice = "[[connect]]\nstring_file = \"x\"\nbind = \"127.0.0.1:1\"\n[[connect]]\nstring_file = \"y\"\nbind = \"127.0.0.1:1\"\n";
        assert_eq!(
            told(twice),
            [
                "sender.toml:6: bind = \"127.0.0.1:1\" stands in line 3 already; give each its own address or port, or leave bind out"
            ]
        );
        let open = "[[connect]]\nstring_file = \"x\"\nbind = \"0.0.0.0:1433\"\nweight = 1";
        let told = told(open);
        assert!(
            told[0].starts_with("sender.toml:3: bind = \"0.0.0.0:1433\" is open to other machines"),
            "{told:?}"
        );
        assert_eq!(
            told[1],
            "sender.toml:4: unknown field \"weight\" in [[connect]]; known here are `string_file`, `bind`, `allow`"
        );
    }

    #[test]
    fn a_name_in_place_of_an_address_is_told() {
        let text = "[[connect]]\nstring_file = \"x\"\nbind = \"localhost:1433\"\n";
        let faults = SenderFile::parse("sender.toml", text, Path::new("")).unwrap_err();
        assert!(
            faults[0]
                .to_string()
                .ends_with("write, for example, `bind = \"127.0.0.1:14330\"`"),
            "{faults:?}"
        );
    }
}
