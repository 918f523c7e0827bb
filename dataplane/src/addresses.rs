//! In which order the addresses of a name are tried, and how far apart (Happy Eyeballs, RFC 8305).
//! Opens no sockets.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use underpass_proto::Endpoint;

/// From one attempt to the next one beside it (RFC 8305, section 5).
pub(crate) const ATTEMPT_EVERY: Duration = Duration::from_millis(250);

/// Endpoints of which it is remembered what worked; beyond, all is forgotten, and learned again at
/// 250 ms each.
const WORKED_MAX: usize = 1024;

/// After this time the resolver's own order is tried again: the address that failed may be back.
const WORKED_FOR: Duration = Duration::from_secs(600);

/// Sorts addresses as they are tried: what worked last, then one family and the other in turns,
/// each in the resolver's order (RFC 8305, section 4).
#[must_use]
pub(crate) fn arranged(mut addresses: Vec<SocketAddr>, worked: Option<IpAddr>) -> Vec<SocketAddr> {
    if addresses.len() < 2 {
        return addresses;
    }
    let known = |worked| addresses.iter().position(|it| it.ip() == worked);
    if let Some(at) = worked.and_then(known) {
        addresses[..=at].rotate_right(1);
    }
    let first_is_v4 = addresses[0].is_ipv4();
    let (one, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == first_is_v4);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut arranged = Vec::new();
    loop {
        let (next, beside) = (one.next(), other.next());
        if next.is_none() && beside.is_none() {
            return arranged;
        }
        arranged.extend(next);
        arranged.extend(beside);
    }
}

/// Addresses that answered where the first one did not.
#[derive(Debug, Default)]
pub(crate) struct Worked(FxHashMap<Endpoint, (IpAddr, Instant)>);

impl Worked {
    /// What worked last, if it was not long ago.
    #[must_use]
    pub(crate) fn of(&self, now: Instant, endpoint: &Endpoint) -> Option<IpAddr> {
        let (ip, at) = self.0.get(endpoint)?;
        (now.saturating_duration_since(*at) < WORKED_FOR).then_some(*ip)
    }

    /// This one answered, and one before it did not.
    pub(crate) fn remember(&mut self, now: Instant, endpoint: &Endpoint, ip: IpAddr) {
        if self.0.len() >= WORKED_MAX && !self.0.contains_key(endpoint) {
            self.0.clear();
        }
        self.0.insert(endpoint.clone(), (ip, now));
    }

    /// None answers any more.
    pub(crate) fn forget(&mut self, endpoint: &Endpoint) {
        self.0.remove(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_what_worked_last_is_first() {
        let cases: [(&[&str], Option<&str>, &[&str]); 6] = [
            (&[], Some("10.0.0.1"), &[]),
            (&["10.0.0.1"], None, &["10.0.0.1"]),
            (
                &["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2", "10.0.0.3"],
                None,
                &["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2", "10.0.0.3"],
            ),
            (
                &["10.0.0.1", "10.0.0.2", "fd00::1"],
                None,
                &["10.0.0.1", "fd00::1", "10.0.0.2"],
            ),
            (
                &["fd00::1", "fd00::2", "10.0.0.1"],
                Some("10.0.0.1"),
                &["10.0.0.1", "fd00::1", "fd00::2"],
            ),
            (
                &["10.0.0.1", "10.0.0.2"],
                Some("10.0.0.9"),
                &["10.0.0.1", "10.0.0.2"],
            ),
        ];
        for (addresses, worked, expected) in cases {
            let arranged = arranged(all(addresses), worked.map(ip));
            assert_eq!(arranged, all(expected), "{addresses:?}, {worked:?}");
        }
    }

    #[test]
    fn what_worked_is_remembered_for_a_while_and_of_so_many() {
        let (mut worked, start) = (Worked::default(), Instant::now());
        let endpoint = |number: usize| -> Endpoint {
            format!("s{number}.corp:1433").parse().expect("an endpoint")
        };
        worked.remember(start, &endpoint(0), ip("10.0.0.2"));
        let late = start + WORKED_FOR;
        let just = late - Duration::from_millis(1);
        assert_eq!(worked.of(just, &endpoint(0)), Some(ip("10.0.0.2")));
        assert_eq!(worked.of(late, &endpoint(0)), None);
        worked.forget(&endpoint(0));
        assert_eq!(worked.of(start, &endpoint(0)), None);
        for number in 0..=WORKED_MAX {
            worked.remember(start, &endpoint(number), ip("10.0.0.2"));
            assert!(worked.0.len() <= WORKED_MAX);
        }
        assert!(worked.of(start, &endpoint(WORKED_MAX)).is_some());
    }

    fn all(texts: &[&str]) -> Vec<SocketAddr> {
        let address = |text: &&str| SocketAddr::new(ip(text), 1433);
        texts.iter().map(address).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
