//! Damaged files: whatever stands there, no reader panics, no key is repeated, and every fault
//! names the file and a line of it.
//!
//! `UNDERPASS_MUTATIONS` sets how many are tried; the seed is printed, and `UNDERPASS_SEED` repeats
//! a run.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use underpass::files::agent::AgentFile;
use underpass::files::allow::List;
use underpass::files::definition::{Definition, Probe};
use underpass::files::namespace::{Namespace, TEMPLATE};
use underpass::files::sender::SenderFile;
use underpass::files::{Fault, allow, keys};
use underpass_proto::key::Which;
use underpass_proto::{AllowEntry, Rule};

/// Enough to meet every branch many times in a second or two; the full figure is 100,000.
const MUTATIONS_DEFAULT: u64 = 20_000;

const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";
const OTHER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[test]
fn damaged_files_are_told_with_their_line_and_never_repeat_a_key() {
    let seed = number("UNDERPASS_SEED").unwrap_or_else(rand::random);
    println!("UNDERPASS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let texts = texts();
    for _ in 0..number("UNDERPASS_MUTATIONS").unwrap_or(MUTATIONS_DEFAULT) {
        let original = &texts[rng.random_range(0..texts.len())];
        let damaged = damage(original, &mut rng);
        for (file, faults) in read_all(&damaged) {
            let lines = damaged.lines().count().max(1) + 1;
            for fault in faults {
                assert!(
                    fault.file == file && fault.line <= lines,
                    "seed {seed}: {fault} in {damaged:?}"
                );
                assert!(
                    !fault.what.contains('\n') && !fault.what.is_empty(),
                    "seed {seed}: {fault:?}"
                );
                if file.starts_with("keys/") {
                    assert!(
                        !repeats_a_key(&fault.what),
                        "seed {seed}: {fault} in {damaged:?}"
                    );
                }
            }
        }
    }
}

fn read_all(text: &str) -> Vec<(&'static str, Vec<Fault>)> {
    let name = "payroll-sql".parse().unwrap();
    let faults = |file, read: Result<(), Vec<Fault>>| (file, read.err().unwrap_or_default());
    vec![
        faults(
            "namespace.toml",
            Namespace::parse("namespace.toml", text, "host").map(drop),
        ),
        faults(
            "connections/payroll-sql.toml",
            Definition::parse(name, "connections/payroll-sql.toml", text).map(drop),
        ),
        faults(
            "keys/payroll-sql.toml",
            keys::parse("keys/payroll-sql.toml", text).map(drop),
        ),
        faults(
            "keys/payroll-sql.toml",
            keys::regenerated(
                "keys/payroll-sql.toml",
                text,
                Rule::Listen,
                Which::Secondary,
                &mut rand::rng(),
            )
            .map(drop),
        ),
        faults(
            "keys/_manage.toml",
            keys::parse_manage("keys/_manage.toml", text).map(drop),
        ),
        faults("connections/payroll-sql.toml", edit(text)),
        faults(
            "keys/_relay.toml",
            keys::parse_relay("keys/_relay.toml", text).map(drop),
        ),
        faults(
            "agent.toml",
            AgentFile::parse("agent.toml", text, Path::new("")).map(drop),
        ),
        faults(
            "sender.toml",
            SenderFile::parse("sender.toml", text, Path::new("")).map(drop),
        ),
    ]
}

#[test]
fn an_edited_allow_list_can_be_read_and_is_what_was_asked_for() {
    let seed = number("UNDERPASS_SEED").unwrap_or_else(rand::random);
    println!("UNDERPASS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let texts = [
        "allow = [\"a:1\"]\nworkers = 2\n[[connect]]\nstring_file = \"a\"\nweight = 3\n",
        "allow = [ # all\n  \"a:1\", # one\n\n  \"b:2\" # two\n  , \"c:3\",\n  # end\n]\n[[connect]]\nstring_file = \"a\"\n",
    ];
    let new: AllowEntry = "new.corp:443".parse().unwrap();
    let read = |text: &str| AgentFile::parse("agent.toml", text, Path::new(""));
    let mut edited = 0;
    for _ in 0..number("UNDERPASS_MUTATIONS").unwrap_or(MUTATIONS_DEFAULT) {
        let text = damage(texts[rng.random_range(0..texts.len())], &mut rng);
        let Ok(before) = read(&text) else { continue };
        edited += 1;
        let added = allow::add(&text, List::ForAll, std::slice::from_ref(&new)).unwrap();
        let after = read(&added.text);
        let after = after.unwrap_or_else(|faults| panic!("seed {seed}: {faults:?} in {text:?}"));
        let mut expected = before.allow.0.clone();
        expected.push(new.clone());
        assert_eq!(after.allow.0, expected, "seed {seed}: {text:?}");
        assert_eq!(after.connects, before.connects, "seed {seed}: {text:?}");
        let comments = |text: &str| text.matches('#').count();
        assert_eq!(
            comments(&added.text),
            comments(&text),
            "seed {seed}: {text:?}"
        );
        let removed = allow::remove(&added.text, List::ForAll, std::slice::from_ref(&new)).unwrap();
        let after = read(&removed.text);
        let after = after.unwrap_or_else(|faults| panic!("seed {seed}: {faults:?} in {text:?}"));
        assert_eq!(after, before, "seed {seed}: {text:?}");
    }
    assert!(edited > 0, "seed {seed}");
}

/// What can be read can be edited, and says then what it should.
fn edit(text: &str) -> Result<(), Vec<Fault>> {
    let file = "connections/payroll-sql.toml";
    let mut definition = Definition::parse("payroll-sql".parse().unwrap(), file, text)?;
    definition.endpoint.host = "edited.example".parse().unwrap();
    definition.probe = match definition.probe {
        Probe::Off => Probe::On,
        Probe::Auto | Probe::On => Probe::Off,
    };
    definition.limits.flows_max += 1;
    let edited = definition
        .edited(file, text)
        .unwrap_or_else(|faults| panic!("{faults:?} in {text:?}"));
    let again = Definition::parse(definition.name.clone(), file, &edited)?;
    assert_eq!(
        (&again.endpoint, again.probe, &again.limits),
        (&definition.endpoint, definition.probe, &definition.limits),
        "{edited}"
    );
    Ok(())
}

fn texts() -> Vec<String> {
    vec![
        TEMPLATE.replace("\n# ", "\n"),
        "host = \"sql01.corp.example\"\nport = 1433\nbind = \"0.0.0.0:14330\"\nallow_from = [\"10.0.0.0/8\"]\nprobe = \"off\"\n[limits]\nflows_max = 3\n".into(),
        format!("[listen]\nprimary = \"{KEY}\"\nsecondary = \"{KEY}\"\n[send]\nprimary = \"{OTHER_KEY}\"\n"),
        format!("# ask Ann\nprimary = \"{KEY}\"\nsecondary = \"{OTHER_KEY}\"\n"),
        format!("reset = \"{KEY}\"\ntoken = \"{KEY}\"\nconnection_id = \"{OTHER_KEY}\"\n"),
        "allow = [\"a:1\"]\nworkers = 2\n[[connect]]\nstring_file = \"a\"\nweight = 3\n".into(),
        "io = \"ring\"\n[[connect]]\nstring_file = \"a\"\nbind = \"127.0.0.1:1433\"\n[[connect]]\nstring_file = \"b\"\n".into(),
    ]
}

/// What has a meaning in these files, and a byte that is no text.
const SIGNS: &[u8] = b"\"'[]{}=.,#\n\\ 0a\xff";

/// One to four bytes changed, added, taken or doubled; always text.
fn damage(text: &str, rng: &mut impl Rng) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            3 => {
                let piece = bytes[at..(at + 20).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.insert(at, SIGNS[rng.random_range(0..SIGNS.len())]),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Twelve characters in a row are more than chance.
fn repeats_a_key(what: &str) -> bool {
    [KEY, OTHER_KEY]
        .iter()
        .any(|key| (0..key.len() - 12).any(|at| what.contains(&key[at..at + 12])))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
