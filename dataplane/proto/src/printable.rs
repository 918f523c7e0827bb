//! Text that somebody else wrote, made fit for a log or a terminal: it cannot end a line, move the
//! cursor, change the direction of writing, or go on for ever.

use std::fmt::{self, Write};

/// Most characters of a peer's text that are shown: a reason is a sentence.
pub const PEER_TEXT_MAX: usize = 200;

/// What a peer sent as text, escaped and cut: all that is ever kept or shown of it.
///
/// ```
/// use underpass_proto::PeerText;
/// assert_eq!(PeerText::of_bytes(b"bye\n\x1b[2J").as_str(), r"bye\u{a}\u{1b}[2J");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct PeerText(String);

impl PeerText {
    /// Of what an error or a value displays, where a peer's words may be in it.
    #[must_use]
    pub fn of(text: impl fmt::Display) -> Self {
        let mut cut = Cut {
            text: String::new(),
            left: PEER_TEXT_MAX,
        };
        // Ends early where the text is longer: what is beyond is not even formatted.
        if write!(cut, "{text}").is_err() {
            cut.text.push('…');
        }
        Self(cut.text)
    }

    /// Of bytes from the wire; what is no UTF-8 shows as U+FFFD.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        // A character has at most four bytes.
        let enough = &bytes[..bytes.len().min(4 * (PEER_TEXT_MAX + 1))];
        Self::of(String::from_utf8_lossy(enough))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes characters until there is no more room.
struct Cut {
    text: String,
    left: usize,
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            escape(character, &mut self.text)?;
        }
        Ok(())
    }
}

/// Whether a character does something other than show itself: C0 and C1 controls and DEL, the
/// controls of writing direction (Unicode UAX #9), and the separators of lines and paragraphs.
#[must_use]
pub fn is_control(character: char) -> bool {
    // `char::is_control` is C0, C1 and DEL.
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn escape(character: char, out: &mut impl Write) -> fmt::Result {
    if is_control(character) {
        write!(out, "\\u{{{:x}}}", u32::from(character))
    } else {
        out.write_char(character)
    }
}

/// Passes text on with every control character but those in `kept` escaped.
#[derive(Debug)]
pub struct Escaping<'a, W> {
    /// Where it goes.
    pub out: &'a mut W,
    /// Controls that pass as they are: line feeds of a text of several lines.
    pub kept: &'static [char],
}

impl<W: Write> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |character: char| is_control(character) && !self.kept.contains(&character);
        let mut rest = text;
        while let Some(at) = rest.find(is_escaped) {
            self.out.write_str(&rest[..at])?;
            let mut characters = rest[at..].chars();
            if let Some(character) = characters.next() {
                escape(character, self.out)?;
            }
            rest = characters.as_str();
        }
        self.out.write_str(rest)
    }
}

/// JSON for a terminal: what its writer leaves as it is within strings (DEL, C1, writing direction)
/// is escaped as JSON has it.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        if is_control(character) && character != '\n' {
            // All of them are within the Basic Multilingual Plane.
            let _ = write!(shown, "\\u{:04x}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A text of several lines for a terminal: every control character but line feeds and tabs is
/// escaped.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut out = Escaping {
        out: &mut shown,
        kept: &['\n', '\t'],
    };
    // Writing to a string cannot fail.
    let _ = out.write_str(text);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: [char; 14] = [
        '\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{61c}', '\u{200f}',
        '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}',
    ];

    #[test]
    fn what_a_peer_says_is_one_line_that_moves_no_cursor() {
        for nasty in NASTY {
            let text = PeerText::of(format_args!("before{nasty}after"));
            let escaped = format!("before\\u{{{:x}}}after", u32::from(nasty));
            assert_eq!(text.as_str(), escaped);
        }
        let plain = "größer als 5 €: 名前, \\u{1b}";
        assert_eq!(PeerText::of(plain).as_str(), plain);
        assert_eq!(PeerText::of_bytes(&[b'a', 0xff]).as_str(), "a\u{fffd}");
    }

    #[test]
    fn what_goes_on_for_ever_is_cut() {
        let long = "ä".repeat(PEER_TEXT_MAX);
        assert_eq!(PeerText::of(&long).as_str(), long);
        let shown = PeerText::of(format_args!("{long}{long}"));
        assert_eq!(shown.as_str(), format!("{long}…"));
        let shown = PeerText::of_bytes(&vec![0x1b; 1 << 20]);
        assert_eq!(
            shown.as_str(),
            format!("{}…", r"\u{1b}".repeat(PEER_TEXT_MAX))
        );
    }

    #[test]
    fn lines_stay_lines_and_nothing_else_passes() {
        let text = NASTY.iter().collect::<String>();
        let shown = printable_lines(&format!("a\nb{text}"));
        assert!(shown.starts_with("a\nb\\u{0}\n\\u{d}\t\\u{1b}"), "{shown}");
        let controls = shown.chars().filter(|&character| is_control(character));
        assert_eq!(controls.collect::<String>(), "\n\n\t");
        let json = "{\n  \"why\": \"a\u{9b}31m\u{7f}\u{202e}\"\n}";
        let safe = r"a\u009b31m\u007f\u202e";
        assert_eq!(
            printable_json(json),
            format!("{{\n  \"why\": \"{safe}\"\n}}")
        );
    }
}
