//! Entries in the hosts file that lead the names of endpoints to a sender. All that others wrote
//! there stays byte for byte.
//!
//! A sender's entries stand between two marker lines, the first of which names the sender; several
//! senders have a section each.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use underpass_proto::HostName;
use underpass_proto::endpoint::HOSTS_LINE_END;

use super::{Lock, disk, trust};

/// The largest hosts file that is touched, bytes: some block a hundred thousand names with it.
const HOSTS_SIZE_MAX: u64 = 16 * 1024 * 1024;

const BEGIN: &str = "# underpass begin (";
const END: &str = "# underpass end";

/// Stands in the first marker where the text before it has no line end: ours comes out with the
/// section.
const JOINED: &str = "; the line end before this line is of it";

/// One line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Where the sender listens.
    pub ip: IpAddr,
    /// What applications ask for.
    pub name: HostName,
}

/// A name that leads elsewhere by a line that is not ours. The first line of a name counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The line, from 1.
    pub line: usize,
    /// The name.
    pub name: HostName,
    /// Where it leads.
    pub ip: IpAddr,
}

/// Puts the entries of a sender into the file, in place of those that it had there; none takes the
/// section out. Writes nothing where nothing changes.
///
/// # Errors
/// The kernel's; the file is as it was then.
pub fn update(path: &Path, sender: &str, entries: &BTreeSet<Entry>) -> io::Result<Vec<Conflict>> {
    // A link stays one: what it leads to is what is written.
    let path = &trust::follow(path)?;
    // Two senders at once do it one after the other. Where the folder cannot be locked, the file is
    // written all the same.
    let _alone = path.parent().and_then(|folder| Lock::folder(folder).ok());
    let file = File::open(path)?;
    let before = read(&file)?;
    let others = without(&before, sender);
    let found = conflicts(&others, entries);
    let after = with(&others, sender, entries);
    if after != before {
        disk::replace(path, &after, disk::OPEN).or_else(|error| match error.kind() {
            // No new file may be made beside it, or put in its place: it is a mount of its own, or
            // the folder is another's.
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::CrossesDevices => write_in_place(path, &after),
            _ => Err(error),
        })?;
    }
    Ok(found)
}

/// The text without the section of this sender.
fn without(text: &[u8], sender: &str) -> Vec<u8> {
    let begin = format!("{BEGIN}{sender}");
    let mut out = Vec::with_capacity(text.len());
    let mut within = false;
    let mut joined = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let shown = line.trim_ascii_end();
        let mark = shown.strip_prefix(begin.as_bytes());
        if let Some(rest) = mark.filter(|rest| rest.starts_with(b")") || rest.starts_with(b";")) {
            within = true;
            joined = rest.starts_with(JOINED.as_bytes());
        } else if within && shown == END.as_bytes() {
            within = false;
        } else if within && shown.ends_with(HOSTS_LINE_END.as_bytes()) {
            // One of ours, even when somebody took the last marker out; what somebody else wrote in
            // between stays.
        } else if std::mem::take(&mut joined) && shown.starts_with(BEGIN.as_bytes()) {
            // The line end before is of this section now.
            let marker = String::from_utf8_lossy(shown);
            let marker = marker.trim_end_matches(')');
            out.extend_from_slice(format!("{marker}{JOINED})\n").as_bytes());
        } else {
            out.extend_from_slice(line);
        }
    }
    if joined {
        out.pop();
    }
    out
}

fn with(others: &[u8], sender: &str, entries: &BTreeSet<Entry>) -> Vec<u8> {
    let mut out = others.to_vec();
    if entries.is_empty() {
        return out;
    }
    let joined = !matches!(out.last(), None | Some(b'\n'));
    if joined {
        out.push(b'\n');
    }
    let mark = if joined { JOINED } else { "" };
    out.extend_from_slice(format!("{BEGIN}{sender}{mark})\n").as_bytes());
    for entry in entries {
        out.extend_from_slice(format!("{entry} {HOSTS_LINE_END}\n").as_bytes());
    }
    out.extend_from_slice(END.as_bytes());
    out.push(b'\n');
    out
}

/// Lines of others for names of ours, that lead elsewhere.
fn conflicts(others: &[u8], entries: &BTreeSet<Entry>) -> Vec<Conflict> {
    let mut found = Vec::new();
    for (index, line) in others.split(|byte| *byte == b'\n').enumerate() {
        let line = String::from_utf8_lossy(line);
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let names: Vec<&str> = words.collect();
        let ours = entries
            .iter()
            .filter(|entry| entry.ip != ip && entry.ip.is_ipv4() == ip.is_ipv4())
            .filter(|entry| names.iter().any(|name| entry.name.matches(name)));
        found.extend(ours.map(|entry| Conflict {
            line: index + 1,
            name: entry.name.clone(),
            ip,
        }));
    }
    found
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(HOSTS_SIZE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > HOSTS_SIZE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is larger than {HOSTS_SIZE_MAX} bytes"),
        ));
    }
    Ok(text)
}

/// The text first, then the length: a reader in between sees no less than what both have in common.
fn write_in_place(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// As a line of the file. The name is there with the dot of the root, too: glibc compares letter by
/// letter, and an application that asks for `sql01.corp.` would go past the sender without a word.
impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{0} {1} {1}.", self.ip, self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const OTHERS: &[u8] = b"127.0.0.1 localhost\n\n# mine \xff\n10.0.0.1\tsql02.corp # by hand";

    fn entries(lines: &[(&str, &str)]) -> BTreeSet<Entry> {
        let entry = |(ip, name): &(&str, &str)| Entry {
            ip: ip.parse().unwrap(),
            name: name.parse().unwrap(),
        };
        lines.iter().map(entry).collect()
    }

    fn file(text: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn entries_come_and_go_and_the_rest_stays_byte_for_byte() {
        for others in [OTHERS, b"", b"127.0.0.1 localhost\n", b"\n\n"] {
            let (_folder, path) = file(others);
            let one = entries(&[("127.0.0.2", "sql01.corp"), ("127.0.0.3", "web.corp")]);
            assert_eq!(update(&path, "sender a", &one).unwrap(), []);
            let text = fs::read(&path).unwrap();
            assert!(text.starts_with(others));
            let ours = String::from_utf8_lossy(&text[others.len()..]).into_owned();
            assert!(
                ours.ends_with("\n127.0.0.2 sql01.corp sql01.corp. # by underpass\n127.0.0.3 web.corp web.corp. # by underpass\n# underpass end\n"),
                "{ours}"
            );
            update(&path, "sender b", &entries(&[("127.0.0.9", "b.corp")])).unwrap();
            update(&path, "sender a", &entries(&[("127.0.0.2", "sql01.corp")])).unwrap();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert!(
                !text.contains("web.corp") && text.contains("b.corp"),
                "{text}"
            );
            update(&path, "sender b", &BTreeSet::new()).unwrap();
            update(&path, "sender a", &BTreeSet::new()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), others);
        }
    }

    #[test]
    fn whatever_stands_there_comes_out_as_it_was() {
        use rand::{RngExt, SeedableRng};
        let seed = rand::random();
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let pieces: [&[u8]; 6] = [b"\n", b"\r\n", b"127.0.0.1 a", b"# x", b"\xff", b" "];
        let one = entries(&[("127.0.0.2", "sql01.corp")]);
        let two = entries(&[("127.0.0.3", "sql02.corp"), ("127.0.0.4", "web.corp")]);
        for _ in 0..2_000 {
            let mut others = Vec::new();
            for _ in 0..rng.random_range(0..8) {
                others.extend_from_slice(pieces[rng.random_range(0..pieces.len())]);
            }
            let mut text = others.clone();
            for _ in 0..rng.random_range(0..8) {
                let (sender, own) = [("a", &one), ("b", &two)][rng.random_range(0..2)];
                text = with(&without(&text, sender), sender, own);
            }
            let (first, then) = [("a", "b"), ("b", "a")][rng.random_range(0..2)];
            let text = without(&without(&text, first), then);
            assert_eq!(text, others, "seed {seed}");
        }
    }

    #[test]
    fn what_others_wrote_into_our_section_stays() {
        let text = b"# underpass begin (a)\n127.0.0.2 sql01.corp # by underpass\n10.0.0.7 theirs\n";
        assert_eq!(without(text, "a"), b"10.0.0.7 theirs\n");
        assert_eq!(without(text, "ab"), text);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_told_with_its_line() {
        let found = conflicts(
            b"::1 sql01.corp\n127.0.0.2 sql01.corp\n10.0.0.1 x SQL01.corp. # y\n# 10.0.0.2 sql01.corp\n",
            &entries(&[("127.0.0.2", "sql01.corp")]),
        );
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].line, found[0].ip.to_string().as_str()),
            (3, "10.0.0.1")
        );
    }

    #[test]
    fn mode_and_link_stay_and_nothing_is_left_behind() {
        let (folder, path) = file(OTHERS);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        update(&link, "a", &entries(&[("127.0.0.2", "sql01.corp")])).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_shorter_text_in_place_leaves_nothing_of_the_longer_one() {
        let (_folder, path) = file(OTHERS);
        write_in_place(&path, b"127.0.0.1 localhost\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"127.0.0.1 localhost\n");
    }

    #[test]
    fn a_missing_file_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let error = update(&path, "a", &BTreeSet::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!path.exists());
    }
}
