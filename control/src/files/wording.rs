//! The words of messages about files: what was probably meant, and what was written, never at length. Reads nothing.

use toml::de::DeValue;

/// A value longer than this is not repeated in a message, characters.
const ECHO_MAX: usize = 64;

/// A field name longer than this is not repeated, characters: it may be a key in the wrong place, and those have 44.
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

/// A value for a message: quoted, escaped and bounded.
pub fn echo(value: &str) -> String {
    bounded(value, ECHO_MAX)
}

pub(super) fn bounded(value: &str, max: usize) -> String {
    match value.chars().count() {
        len if len <= max => format!("{value:?}"),
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
