//! The words of messages about files: what was probably meant, and what was written, never at
//! length. Reads nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use toml::de::DeValue;
use zeroize::Zeroizing;

/// A key is the base64 of at least this many bytes; what is shorter may be anything.
const KEY_BYTES_MIN: usize = 32;

/// A value longer than this is not repeated in a message, characters.
const ECHO_MAX: usize = 64;

/// A field name longer than this is not repeated, characters: it may be a key in the wrong place,
/// and those have 44.
pub(super) const FIELD_ECHO_MAX: usize = 32;

/// How alike two names must be (Jaro-Winkler, 0 to 1) for one to be suggested for the other.
const ALIKE: f64 = 0.8;

/// The name among `known` that was probably meant by `given`.
pub fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    let scored = known.map(|name| {
        (
            strsim::jaro_winkler(&given, &name.to_ascii_lowercase()),
            name,
        )
    });
    let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(score, _)| *score >= ALIKE)
        .map(|(_, name)| name)
}

/// Whether a text may be a key: padded base64 of enough bytes. The padding is asked for: without
/// it, a path could be taken for one.
#[must_use]
pub fn is_like_a_key(text: &str) -> bool {
    text.ends_with('=')
        && STANDARD
            .decode(text)
            .map(Zeroizing::new)
            .is_ok_and(|bytes| bytes.len() >= KEY_BYTES_MIN)
}

/// A value for a message: quoted, escaped and bounded. What may be a key at a wrong place is not
/// repeated.
pub fn echo(value: &str) -> String {
    bounded(value, ECHO_MAX)
}

pub(super) fn bounded(value: &str, max: usize) -> String {
    match value.chars().count() {
        len if len <= max && !is_like_a_key(value.trim()) => format!("{value:?}"),
        len => format!("of {len} characters"),
    }
}

pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

pub(super) fn backticked(names: &[&str]) -> String {
    let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    all.join(", ")
}

pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_key_is_not_repeated() {
        assert_eq!(echo("sql01"), "\"sql01\"");
        assert_eq!(
            echo("c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg="),
            "of 48 characters"
        );
        assert!(!is_like_a_key("/etc/underpass/payroll-sql.connection"));
        assert!(!is_like_a_key("c2hvcnQ="));
    }
}
