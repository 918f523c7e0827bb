//! Finds the connection string in what was pasted or redirected: a byte order mark, UTF-16, quotes,
//! a variable's name in front, comments and line ends are taken off. Says nothing about the string
//! itself, and repeats no part of it.

use underpass_proto::connection_string::{CONNECTION_STRING_MAX, FIELDS};
use zeroize::Zeroizing;

/// The most bytes that are looked at: a whole string in UTF-16, and a name, quotes and comments
/// around it.
pub const PASTED_MAX: usize = 4 * CONNECTION_STRING_MAX;

/// The longest text in front of a string that is taken for a variable's name, bytes.
const NAME_MAX: usize = 64;

/// Names and quotes around each other: `"Environment=NAME='…'"` has five.
const LAYERS_MAX: usize = 8;

/// Why there is no one string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unclear {
    /// Nothing there.
    Empty,
    /// Several lines that are not one string.
    Lines,
}

/// The text of bytes in UTF-8 or UTF-16, which is what Windows' shells write. `None`: it is
/// neither.
#[must_use]
pub fn decoded(bytes: &[u8]) -> Option<Zeroizing<String>> {
    // Roomy from the start: a string that grows leaves copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(3 * bytes.len()));
    let units: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        // Without a mark: every letter of a string is ASCII, and its other byte is zero.
        [1..=u8::MAX, 0, ..] => u16::from_le_bytes,
        [0, 1..=u8::MAX, ..] => u16::from_be_bytes,
        _ => {
            text.push_str(std::str::from_utf8(bytes).ok()?);
            return Some(text);
        }
    };
    let (pairs, rest) = bytes.as_chunks::<2>();
    let letters = char::decode_utf16(pairs.iter().copied().map(units));
    for letter in letters {
        text.push(letter.ok()?);
    }
    rest.is_empty().then_some(text)
}

/// The connection string in a text, on one line and with nothing around it. A text in which none is
/// found comes back as it is, for the parser to judge.
///
/// # Errors
/// There is nothing, or there is more than one line.
pub fn found(text: &str) -> Result<Zeroizing<String>, Unclear> {
    let lines = || {
        let lines = text.lines().map(trimmed);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    let count = lines().count();
    // A field on each line is one string; two strings are not.
    let is_one = count == 1
        || lines()
            .take(count.saturating_sub(1))
            .all(|line| line.ends_with(';'));
    if count == 0 {
        return Err(Unclear::Empty);
    }
    if !is_one {
        return Err(Unclear::Lines);
    }
    let mut whole = Zeroizing::new(String::with_capacity(text.len()));
    lines().for_each(|line| whole.push_str(line));
    let inside = unwrapped(&whole, LAYERS_MAX).unwrap_or(&whole);
    Ok(Zeroizing::new(inside.to_owned()))
}

/// What begins with a known field, once names and quotes are taken off.
fn unwrapped(text: &str, layers: usize) -> Option<&str> {
    let text = trimmed(text);
    if begins_with_a_field(text) {
        return Some(text);
    }
    let layers = layers.checked_sub(1)?;
    // Of `"name": "string"` the outer quotes are no pair.
    if let Some(found) = unquoted(text).and_then(|inside| unwrapped(inside, layers)) {
        return Some(found);
    }
    let (name, rest) = text.split_at(text.find(['=', ':'])?);
    is_name(name).then(|| unwrapped(&rest[1..], layers))?
}

fn begins_with_a_field(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default().trim_end();
    name.len() < text.len() && FIELDS.iter().any(|field| field.eq_ignore_ascii_case(name))
}

/// Of JSON there may be a comma behind.
fn unquoted(text: &str) -> Option<&str> {
    const QUOTES: [(char, char); 5] = [
        ('"', '"'),
        ('\'', '\''),
        ('`', '`'),
        ('\u{201c}', '\u{201d}'),
        ('\u{2018}', '\u{2019}'),
    ];
    let text = text.strip_suffix(',').unwrap_or(text);
    QUOTES
        .iter()
        .find_map(|(open, close)| text.strip_prefix(*open)?.strip_suffix(*close))
}

/// `NAME`, `export NAME`, `$env`, `"connectionString"`.
fn is_name(text: &str) -> bool {
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.$\"' ".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(of_a_name)
}

/// Without white space, and without what nobody sees: byte order marks, spaces of no width, marks
/// of direction.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|letter: char| {
        letter.is_whitespace()
            || matches!(letter, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRING: &str = "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey=c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

    #[test]
    fn a_string_is_found_in_everything_that_people_paste() {
        for pasted in [
            STRING.to_owned(),
            format!("\u{feff}{STRING}\r\n"),
            format!("  \u{a0}{STRING}\u{200b} \n\n"),
            format!("\"{STRING}\""),
            format!("'{STRING}'\n"),
            format!("\u{201c}{STRING}\u{201d}"),
            format!("UNDERPASS_CONNECTION_STRING={STRING}"),
            format!("export UNDERPASS_CONNECTION_STRING='{STRING}'\n"),
            format!("$env:UNDERPASS_CONNECTION_STRING = \"{STRING}\"\r\n"),
            format!("Environment=\"UNDERPASS_CONNECTION_STRING={STRING}\""),
            format!("\"connectionString\": \"{STRING}\","),
            format!("connection-string: {STRING}"),
            format!("# of the payroll\r\n\r\n{STRING}\r\n"),
            STRING.replace(';', ";\r\n  "),
        ] {
            let found = found(&pasted).expect("one string");
            assert_eq!(*found, STRING, "{pasted:?}");
        }
    }

    #[test]
    fn utf_16_is_read_with_its_mark_and_without() {
        let units = || format!("{STRING}\r\n").encode_utf16().collect::<Vec<u16>>();
        let bytes = |mark: &[u8], of: fn(u16) -> [u8; 2]| {
            let mut bytes = mark.to_vec();
            bytes.extend(units().into_iter().flat_map(of));
            bytes
        };
        for bytes in [
            bytes(&[0xff, 0xfe], u16::to_le_bytes),
            bytes(&[0xfe, 0xff], u16::to_be_bytes),
            bytes(&[], u16::to_le_bytes),
            bytes(&[], u16::to_be_bytes),
            format!("\u{feff}{STRING}").into_bytes(),
        ] {
            let text = decoded(&bytes).expect("text");
            assert_eq!(*found(&text).expect("one string"), STRING);
        }
        for bytes in [
            &[0xff, 0xfe, b'E'][..],
            &[0xff, 0xfe, 0, 0xd8],
            &[b'E', 0xff],
        ] {
            assert_eq!(decoded(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_string_comes_back_as_it_is_and_two_are_not_one() {
        for text in [
            "garbage",
            "Foo=bar;Endpoint=hc://r/x",
            "\"Endpoint=hc://r/x",
            "a=b",
        ] {
            assert_eq!(found(text).expect("one line").as_str(), text);
        }
        assert_eq!(found(" \r\n# nothing\n"), Err(Unclear::Empty));
        assert_eq!(found(&format!("{STRING}\n{STRING}")), Err(Unclear::Lines));
        assert_eq!(found(&format!("LOG=info\n{STRING}")), Err(Unclear::Lines));
        let deep = format!("{}{STRING}", "a=".repeat(2_000));
        assert_eq!(*found(&deep).expect("one line"), deep);
    }
}
