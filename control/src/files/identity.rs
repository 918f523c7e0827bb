//! Which installation an agent or a sender is: an identifier that stays over restarts, and that
//! nobody can compute who knows the machine.
//!
//! It has a random part, which is made once and kept in a file of its own. A copied machine image
//! has a copy of it: both work, as two agents.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use underpass_proto::{AgentId, Role};

use super::agent::host_name;
use super::{disk, private, trust};

/// The file's name in a folder that has other files, too.
const BESIDE: &str = "underpass.identity";

/// The file's name in a folder of this program's own.
const OWN: &str = "identity";

/// Bytes of the file: 32 hexadecimal digits and a line end.
const LEN_MAX: u64 = 33;

/// An identifier, and whether it stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The identifier.
    pub agent_id: AgentId,
    /// Why the next start will have another one; `None`: it will have the same.
    pub lost: Option<String>,
}

/// Where the random part may be kept, the best place first. `beside` is a configuration file;
/// `variable` reads the environment.
#[must_use]
pub fn places(beside: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from);
    // systemd separates several folders by colons (systemd.exec(5), StateDirectory=).
    let state = variable("STATE_DIRECTORY").and_then(|all| {
        let first = all.as_bytes().split(|byte| *byte == b':').next()?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(first)))
    });
    let home = folder("HOME").map(|home| home.join(".local/state"));
    let own = folder("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or(home);
    let beside = beside.map(|file| file.with_file_name(BESIDE));
    let state = state.map(|path| path.join(OWN));
    let own = own.map(|path| path.join("underpass").join(OWN));
    let absolute = |path: &PathBuf| path.is_absolute();
    [state.filter(absolute), beside, own.filter(absolute)]
        .into_iter()
        .flatten()
        .collect()
}

/// The identity of this role with this configuration. The random part is read from the first of
/// `places` that has it, else made there from `random`.
#[must_use]
pub fn load_or_make(
    role: Role,
    configuration: &Path,
    places: &[PathBuf],
    random: AgentId,
) -> Identity {
    let mut faults = Vec::new();
    let mut note = |path: &Path, why: io::Error| faults.push(format!("{}: {why}", path.display()));
    let mut kept = None;
    let mut usable = Vec::new();
    for place in places {
        match read(place) {
            Ok(found) => {
                kept = kept.or(found);
                usable.push(place);
            }
            Err(why) => note(place, why),
        }
    }
    for place in usable {
        if kept.is_some() {
            break;
        }
        match make(place, random) {
            Ok(made) => kept = Some(made),
            Err(why) => note(place, why),
        }
    }
    let none = || match faults.is_empty() {
        true => "no folder is known for it".to_owned(),
        false => faults.join("; "),
    };
    Identity {
        agent_id: hash(role, configuration, kept.unwrap_or(random)),
        lost: kept.is_none().then(none),
    }
}

/// What tells this configuration from others of this machine, by the path as it is given: what a
/// link on it leads to changes with each new version of a Kubernetes volume. Can be computed by
/// others: for marks in files, not for the wire.
#[must_use]
pub fn configuration_id(configuration: &Path) -> AgentId {
    let machine = std::fs::read("/etc/machine-id")
        .or_else(|_| std::fs::read("/proc/sys/kernel/random/boot_id"))
        .unwrap_or_default();
    let host = host_name();
    let parts = [
        machine.trim_ascii(),
        host.as_bytes(),
        configuration.as_os_str().as_bytes(),
    ];
    digest(b"underpass/1 agent-id\0", &parts)
}

fn hash(role: Role, configuration: &Path, random: AgentId) -> AgentId {
    let role = role.to_string();
    let parts = [
        random.0.as_slice(),
        role.as_bytes(),
        &configuration_id(configuration).0,
    ];
    digest(b"underpass/1 identity\0", &parts)
}

fn digest(label: &[u8], parts: &[&[u8]]) -> AgentId {
    let mut hash = Sha256::new().chain_update(label);
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    AgentId(id)
}

/// The random part in this file; `None`: there is no file.
fn read(path: &Path) -> io::Result<Option<AgentId>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(invalid("is not a plain file".into()));
    }
    if metadata.uid() != uid && metadata.uid() != 0 {
        return Err(invalid(format!(
            "belongs to user {}, not to this one",
            metadata.uid()
        )));
    }
    // At each start of a pod, Kubernetes gives the files of a volume with `fsGroup` to that group.
    let mode = metadata.mode() & 0o777;
    let by_group = mode & 0o070 != 0 && !trust::is_private_group(path, &metadata);
    if mode & 0o007 != 0 || by_group {
        return Err(invalid(format!(
            "others can read it (mode {mode:03o}), so it is not used; {}",
            private::next_step(path)
        )));
    }
    let mut text = String::new();
    file.take(LEN_MAX + 1).read_to_string(&mut text)?;
    let id = text.trim_end().parse();
    let id = id.map_err(|_| invalid("does not hold 32 hexadecimal digits; remove it".into()))?;
    Ok(Some(id))
}

/// Keeps the random part in this file, or takes what another process has put there meanwhile.
fn make(path: &Path, random: AgentId) -> io::Result<AgentId> {
    if let Some(folder) = path.parent().filter(|folder| folder.ends_with("underpass")) {
        disk::folder(folder, 0o700)?;
    }
    match disk::create(path, format!("{random}\n").as_bytes(), disk::SECRET) {
        Ok(()) => Ok(random),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path)?.ok_or(error),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const FIRST: AgentId = AgentId([1; 16]);
    const SECOND: AgentId = AgentId([2; 16]);

    #[test]
    fn an_installation_keeps_its_identity_and_nobody_computes_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("underpass").join(OWN);
        let places = [place.clone()];
        let at = |role, configuration: &str, random| {
            load_or_make(role, Path::new(configuration), &places, random)
        };
        let first = at(Role::Agent, "/a", FIRST);
        assert_eq!(first.lost, None);
        assert_eq!(
            fs::metadata(&place).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            at(Role::Agent, "/a", SECOND),
            first,
            "it stays over restarts"
        );
        for other in [at(Role::Agent, "/b", FIRST), at(Role::Sender, "/a", FIRST)] {
            assert_ne!(other.agent_id, first.agent_id);
        }
        // Another machine that looks alike has another random part.
        fs::remove_file(&place).unwrap();
        assert_ne!(at(Role::Agent, "/a", SECOND).agent_id, first.agent_id);
    }

    #[test]
    fn a_file_that_is_not_trusted_is_neither_used_nor_replaced_and_the_next_place_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (bad, good) = (folder.path().join("bad"), folder.path().join("good"));
        let target = folder.path().join("target");
        let spoil: [&dyn Fn(); 4] = [
            &|| symlink(&target, &bad).unwrap(),
            &|| fs::create_dir(&bad).unwrap(),
            &|| fs::write(&bad, "nonsense").unwrap(),
            &|| {
                fs::write(&bad, format!("{FIRST}\n")).unwrap();
                fs::set_permissions(&bad, fs::Permissions::from_mode(0o644)).unwrap();
            },
        ];
        for spoil in spoil {
            spoil();
            let found = |places: &[PathBuf], random| {
                load_or_make(Role::Agent, Path::new("/a"), places, random)
            };
            let lost = found(std::slice::from_ref(&bad), FIRST).lost.unwrap();
            assert!(lost.contains("bad: "), "{lost}");
            let places = [bad.clone(), good.clone()];
            let kept = found(&places, SECOND);
            assert_eq!((&kept.lost, kept == found(&places, FIRST)), (&None, true));
            assert!(!target.exists());
            fs::remove_file(&good).unwrap();
            fs::remove_file(&bad)
                .or_else(|_| fs::remove_dir(&bad))
                .unwrap();
        }
    }

    #[test]
    fn a_file_of_a_group_without_other_members_is_used() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file to a group that nobody is in");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = [folder.path().join(OWN)];
        let found = |random| load_or_make(Role::Agent, Path::new("/a"), &place, random);
        let first = found(FIRST);
        // As the kubelet leaves it at the next start of the pod.
        std::os::unix::fs::chown(&place[0], None, Some(54_712)).unwrap();
        fs::set_permissions(&place[0], fs::Permissions::from_mode(0o660)).unwrap();
        assert_eq!(found(SECOND), first);
        fs::set_permissions(&place[0], fs::Permissions::from_mode(0o664)).unwrap();
        let why = found(SECOND).lost.unwrap();
        let mend = format!("run `chmod 600 {}`", place[0].display());
        assert!(why.ends_with(&mend), "{why}");
        assert_eq!(why.matches("others can read it").count(), 1, "{why}");
    }

    #[test]
    fn a_new_version_of_a_mounted_volume_is_the_same_configuration() {
        let volume = tempfile::tempdir().unwrap();
        let path = volume.path().join("agent.toml");
        let data = volume.path().join("..data");
        symlink("..data/agent.toml", &path).unwrap();
        let [first, second] = ["..2026_11", "..2026_12"].map(|version| {
            fs::create_dir(volume.path().join(version)).unwrap();
            fs::write(volume.path().join(version).join("agent.toml"), "").unwrap();
            let _ = fs::remove_file(&data);
            symlink(version, &data).unwrap();
            configuration_id(&path)
        });
        assert_eq!(first, second);
    }

    #[test]
    fn without_a_place_the_identity_is_random_and_says_so() {
        let nowhere = [PathBuf::from("/proc/nowhere/underpass/identity")];
        for places in [&nowhere[..], &[]] {
            let [first, second] = [FIRST, SECOND]
                .map(|random| load_or_make(Role::Agent, Path::new("/a"), places, random));
            assert_ne!(first.agent_id, second.agent_id);
            assert!(first.lost.is_some());
        }
    }

    #[test]
    fn places_are_those_of_systemd_the_configuration_and_the_user_in_this_order() {
        let all = |name: &str| {
            let value = match name {
                "STATE_DIRECTORY" => "/var/lib/underpass:/var/lib/other",
                "HOME" => "/home/ann",
                _ => return None,
            };
            Some(OsString::from(value))
        };
        let beside = Path::new("/etc/underpass/agent.toml");
        assert_eq!(
            places(Some(beside), all),
            [
                "/var/lib/underpass/identity",
                "/etc/underpass/underpass.identity",
                "/home/ann/.local/state/underpass/identity",
            ]
            .map(PathBuf::from)
        );
        let relative = |name: &str| (name == "STATE_DIRECTORY").then(|| OsString::from("state"));
        assert_eq!(places(None, relative), Vec::<PathBuf>::new());
    }
}
