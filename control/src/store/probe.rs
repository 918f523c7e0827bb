//! How `probe` stands in JSON: a word. Requests may have a boolean as well, from before there were
//! three ways: `true` was the default then, so it is the default now.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::files::definition::Probe;

impl Serialize for Probe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Probe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrSwitch)
    }
}

struct WordOrSwitch;

impl Visitor<'_> for WordOrSwitch {
    type Value = Probe;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("\"auto\", \"on\" or \"off\"")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Probe, E> {
        Probe::of_word(word).ok_or_else(|| E::invalid_value(Unexpected::Str(word), &self))
    }

    fn visit_bool<E: Error>(self, is_on: bool) -> Result<Probe, E> {
        Ok(if is_on { Probe::default() } else { Probe::Off })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_back_the_same_and_true_is_the_default() {
        for probe in [Probe::Auto, Probe::On, Probe::Off] {
            let json = serde_json::to_string(&probe).unwrap();
            assert_eq!(json, format!("\"{}\"", probe.word()));
            assert_eq!(serde_json::from_str::<Probe>(&json).unwrap(), probe);
        }
        let read = |json| serde_json::from_str::<Option<Probe>>(json);
        assert_eq!(read("true").unwrap(), Some(Probe::Auto));
        assert_eq!(read("false").unwrap(), Some(Probe::Off));
        assert_eq!(read("null").unwrap(), None);
        let refused = read("\"yes\"").unwrap_err().to_string();
        assert!(
            refused
                .starts_with("invalid value: string \"yes\", expected \"auto\", \"on\" or \"off\""),
            "{refused}"
        );
        assert!(read("1").is_err());
    }
}
