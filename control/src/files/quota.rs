//! Editions: how many hybrid connections a namespace may have, and how much data a month. Knows
//! presets and figures, counts nothing.

use std::fmt;

use super::document::{Document, Section};

/// Bytes of a GB of data, as providers count it.
pub const GB: u64 = 1_000_000_000;

/// The most that a figure may be: beyond is a slip of the finger.
const FIGURE_MAX: u32 = 1_000_000_000;

/// A set of figures with a name that users know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Edition {
    /// 5 hybrid connections, 5 GB a month.
    Free,
    /// As free.
    Developer,
    /// 10 and 50.
    Basic,
    /// 50 and 250.
    Standard,
    /// 100 and 500.
    Premium,
    /// No bounds but those of the machine.
    #[default]
    Unlimited,
}

const EDITIONS: [(&str, Edition); 6] = [
    ("free", Edition::Free),
    ("developer", Edition::Developer),
    ("basic", Edition::Basic),
    ("standard", Edition::Standard),
    ("premium", Edition::Premium),
    ("unlimited", Edition::Unlimited),
];

/// What a namespace may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Where figures come from that are not set by themselves.
    pub edition: Edition,
    /// Most hybrid connections; `None`: as many as one likes.
    pub hybrid_connections: Option<u32>,
    /// Most data of a calendar month, both directions of all hybrid connections together, in GB.
    pub data_gb_month: Option<u32>,
    /// Whether new flows are refused when the data of the month is used up.
    pub enforce_data: bool,
}

impl Edition {
    /// Its figures.
    #[must_use]
    pub fn quota(self) -> Quota {
        let (hybrid_connections, data_gb_month) = match self {
            Self::Free | Self::Developer => (Some(5), Some(5)),
            Self::Basic => (Some(10), Some(50)),
            Self::Standard => (Some(50), Some(250)),
            Self::Premium => (Some(100), Some(500)),
            Self::Unlimited => (None, None),
        };
        Quota {
            edition: self,
            hybrid_connections,
            data_gb_month,
            enforce_data: false,
        }
    }

    /// Its name, as it stands in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        EDITIONS
            .iter()
            .find(|(_, edition)| *edition == self)
            .map_or("unlimited", |(name, _)| name)
    }
}

impl Quota {
    /// Most data of a calendar month, bytes.
    #[must_use]
    pub fn data_bytes_month(&self) -> Option<u64> {
        self.data_gb_month.map(|gb| u64::from(gb) * GB)
    }

    /// Reads the fields of `namespace.toml`.
    pub(super) fn read<'t>(document: &mut Document<'t>, root: &mut Section<'t>) -> Self {
        let edition = document.word(root, "edition", &EDITIONS);
        let preset = edition.map_or_else(Self::default, |edition| edition.value.quota());
        let mut figure = |field, least, preset: Option<u32>| {
            let given = document.integer(root, field, least..=FIGURE_MAX, preset.unwrap_or(100));
            given.map(|given| given.value).or(preset)
        };
        let hybrid_connections = figure("hybrid_connections", 0, preset.hybrid_connections);
        let data_gb_month = figure("data_gb_month", 1, preset.data_gb_month);
        let enforce_data = document.boolean(root, "enforce_data");
        if let Some(enforce) = enforce_data
            .as_ref()
            .filter(|enforce| enforce.value && data_gb_month.is_none())
        {
            document.fault(enforce.line, "enforce_data has nothing to enforce: there is no limit; add `data_gb_month = 100`, or an edition that has one");
        }
        Self {
            edition: preset.edition,
            hybrid_connections,
            data_gb_month,
            enforce_data: enforce_data.is_some_and(|enforce| enforce.value),
        }
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Fault;

    #[test]
    fn presets_are_those_that_users_know() {
        for (name, hybrid_connections, data) in [
            ("free", 5, 5),
            ("developer", 5, 5),
            ("basic", 10, 50),
            ("standard", 50, 250),
            ("premium", 100, 500),
        ] {
            let quota = read(&format!("edition = \"{name}\"")).unwrap();
            assert_eq!(
                (
                    quota.hybrid_connections,
                    quota.data_gb_month,
                    quota.enforce_data
                ),
                (Some(hybrid_connections), Some(data), false)
            );
            assert_eq!(quota.edition.to_string(), name);
        }
        for text in ["", "edition = \"unlimited\""] {
            assert_eq!(read(text).unwrap(), Quota::default());
        }
    }

    #[test]
    fn each_figure_can_be_set_by_itself() {
        let quota =
            read("edition = \"free\"\nhybrid_connections = 7\nenforce_data = true").unwrap();
        assert_eq!(
            (
                quota.edition,
                quota.hybrid_connections,
                quota.data_gb_month,
                quota.enforce_data
            ),
            (Edition::Free, Some(7), Some(5), true)
        );
        assert_eq!(quota.data_bytes_month(), Some(5_000_000_000));
        let quota = read("data_gb_month = 1").unwrap();
        assert_eq!(
            (quota.edition, quota.hybrid_connections, quota.data_gb_month),
            (Edition::Unlimited, None, Some(1))
        );
    }

    #[test]
    fn wrong_figures_are_named_with_what_to_write() {
        let told = |text: &str| read(text).unwrap_err();
        assert_eq!(
            told("edition = \"gold\"")[0],
            "f:1: edition cannot be \"gold\"; write one of \"free\", \"developer\", \"basic\", \"standard\", \"premium\", \"unlimited\""
        );
        assert_eq!(
            told("data_gb_month = 0")[0],
            "f:1: data_gb_month must be a whole number from 1 to 1000000000; write, for example, `data_gb_month = 100`"
        );
        assert_eq!(
            told("enforce_data = \"yes\"")[0],
            "f:1: enforce_data is a text; write `enforce_data = true` or `enforce_data = false`"
        );
        assert!(
            told("\nenforce_data = true")[0]
                .starts_with("f:2: enforce_data has nothing to enforce")
        );
    }

    fn read(text: &str) -> Result<Quota, Vec<String>> {
        let read = || {
            let (mut document, mut root) = Document::parse("f", text)?;
            let quota = Quota::read(&mut document, &mut root);
            document.end(root);
            document.finish(Some(quota))
        };
        read().map_err(|faults: Vec<Fault>| faults.iter().map(Fault::to_string).collect())
    }
}
