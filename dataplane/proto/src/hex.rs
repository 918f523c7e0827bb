//! Lower-case hexadecimal for identifiers and pins. Not for secrets: it takes no care to be
//! constant in time.

use std::fmt;

/// Writes bytes as lower-case hexadecimal.
///
/// # Errors
/// Those of the formatter.
pub fn write(bytes: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

/// Reads exactly `N` bytes from `2 * N` hexadecimal digits of either case.
#[must_use]
pub fn read<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    char::from(character)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn reads_either_case_and_nothing_else() {
        assert_eq!(read("00fFA5"), Some([0x00, 0xff, 0xa5]));
        assert_eq!(read::<2>("0g00"), None);
        assert_eq!(read::<2>("000"), None);
        assert_eq!(read::<2>("é00"), None);
    }
}
