//! Texts that people and files bring: connection strings, tokens, definitions and keys. None
//! panics, none is repeated where it holds a key, and what is read and written is the same again.

use std::path::Path;

use underpass::files::agent::AgentFile;
use underpass::files::definition::Definition;
use underpass::files::namespace::Namespace;
use underpass::files::sender::SenderFile;
use underpass::files::{Fault, keys};
use underpass_proto::sas::SasToken;
use underpass_proto::{AllowEntry, ConnectionString, Endpoint, HycoName};

/// A key in a text is at least so long where it must not be repeated.
const KEY_LEN: usize = 44;

/// Any other key than the one that is tried.
const KEY: &str = "another-key";

/// Connection strings in both forms.
pub fn connection_strings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<ConnectionString>() {
        Ok(string) => {
            let again = string.emit().parse::<ConnectionString>();
            assert_eq!(again.as_ref(), Ok(&string), "emitted otherwise");
            // A short key may stand in a name by chance: what is shown must not depend on it.
            let other = ConnectionString {
                key: KEY.parse().expect("a key"),
                ..string.clone()
            };
            assert_eq!(format!("{string:?}"), format!("{other:?}"));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!repeats_a_key(&error, text), "{error}");
        }
    }
}

/// SAS tokens, and the smaller texts beside them.
pub fn sas_tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = text.parse::<SasToken>() {
        let _ = token.check_time(u64::MAX);
        let _ = token.check_time(0);
    }
    if let Ok(name) = text.parse::<HycoName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
    if let Ok(entry) = text.parse::<AllowEntry>() {
        assert_eq!(entry.to_string().parse(), Ok(entry));
    }
}

/// Files of every kind, by each reader.
pub fn files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let name = || "payroll-sql".parse().expect("a name");
    let folder = Path::new("/etc/underpass");
    check(
        "d.toml",
        text,
        false,
        Definition::parse(name(), "d.toml", text).err(),
    );
    check(
        "n.toml",
        text,
        false,
        Namespace::parse("n.toml", text, "host").err(),
    );
    check(
        "a.toml",
        text,
        false,
        AgentFile::parse("a.toml", text, folder).err(),
    );
    check(
        "s.toml",
        text,
        false,
        SenderFile::parse("s.toml", text, folder).err(),
    );
    check("k.toml", text, true, keys::parse("k.toml", text).err());
    check(
        "m.toml",
        text,
        true,
        keys::parse_manage("m.toml", text).err(),
    );
    check(
        "r.toml",
        text,
        true,
        keys::parse_relay("r.toml", text).err(),
    );
}

fn check(file: &str, text: &str, secret: bool, faults: Option<Vec<Fault>>) {
    let lines = text.lines().count().max(1) + 1;
    for fault in faults.iter().flatten() {
        assert!(fault.file == file && fault.line <= lines, "{fault}");
        assert!(!fault.what.is_empty(), "a fault without a word");
        assert!(!secret || !repeats_a_key(&fault.what, text), "{fault}");
    }
}

/// Whether a message repeats a long word of the text that looks like a key.
fn repeats_a_key(message: &str, text: &str) -> bool {
    let is_of_key = |letter: char| letter.is_ascii_alphanumeric() || "+/=".contains(letter);
    let words = text.split(|letter| !is_of_key(letter));
    words
        .filter(|word| word.len() >= KEY_LEN && word.ends_with('='))
        .any(|word| message.contains(word))
}
