//! Quotes words for commands that messages print, so that what is copied into a shell does what was
//! meant.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Bytes that no shell gives a meaning, wherever they are in a word.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/._-+,:@".contains(&byte)
}

/// One word for a POSIX shell: as it is where that is safe, else in quotes.
///
/// Control characters and bytes that are no text take the form `$'…'` (POSIX.1-2024, section
/// 2.2.4), so that a terminal shows them.
pub(crate) fn word(text: impl AsRef<OsStr>) -> String {
    let text = text.as_ref();
    let bytes = text.as_bytes();
    if !bytes.is_empty() && bytes.iter().copied().all(is_plain) {
        return text.to_string_lossy().into_owned();
    }
    match text.to_str() {
        Some(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => format!("$'{}'", escaped(bytes)),
    }
}

/// Octal escapes have three digits, so what follows one cannot become part of it.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        match byte {
            b'\\' | b'\'' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_every_word_as_it_was_written() {
        for bytes in [
            &b"underpass"[..],
            b"/srv/under pass/it's",
            b"",
            b"~/x",
            b"*.corp:1433",
            b"[::1]:443",
            b"$(touch x)`y`\"z\"!;&|<>#",
            b"a\nb\x1b[31m\x07\\n",
            b"caf\xc3\xa9",
            b"no text \xff'9\x017",
        ] {
            let text = OsStr::from_bytes(bytes);
            let quoted = word(text);
            assert!(!quoted.chars().any(char::is_control), "{quoted:?}");
            let shell = Command::new("bash")
                .args(["-c", &format!("printf %s {quoted}")])
                .output();
            assert_eq!(shell.expect("bash").stdout, bytes, "{quoted}");
        }
        assert_eq!(word("/etc/underpass"), "/etc/underpass");
        assert_eq!(word("a b"), "'a b'");
    }
}
