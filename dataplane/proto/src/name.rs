//! The name of a hybrid connection: the rules users know from Azure, compared without case,
//! spelling kept.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::serde_text::serde_text;

/// Fewest characters of a name.
pub const NAME_MIN: usize = 6;
/// Most characters of a name. Also the most bytes: all of them are ASCII.
pub const NAME_MAX: usize = 50;

/// Name of a hybrid connection: 6 to 50 letters, digits or hyphens, starting with a letter, ending
/// with a letter or digit.
///
/// Two spellings that differ in case alone are equal, hash alike and sort together. A clone costs a
/// reference count.
#[derive(Clone)]
pub struct HycoName(Arc<str>);

/// Why a text is not a name. Does not repeat the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Too short or too long.
    #[error("a name has {NAME_MIN} to {NAME_MAX} characters, as Azure's have; this one has {0}")]
    Length(usize),
    /// A character that is neither letter, digit nor hyphen.
    #[error("a name has letters, digits and hyphens only")]
    Character,
    /// The first character is not a letter.
    #[error("a name starts with a letter")]
    Start,
    /// The last character is a hyphen.
    #[error("a name ends with a letter or a digit")]
    End,
}

impl HycoName {
    /// The name as it was spelled.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl FromStr for HycoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(NameError::Character);
        }
        if !(NAME_MIN..=NAME_MAX).contains(&text.len()) {
            return Err(NameError::Length(text.len()));
        }
        if !text.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Err(NameError::Start);
        }
        if text.ends_with('-') {
            return Err(NameError::End);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for HycoName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl fmt::Debug for HycoName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

impl AsRef<str> for HycoName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq for HycoName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for HycoName {}

impl Hash for HycoName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // One write, not one a byte: this stands on the way of every new flow.
        let mut folded = [0; NAME_MAX];
        for (to, from) in folded.iter_mut().zip(self.folded()) {
            *to = from;
        }
        state.write(&folded[..self.0.len()]);
        state.write_u8(0xff);
    }
}

impl Ord for HycoName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl PartialOrd for HycoName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

serde_text!(HycoName);
