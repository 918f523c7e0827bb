//! Descriptors, shared among those whose applications connect here: while many are free each may
//! have as many as it likes; where few are left, one that has several times that number already
//! gets no more.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

use rustc_hash::FxHashMap;
use underpass_proto::HycoName;

use crate::network::Network;

/// One source, or one hybrid connection, may have so many times the descriptors that are left: four
/// fifths of all where it is alone.
const TIMES_FREE: usize = 4;

/// The sockets of applications on one worker, by whose they are.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    by_hyco: FxHashMap<HycoName, usize>,
    by_source: HashMap<Network, usize>,
}

impl Sockets {
    /// Whether there is one more for these, where so many are left of all.
    pub(super) fn has_room(&self, hyco: &HycoName, source: IpAddr, left: usize) -> bool {
        let most = left.saturating_mul(TIMES_FREE);
        count(&self.by_hyco, hyco) < most && count(&self.by_source, &Network::of(source)) < most
    }

    pub(super) fn add(&mut self, hyco: &HycoName, source: IpAddr) {
        *self.by_hyco.entry(hyco.clone()).or_default() += 1;
        *self.by_source.entry(Network::of(source)).or_default() += 1;
    }

    pub(super) fn remove(&mut self, hyco: &HycoName, source: IpAddr) {
        take_one(&mut self.by_hyco, hyco);
        take_one(&mut self.by_source, &Network::of(source));
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.by_hyco.is_empty() && self.by_source.is_empty()
    }
}

fn count<K: Hash + Eq>(counts: &HashMap<K, usize, impl BuildHasher>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn take_one<K: Hash + Eq>(counts: &mut HashMap<K, usize, impl BuildHasher>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens until refused; how many were.
    fn fill(sockets: &mut Sockets, hyco: &HycoName, source: IpAddr, left: &mut usize) -> usize {
        let mut opened = 0;
        while *left > 0 && sockets.has_room(hyco, source, *left) {
            sockets.add(hyco, source);
            *left -= 1;
            opened += 1;
        }
        opened
    }

    #[test]
    fn one_source_leaves_some_to_others_and_gives_all_back() {
        let (greedy, other): (HycoName, HycoName) =
            ("payroll-sql".parse().unwrap(), "other-way".parse().unwrap());
        let (near, far): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut sockets = Sockets::default();
        let mut left = 1_000;
        assert_eq!(fill(&mut sockets, &greedy, near, &mut left), 800);
        // Of the same hybrid connection nobody gets more, of another one the same source does not.
        assert!(!sockets.has_room(&greedy, far, left));
        assert!(!sockets.has_room(&other, near, left));
        assert_eq!(fill(&mut sockets, &other, far, &mut left), 160);
        for _ in 0..800 {
            sockets.remove(&greedy, near);
        }
        for _ in 0..160 {
            sockets.remove(&other, far);
        }
        assert!(sockets.is_empty());
    }
}
