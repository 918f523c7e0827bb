//! Which bindings are taken, so that ten thousand of one port cost no more each than ten do.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bindings, none of which overlaps another, each with who has it.
#[derive(Debug)]
pub(super) struct Bindings<T>(BTreeMap<u16, OfPort<T>>);

/// Those of one port.
#[derive(Debug)]
struct OfPort<T> {
    by_ip: HashMap<IpAddr, T>,
    /// What a wide address overlaps first.
    first: Option<T>,
    first_v4: Option<T>,
}

impl<T: Copy> Bindings<T> {
    /// None is taken.
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Who has what `bind` overlaps ([`overlap`]), the first that took it.
    ///
    /// [`overlap`]: crate::files::definition::overlap
    pub(super) fn overlapped(&self, bind: SocketAddr) -> Option<T> {
        const EVERY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        const EVERY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let taken = self.0.get(&bind.port())?;
        let of = |ip| taken.by_ip.get(&ip).copied();
        match bind.ip().to_canonical() {
            EVERY => taken.first,
            EVERY_V4 => taken.first_v4.or_else(|| of(EVERY)),
            ip if ip.is_ipv4() => of(ip).or_else(|| of(EVERY_V4)).or_else(|| of(EVERY)),
            ip => of(ip).or_else(|| of(EVERY)),
        }
    }

    /// Gives `bind` to `holder`. It overlaps none that is taken. Port 0 is never taken.
    pub(super) fn take(&mut self, bind: SocketAddr, holder: T) {
        if bind.port() == 0 {
            return;
        }
        let taken = self.0.entry(bind.port()).or_insert_with(|| OfPort {
            by_ip: HashMap::new(),
            first: None,
            first_v4: None,
        });
        let ip = bind.ip().to_canonical();
        taken.first.get_or_insert(holder);
        if ip.is_ipv4() {
            taken.first_v4.get_or_insert(holder);
        }
        taken.by_ip.insert(ip, holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::definition::overlap;

    #[test]
    fn what_is_overlapped_is_what_a_look_at_each_says() {
        let ips = [
            "0.0.0.0",
            "10.0.0.1",
            "10.0.0.2",
            "::",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "::ffff:0.0.0.0",
        ];
        let all = ips.into_iter().flat_map(|ip| {
            let ip: IpAddr = ip.parse().expect("an address");
            [0, 1, 2].map(|port| SocketAddr::new(ip, port))
        });
        let all: Vec<SocketAddr> = all.collect();
        // Every way to begin, and from there in steps of every length that reach all: orders
        // enough.
        let mut overlaps = 0;
        for start in 0..all.len() {
            for step in [1, 5, 7, 11, 13, 17, 19, 23] {
                let mut taken = Bindings::new();
                let mut seen: Vec<SocketAddr> = Vec::new();
                for n in 0..all.len() {
                    let bind = all[(start + n * step) % all.len()];
                    let by_each = seen.iter().copied().find(|other| overlap(*other, bind));
                    assert_eq!(taken.overlapped(bind), by_each, "{bind} beside {seen:?}");
                    overlaps += usize::from(by_each.is_some());
                    if by_each.is_none() {
                        taken.take(bind, bind);
                        seen.push(bind);
                    }
                }
            }
        }
        assert!(overlaps > 1_000, "{overlaps}");
    }
}
