//! The files of `keys/`: secrets, readable by their owner alone. No fault repeats one.

mod by_name;

use std::io;
use std::path::{Path, PathBuf};

use rand::Rng;
use underpass_proto::key::{Secret32, Which};
use underpass_proto::snapshot::RelayKeys;
use underpass_proto::{HycoKeys, Key, KeyPair, Rule};
use zeroize::Zeroizing;

use super::disk::{FileSystem, System};
use super::document::{Document, Section};
use super::{Directory, Fault, Unmade, disk, edit, private, unreadable};

pub use by_name::{KeyFiles, equal_but_for_case, find};

/// Keys that a person brings must have this many characters: shorter ones can be guessed.
pub const KEY_LEN_MIN: usize = 32;

/// File names that are no hybrid connection's.
const RELAY: &str = "_relay.toml";
const MANAGE: &str = "_manage.toml";

/// Whether a file of `keys/` belongs to the namespace and not to a hybrid connection.
#[must_use]
pub fn is_reserved(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name == RELAY || name == MANAGE)
}

/// Reads the keys of a hybrid connection.
///
/// # Errors
/// All that is wrong; also that others can read the file.
pub fn load(file: &str, path: &Path) -> Result<HycoKeys, Vec<Fault>> {
    let text = secret_text(file, path).map_err(|fault| vec![fault])?;
    parse(file, &text)
}

/// New random keys for a hybrid connection that has no key file, unless another process was
/// quicker.
///
/// # Errors
/// That the file could not be written.
pub fn make(path: &Path, rng: &mut impl Rng) -> Result<(), Unmade> {
    make_on(&System, path, rng)
}

/// The same as [`make`], on a file system.
///
/// # Errors
/// See [`make`].
pub fn make_on(system: &dyn FileSystem, path: &Path, rng: &mut impl Rng) -> Result<(), Unmade> {
    let text = Zeroizing::new(format!(
        "# Keys of one hybrid connection. Whoever has one can use it.\n\n[listen]\n{}\n[send]\n{}",
        *pair(rng),
        *pair(rng)
    ));
    write_new(system, path, &text)
}

/// The text of a key file with one key regenerated. All else stays, comments too.
///
/// # Errors
/// All that is wrong with the text.
pub fn regenerated(
    file: &str,
    text: &str,
    rule: Rule,
    which: Which,
    rng: &mut impl Rng,
) -> Result<Zeroizing<String>, Vec<Fault>> {
    parse(file, text)?;
    let key = random_key(rng);
    let changed = edit::set_in(text, rule.right(), which_field(which), key.expose());
    let changed = changed.map_err(|error| vec![Fault::whole(file, error)])?;
    let changed = Zeroizing::new(changed);
    // What was written is what will be read: checked before it replaces a file that works.
    let read = parse(file, &changed)?;
    let stands = read.rule(rule).and_then(|pair| pair.which(which)) == Some(&key);
    stands.then_some(changed).ok_or_else(|| {
        vec![Fault::whole(
            file,
            "cannot be changed; write the new key by hand",
        )]
    })
}

fn which_field(which: Which) -> &'static str {
    match which {
        Which::Primary => "primary",
        Which::Secondary => "secondary",
    }
}

/// Reads the manage keys.
///
/// # Errors
/// All that is wrong with the file.
pub fn load_manage(directory: &Directory) -> Result<KeyPair, Vec<Fault>> {
    let path = manage_file(directory);
    let file = directory.shown(&path);
    let text = secret_text(&file, &path).map_err(|fault| vec![fault])?;
    parse_manage(&file, &text)
}

/// Reads the text of the file of manage keys.
///
/// # Errors
/// All that is wrong, with lines; never a key.
pub fn parse_manage(file: &str, text: &str) -> Result<KeyPair, Vec<Fault>> {
    let (mut document, mut root) = Document::parse(file, text)?;
    let primary = read_key(&mut document, &mut root, "primary");
    let secondary = read_key(&mut document, &mut root, "secondary");
    document.missing(
        &root,
        "primary",
        "\"…\", made by `openssl rand -base64 32`; or delete the file, and new keys are made",
    );
    document.end(root);
    document.finish(primary.map(|primary| KeyPair { primary, secondary }))
}

/// Where the manage keys stand.
#[must_use]
pub fn manage_file(directory: &Directory) -> PathBuf {
    directory.keys().join(MANAGE)
}

/// The manage keys; made where they are missing.
///
/// # Errors
/// What could not be written.
pub fn make_manage(directory: &Directory, rng: &mut impl Rng) -> Result<(), Unmade> {
    let path = manage_file(directory);
    if path.exists() {
        return Ok(());
    }
    write_new(
        &System,
        &path,
        &Zeroizing::new(format!(
            "# The namespace's manage keys (rule name `manage`).\n\n{}",
            *pair(rng)
        )),
    )
}

/// Where the keys that outlive a relay's process stand.
#[must_use]
pub fn relay_file(directory: &Directory) -> PathBuf {
    directory.keys().join(RELAY)
}

/// The keys that outlive a relay's process; made where they are missing.
///
/// # Errors
/// What could not be written.
pub fn make_relay(directory: &Directory, rng: &mut impl Rng) -> Result<(), Unmade> {
    let path = relay_file(directory);
    if path.exists() {
        return Ok(());
    }
    let [reset, token, connection_id] = [random_key(rng), random_key(rng), random_key(rng)];
    let text = Zeroizing::new(format!(
        "# Keys by which agents learn at once that a relay was restarted.\n\nreset = \"{}\"\ntoken = \"{}\"\nconnection_id = \"{}\"\n",
        reset.expose(),
        token.expose(),
        connection_id.expose()
    ));
    write_new(&System, &path, &text)
}

/// Reads the keys that outlive a relay's process.
///
/// # Errors
/// All that is wrong with the file.
pub fn load_relay(file: &str, path: &Path) -> Result<RelayKeys, Vec<Fault>> {
    let text = secret_text(file, path).map_err(|fault| vec![fault])?;
    parse_relay(file, &text)
}

/// Relay keys for one start, where the file's cannot be had.
#[must_use]
pub fn passing_relay_keys(rng: &mut impl Rng) -> RelayKeys {
    let mut random = || Secret32::new(random_32(rng));
    RelayKeys {
        reset: random(),
        token: random(),
        connection_id: random(),
    }
}

/// Reads a file that others must not read.
///
/// # Errors
/// Why not, and the command that mends it.
pub fn secret_text(file: &str, path: &Path) -> Result<Zeroizing<String>, Fault> {
    let unread = |error| unreadable(file, &error);
    // Before what others can change is refused: one command mends both.
    if let Some(stamp) = disk::stamp(path).map_err(unread)? {
        private::check(file, path, &stamp)?;
    }
    let read = disk::read(path).map_err(unread)?;
    private::check(file, path, &read.stamp)?;
    Ok(read.text)
}

/// Reads the text of a key file.
///
/// # Errors
/// All that is wrong, with lines; never a key.
pub fn parse(file: &str, text: &str) -> Result<HycoKeys, Vec<Fault>> {
    let (mut document, mut root) = Document::parse(file, text)?;
    let listen = read_rule(&mut document, &mut root, "listen");
    let send = read_rule(&mut document, &mut root, "send");
    document.end(root);
    if let (Some(listen), Some(send)) = (&listen, &send)
        && shares_a_key(listen, send)
    {
        document.fault(1, "[listen] and [send] have the same key, so whoever may send could listen; write another, made by `openssl rand -base64 32`");
    }
    document.finish(listen.zip(send).map(|(listen, send)| HycoKeys {
        listen: Some(listen),
        send: Some(send),
    }))
}

fn read_rule<'t>(
    document: &mut Document<'t>,
    root: &mut Section<'t>,
    rule: &'static str,
) -> Option<KeyPair> {
    let Some(mut section) = document.table(root, rule) else {
        document.missing_section(
            root,
            rule,
            &format!("[{rule}]"),
            "with `primary = \"…\"` under it; or delete the file, and new keys are made",
        );
        return None;
    };
    let primary = read_key(document, &mut section, "primary");
    let secondary = read_key(document, &mut section, "secondary");
    document.missing(
        &section,
        "primary",
        "\"…\", made by `openssl rand -base64 32`",
    );
    document.end(section);
    Some(KeyPair {
        primary: primary?,
        secondary,
    })
}

/// Never through a reading that repeats what it read.
fn read_key<'t>(
    document: &mut Document<'t>,
    section: &mut Section<'t>,
    field: &'static str,
) -> Option<Key> {
    let text = document.string(section, field, "…")?;
    let value = Zeroizing::new(text.value);
    if value.len() < KEY_LEN_MIN {
        let what = format!(
            "{field} has {} characters, and a key needs at least {KEY_LEN_MIN}; make one with `openssl rand -base64 32`",
            value.len()
        );
        document.fault(text.line, what);
        return None;
    }
    value
        .parse()
        .map_err(|error| {
            document.fault(
                text.line,
                format!("{field}: {error}; make one with `openssl rand -base64 32`"),
            );
        })
        .ok()
}

/// Reads the text of the file of relay keys.
///
/// # Errors
/// All that is wrong, with lines; never a key.
pub fn parse_relay(file: &str, text: &str) -> Result<RelayKeys, Vec<Fault>> {
    let (mut document, mut root) = Document::parse(file, text)?;
    let mut read = |field| read_32(&mut document, &mut root, field);
    let (reset, token, connection_id) = (read("reset"), read("token"), read("connection_id"));
    document.end(root);
    let keys = reset
        .zip(token)
        .zip(connection_id)
        .map(|((reset, token), connection_id)| RelayKeys {
            reset,
            token,
            connection_id,
        });
    document.finish(keys)
}

fn read_32<'t>(
    document: &mut Document<'t>,
    root: &mut Section<'t>,
    field: &'static str,
) -> Option<Secret32> {
    use base64::Engine;
    let Some(text) = document.string(root, field, "…") else {
        document.missing(
            root,
            field,
            "\"…\" (base64 of 32 bytes); or delete the file, and a new one is made",
        );
        return None;
    };
    let value = Zeroizing::new(text.value);
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(value.as_bytes())
        .map(Zeroizing::new)
        .ok();
    let secret = bytes
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok())
        .map(Secret32::new);
    if secret.is_none() {
        document.fault(
            text.line,
            format!("{field} is not base64 of 32 bytes; make it with `openssl rand -base64 32`"),
        );
    }
    secret
}

fn shares_a_key(one: &KeyPair, other: &KeyPair) -> bool {
    let keys = |pair: &KeyPair| [Some(pair.primary.clone()), pair.secondary.clone()];
    keys(one)
        .iter()
        .flatten()
        .any(|key| keys(other).iter().flatten().any(|another| key == another))
}

fn pair(rng: &mut impl Rng) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "primary = \"{}\"\nsecondary = \"{}\"\n",
        random_key(rng).expose(),
        random_key(rng).expose()
    ))
}

fn random_key(rng: &mut impl Rng) -> Key {
    Key::from_random(random_32(rng))
}

fn random_32(rng: &mut impl Rng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Of two processes that make one file at once, the first wins, and both go on with its keys.
fn write_new(system: &dyn FileSystem, path: &Path, text: &str) -> Result<(), Unmade> {
    match disk::create_on(system, path, text.as_bytes(), disk::SECRET) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Unmade {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use underpass_proto::key::Which;

    use super::*;

    const LONG: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";
    const OTHER: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn made_keys_are_four_different_ones_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payroll-sql.toml");
        make(&path, &mut rand::rng()).unwrap();
        let keys = load("keys/payroll-sql.toml", &path).unwrap();
        let (listen, send) = (keys.listen.clone().unwrap(), keys.send.clone().unwrap());
        let all = [
            &listen.primary,
            listen.which(Which::Secondary).unwrap(),
            &send.primary,
            send.which(Which::Secondary).unwrap(),
        ];
        for (index, key) in all.iter().enumerate() {
            assert_eq!(key.expose().len(), 44);
            assert!(all[index + 1..].iter().all(|other| other != key));
        }
        make(&path, &mut rand::rng()).unwrap();
        assert_eq!(load("keys/payroll-sql.toml", &path).unwrap(), keys);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payroll-sql.toml");
        make(&path, &mut rand::rng()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let told = load("keys/payroll-sql.toml", &path).unwrap_err()[0].to_string();
        assert!(told.starts_with("keys/payroll-sql.toml: others can read it (mode 644), so it is not used; run `chmod 600 "), "{told}");
    }

    #[test]
    fn no_fault_repeats_a_key() {
        let short = "c2VjcmV0LWtleQ==";
        for text in [
            format!("[listen]\nprimary = \"{short}\"\n[send]\nprimary = \"{OTHER}\""),
            format!("[listen]\nprimary = \"{LONG}\"\n[send]\nprimary = \"{LONG}\""),
            format!("[listen]\nprimary = \"{LONG} \"\n[send]\nprimary = \"{OTHER}\""),
            format!("[listen]\nprimary = [\"{LONG}\"]\n"),
            format!("{} = 1", &LONG[..44]),
            format!("[listen]\nprimary = \"{LONG}\n"),
            format!("[listen]\nprimary = {LONG}\n"),
        ] {
            for fault in parse("keys/x.toml", &text).unwrap_err() {
                assert!(
                    !fault.what.contains(&LONG[..20]) && !fault.what.contains(&short[..8]),
                    "{fault}"
                );
                assert!(
                    fault.what.contains(';') || fault.what.contains("TOML"),
                    "{fault}"
                );
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let told: Vec<String> = parse("keys/x.toml", "[listen]\nsecondary = \"x\"")
            .unwrap_err()
            .iter()
            .map(Fault::to_string)
            .collect();
        assert!(
            told.iter().any(|told| told
                .starts_with("keys/x.toml:1: primary in [listen] is missing; write primary = ")),
            "{told:?}"
        );
        assert!(
            told.iter()
                .any(|told| told.starts_with("keys/x.toml:1: [send] is missing; ")),
            "{told:?}"
        );
    }

    #[test]
    fn a_key_is_regenerated_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payroll-sql.toml");
        make(&path, &mut rand::rng()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replacen("primary = ", "# of the agents in Berlin\nprimary = ", 1);
        let before = parse("f", &text).unwrap();
        let after =
            regenerated("f", &text, Rule::Listen, Which::Secondary, &mut rand::rng()).unwrap();
        assert!(
            after.contains("# of the agents in Berlin\nprimary = ")
                && after.starts_with("# Keys of one"),
            "comments stay"
        );
        let after = parse("f", &after).unwrap();
        let pair = |keys: &HycoKeys| keys.listen.clone().unwrap();
        assert!(after.send == before.send && pair(&after).primary == pair(&before).primary);
        assert!(
            pair(&after).secondary != pair(&before).secondary && pair(&after).secondary.is_some()
        );
    }

    #[test]
    fn a_second_key_that_was_not_there_is_added() {
        let key = |number: u8| Key::from_random([number; 32]);
        let text = format!(
            "listen = {{ primary = \"{}\" }}\n[send]\nprimary = \"{}\"\n",
            key(1).expose(),
            key(2).expose()
        );
        let after =
            regenerated("f", &text, Rule::Listen, Which::Secondary, &mut rand::rng()).unwrap();
        assert!(
            parse("f", &after)
                .unwrap()
                .listen
                .unwrap()
                .secondary
                .is_some()
        );
        assert!(
            regenerated(
                "f",
                "[listen]\n",
                Rule::Send,
                Which::Primary,
                &mut rand::rng()
            )
            .is_err()
        );
    }

    #[test]
    fn manage_keys_are_made_once_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        make_manage(&directory, &mut rand::rng()).unwrap();
        let keys = load_manage(&directory).unwrap();
        make_manage(&directory, &mut rand::rng()).unwrap();
        assert_eq!(load_manage(&directory).unwrap(), keys);
        fs::write(manage_file(&directory), "secondary = \"x\"").unwrap();
        let told = load_manage(&directory).unwrap_err();
        assert!(
            told[0].to_string().starts_with("keys/_manage.toml:1: "),
            "{told:?}"
        );
    }

    #[test]
    fn relay_keys_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        make_relay(&directory, &mut rand::rng()).unwrap();
        let path = relay_file(&directory);
        let keys = load_relay("keys/_relay.toml", &path).unwrap();
        make_relay(&directory, &mut rand::rng()).unwrap();
        assert_eq!(load_relay("keys/_relay.toml", &path).unwrap(), keys);
        fs::write(&path, "reset = \"abc\"").unwrap();
        assert_eq!(load_relay("keys/_relay.toml", &path).unwrap_err().len(), 3);
    }
}
