//! Networks by name: rounded figures of what such links are commonly measured to be, for both
//! directions alike.

use std::time::Duration;

use super::link::Link;

/// A network with a name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Profile {
    /// As on the command line.
    pub name: &'static str,
    /// In words.
    pub about: &'static str,
    /// Each direction.
    pub link: Link,
}

/// All of them.
pub const PROFILES: [Profile; 9] = [
    Profile {
        name: "clean",
        about: "does nothing",
        link: Link::CLEAN,
    },
    Profile {
        name: "good-wifi",
        about: "a room away: 6 ms round trip, 100 Mbit/s, 0.1 % lost",
        link: Link {
            loss: 0.001,
            ..limited(3, 2, 100, 512)
        },
    },
    Profile {
        name: "busy-wifi",
        about: "many stations: 20 to 60 ms, 20 Mbit/s, 2 % lost in runs, some out of order",
        link: Link {
            loss: 0.02,
            burst: 3.0,
            reorder: 0.01,
            ..limited(10, 20, 20, 256)
        },
    },
    Profile {
        name: "dsl",
        about: "30 ms, 16 Mbit/s, datagrams up to 1,464 bytes (PPPoE)",
        link: Link {
            mtu: Some(1_464),
            ..limited(15, 1, 16, 256)
        },
    },
    Profile {
        name: "strong-4g",
        about: "50 to 70 ms, 40 Mbit/s, 0.2 % lost",
        link: Link {
            loss: 0.002,
            ..limited(25, 10, 40, 1_024)
        },
    },
    Profile {
        name: "weak-4g",
        about: "120 to 180 ms, 4 Mbit/s, 3 % lost in runs, a long queue",
        link: Link {
            loss: 0.03,
            burst: 5.0,
            mtu: Some(1_372),
            ..limited(60, 30, 4, 512)
        },
    },
    Profile {
        name: "ocean",
        about: "another continent: 150 ms, 0.05 % lost",
        link: Link {
            delay: Duration::from_millis(75),
            loss: 0.0005,
            ..Link::CLEAN
        },
    },
    Profile {
        name: "geo-600ms",
        about: "a geostationary satellite: 600 ms, 25 Mbit/s, 0.5 % lost",
        link: Link {
            loss: 0.005,
            ..limited(300, 5, 25, 2_048)
        },
    },
    Profile {
        name: "lossy",
        about: "40 ms, 10 % lost, each by itself",
        link: Link {
            delay: Duration::from_millis(20),
            loss: 0.1,
            ..Link::CLEAN
        },
    },
];

impl Profile {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES.into_iter().find(|profile| profile.name == name)
    }
}

const fn limited(delay_ms: u64, jitter_ms: u64, mbit: u64, queue_kib: usize) -> Link {
    Link {
        delay: Duration::from_millis(delay_ms),
        jitter: Duration::from_millis(jitter_ms),
        rate: Some(mbit * 1_000_000),
        queue: queue_kib * 1_024,
        ..Link::CLEAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_makes_sense_and_is_found_by_its_name() {
        for profile in PROFILES {
            assert_eq!(profile.link.fault(), None, "{}", profile.name);
            assert_eq!(Profile::named(profile.name), Some(profile));
        }
    }
}
