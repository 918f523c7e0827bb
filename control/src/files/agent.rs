//! `agent.toml`: what an agent is told on its own machine. Knows no keys: those are in the files
//! that it names.

use std::path::{Path, PathBuf};

use underpass_proto::{AllowEntry, AllowList};

use super::data_plane::DataPlane;
use super::document::{Document, Placed, Section};
use super::{Fault, disk, unreadable};

/// The share of new flows that a listener asks for, unless it says otherwise.
pub const WEIGHT_DEFAULT: u16 = 100;

/// The most that a weight may be. A relay takes less: see docs/limits.md.
pub const WEIGHT_MAX: u16 = 10_000;

/// What `agent.toml` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentFile {
    /// What to listen for.
    pub connects: Vec<ConnectEntry>,
    /// What may be dialled for every string. With an entry here, the targets of the strings no
    /// longer count.
    pub allow: AllowList,
    /// How the process works.
    pub data_plane: DataPlane,
}

/// One `[[connect]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectEntry {
    /// The file of the connection string; relative to the folder of `agent.toml`.
    pub string_file: PathBuf,
    /// Share of new flows.
    pub weight: u16,
    /// Lower is preferred.
    pub priority: u8,
    /// What may be dialled for this string alone.
    pub allow: AllowList,
}

impl AgentFile {
    /// What the file would say of a single connection string, and nothing else.
    #[must_use]
    pub fn of_one(string_file: PathBuf) -> Self {
        Self {
            connects: vec![ConnectEntry {
                string_file,
                weight: WEIGHT_DEFAULT,
                priority: 0,
                allow: AllowList::default(),
            }],
            allow: AllowList::default(),
            data_plane: DataPlane::default(),
        }
    }

    /// Reads `agent.toml`. Relative paths in it start from its own folder.
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

        let connects: Vec<_> = connects
            .into_iter()
            .map(|section| read_connect(&mut document, section, folder))
            .collect();
        document.finish(
            connects
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .map(|connects| Self {
                    connects,
                    allow,
                    data_plane,
                }),
        )
    }
}

/// This machine's name.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The `allow` of a file or of one `[[connect]]`; of an agent or of a sender.
pub(super) fn read_allow<'t>(document: &mut Document<'t>, section: &mut Section<'t>) -> AllowList {
    let list = document.list::<AllowEntry>(section, "allow", "sql01.corp.example:1433", 0);
    AllowList(list.map(|list| list.value).unwrap_or_default())
}

fn read_connect<'t>(
    document: &mut Document<'t>,
    mut section: Section<'t>,
    folder: &Path,
) -> Option<ConnectEntry> {
    let string_file = document.string(&mut section, "string_file", "payroll-sql.connection");
    let weight = document.integer(&mut section, "weight", 1..=WEIGHT_MAX, WEIGHT_DEFAULT);
    let priority = document.integer(&mut section, "priority", 0..=u8::MAX, 0);
    let allow = read_allow(document, &mut section);
    document.missing(&section, "string_file", "\"payroll-sql.connection\"");
    document.end(section);
    let Placed { value, .. } = string_file?;
    Some(ConnectEntry {
        string_file: folder.join(value),
        allow,
        weight: weight.map_or(WEIGHT_DEFAULT, |weight| weight.value),
        priority: priority.map_or(0, |priority| priority.value),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_field_is_read_and_paths_start_at_the_file() {
        let text = "allow = [\"10.0.0.0/8:443\"]\nca_file = \"ca.pem\"\nworkers = 3\nio = \"poll\"\nmtu_max = 1452\nkeep_alive = \"30s\"\n[[connect]]\nstring_file = \"a.connection\"\n[[connect]]\nstring_file = \"/b\"\nweight = 5\npriority = 1\nallow = [\"sql01:1433\"]\n";
        let file = AgentFile::parse("agent.toml", text, Path::new("/etc/underpass")).unwrap();
        assert_eq!(
            file.connects[0],
            ConnectEntry {
                string_file: "/etc/underpass/a.connection".into(),
                weight: 100,
                priority: 0,
                allow: AllowList::default(),
            }
        );
        assert_eq!(
            file.connects[1],
            ConnectEntry {
                string_file: "/b".into(),
                weight: 5,
                priority: 1,
                allow: AllowList(vec!["sql01:1433".parse().unwrap()]),
            }
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
        assert_eq!(file.allow.0[0].to_string(), "10.0.0.0/8:443");
    }

    #[test]
    fn wrong_lines_are_named() {
        let told = |text: &str| {
            AgentFile::parse("agent.toml", text, Path::new(""))
                .unwrap_err()
                .iter()
                .map(Fault::to_string)
                .collect::<Vec<_>>()
        };
        assert!(
            told("")[0]
                .starts_with("agent.toml:1: [[connect]] is missing; add it with `string_file"),
            "{:?}",
            told("")
        );
        let told =
            told("[[connect]]\nfile = \"x\"\n[[connect]]\nstring_file = \"x\"\nweight = 0\n");
        assert!(
            told[0].starts_with("agent.toml:1: string_file in [[connect]] is missing"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("agent.toml:2: unknown field \"file\" in [[connect]]; "),
            "{told:?}"
        );
        assert!(
            told[2].starts_with(
                "agent.toml:5: weight in [[connect]] must be a whole number from 1 to 10000"
            ),
            "{told:?}"
        );
    }

    #[test]
    fn a_time_between_signs_of_life_has_its_bounds() {
        let parsed = |every: &str| {
            let text = format!("keep_alive = \"{every}\"\n[[connect]]\nstring_file = \"x\"\n");
            AgentFile::parse("agent.toml", &text, Path::new(""))
        };
        for (every, seconds) in [("1s", 1), ("60s", 60), ("1m", 60)] {
            let file = parsed(every).unwrap();
            let read = file.data_plane.keep_alive;
            assert_eq!(read, Some(Duration::from_secs(seconds)), "{every}");
        }
        for wrong in ["999ms", "61s", "often"] {
            let faults = parsed(wrong).unwrap_err();
            let fault = faults[0].to_string();
            assert!(fault.starts_with("agent.toml:1: keep_alive"), "{fault}");
        }
    }
}
