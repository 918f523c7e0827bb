//! Which state of a definition somebody saw, and what they demand of the present one (RFC 9110,
//! sections 8.8.3 and 13.1).

use std::fmt;

use sha2::{Digest, Sha256};
use underpass_proto::HycoName;
use underpass_proto::hex;

use super::{Refusal, Stored};
use crate::files::Directory;

/// Bytes of a tag: enough that no two texts share one.
const LEN: usize = 16;

/// Names the content of a definition file, strongly: equal tags, equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ETag([u8; LEN]);

impl ETag {
    /// The tag of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut tag = [0; LEN];
        tag.copy_from_slice(&Sha256::digest(text)[..LEN]);
        Self(tag)
    }
}

/// As it stands in headers, quotes and all.
impl fmt::Display for ETag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("\"")?;
        hex::write(&self.0, out)?;
        out.write_str("\"")
    }
}

/// What must be true for a change to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Condition {
    /// Nothing.
    #[default]
    Any,
    /// There is none of that name: `If-None-Match: *`.
    Absent,
    /// There is one: `If-Match: *`.
    Present,
    /// Its content is one of these: `If-Match`.
    Is(Vec<ETag>),
    /// Its content is none of these, or it is not there: `If-None-Match`.
    IsNot(Vec<ETag>),
    /// This, and that too.
    Both(Box<Self>, Box<Self>),
}

impl Condition {
    /// From the value of `If-Match`. A tag that none of ours can be (a weak one, say) is left out,
    /// and so matches nothing.
    #[must_use]
    pub fn if_match(value: &str) -> Self {
        match value.trim() {
            "*" => Self::Present,
            tags => Self::Is(read_tags(tags).collect()),
        }
    }

    /// From the value of `If-None-Match` on a change.
    #[must_use]
    pub fn if_none_match(value: &str) -> Self {
        match value.trim() {
            "*" => Self::Absent,
            tags => Self::IsNot(read_tags(&strong(tags)).collect()),
        }
    }

    /// This, and another too.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::Both(Box::new(self), Box::new(other))
    }

    /// Whether the value of `If-None-Match` on a reading names this state: then there is nothing
    /// new to tell.
    #[must_use]
    pub fn is_known(value: &str, tag: ETag) -> bool {
        value.trim() == "*" || read_tags(&strong(value)).any(|known| known == tag)
    }

    pub(super) fn check_absent(
        &self,
        directory: &Directory,
        name: &HycoName,
    ) -> Result<(), Refusal> {
        match self {
            Self::Any | Self::Absent | Self::IsNot(_) => Ok(()),
            Self::Present | Self::Is(_) => Err(Refusal::gone(directory, name)),
            Self::Both(one, other) => one
                .check_absent(directory, name)
                .and_then(|()| other.check_absent(directory, name)),
        }
    }

    pub(super) fn check(
        &self,
        directory: &Directory,
        name: &HycoName,
        stored: &Stored,
    ) -> Result<(), Refusal> {
        match self {
            Self::Any | Self::Present => Ok(()),
            Self::Is(tags) if tags.contains(&stored.etag()) => Ok(()),
            Self::IsNot(tags) if !tags.contains(&stored.etag()) => Ok(()),
            Self::Is(_) | Self::IsNot(_) => Err(Refusal::changed(stored)),
            Self::Both(one, other) => one
                .check(directory, name, stored)
                .and_then(|()| other.check(directory, name, stored)),
            Self::Absent => Err(Refusal::exists(directory, name, &stored.path)),
        }
    }
}

/// `If-None-Match` compares weakly (section 13.1.2).
fn strong(tags: &str) -> String {
    tags.replace("W/", "")
}

fn read_tags(value: &str) -> impl Iterator<Item = ETag> {
    value
        .split(',')
        .filter_map(|tag| tag.trim().strip_prefix('"')?.strip_suffix('"'))
        .filter_map(|digits| hex::read(digits).map(ETag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_that_of_the_text_and_survives_a_header() {
        let tag = ETag::of("host = \"a\"");
        assert_eq!(tag, ETag::of("host = \"a\""));
        assert_ne!(tag, ETag::of("host = \"b\""));
        assert_eq!(
            Condition::if_match(&format!("\"x\", {tag}")),
            Condition::Is(vec![tag])
        );
        assert_eq!(Condition::if_match(" * "), Condition::Present);
    }

    #[test]
    fn weak_tags_match_readings_alone() {
        let tag = ETag::of("a");
        assert_eq!(
            Condition::if_match(&format!("W/{tag}")),
            Condition::Is(vec![])
        );
        assert!(Condition::is_known(&format!("W/{tag}"), tag) && Condition::is_known("*", tag));
        assert!(!Condition::is_known("\"abc\"", tag));
    }
}
