//! Where each hybrid connection is bound when nobody said: on the endpoint's own port, at a
//! loopback address that its host has alone, so that two SQL servers with one port both work. Knows
//! no sockets; the same hosts get the same addresses after every start.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use sha2::{Digest, Sha256};
use underpass_proto::{ConnectionString, Endpoint, HycoName};

/// Addresses in the last part of 127.0.0.x that are given out: 2 to 254, for 1 is everybody's.
const IN_LAST_PART: u32 = 253;

/// Addresses in all: a sender that is full goes on at 127.0.1.2.
const ADDRESSES: u32 = IN_LAST_PART * 256;

/// A hybrid connection of a relay.
pub(super) type Id = (String, HycoName);

pub(super) fn id(string: &ConnectionString) -> Id {
    (string.relay(), string.name.clone())
}

/// What is known of endpoints, and which addresses were given out.
#[derive(Default, Debug)]
pub(super) struct Places {
    endpoints: HashMap<Id, Endpoint>,
    /// By host, and how many before it have the same host and port.
    addresses: HashMap<(String, usize), Ipv4Addr>,
}

impl Places {
    /// Which endpoint's place this hybrid connection has, once it may have one.
    pub(super) fn endpoint(&self, id: &Id) -> Option<&Endpoint> {
        self.endpoints.get(id)
    }

    /// It has no place any more.
    pub(super) fn forget(&mut self, id: &Id) {
        self.endpoints.remove(id);
    }

    /// It may have the place of this endpoint. Whether that is news.
    pub(super) fn learn(&mut self, id: Id, endpoint: Endpoint) -> bool {
        self.endpoints.insert(id, endpoint.clone()) != Some(endpoint)
    }

    /// Where each is bound: as it was said, or on a place of its own; `None` while its endpoint is
    /// not known.
    pub(super) fn of(&mut self, wanted: &[(Id, Option<SocketAddr>)]) -> Vec<Option<SocketAddr>> {
        let said: HashSet<SocketAddr> = wanted.iter().filter_map(|(_, bind)| *bind).collect();
        let mut same: HashMap<(String, u16), usize> = HashMap::new();
        let mut places = Vec::new();
        for (id, bind) in wanted {
            let endpoint = self.endpoints.get(id).cloned();
            let place = bind.or_else(|| {
                let endpoint = endpoint?;
                let host = endpoint
                    .host
                    .to_string()
                    .trim_end_matches('.')
                    .to_ascii_lowercase();
                let port = endpoint.port.get();
                let before = same.entry((host.clone(), port)).or_default();
                let nth = std::mem::replace(before, *before + 1);
                Some(SocketAddr::from((
                    self.address(host, nth, port, &said),
                    port,
                )))
            });
            places.push(place);
        }
        places
    }

    fn address(
        &mut self,
        host: String,
        nth: usize,
        port: u16,
        said: &HashSet<SocketAddr>,
    ) -> Ipv4Addr {
        let free = |ip: Ipv4Addr| !said.contains(&SocketAddr::from((ip, port)));
        let key = (host, nth);
        if let Some(known) = self.addresses.get(&key).copied().filter(|ip| free(*ip)) {
            return known;
        }
        let given: HashSet<Ipv4Addr> = self.addresses.values().copied().collect();
        let digest = Sha256::digest(format!("{}#{nth}", key.0));
        let first = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % IN_LAST_PART;
        let address = (0..ADDRESSES)
            .map(|step| nth_address((first + step) % ADDRESSES))
            .find(|ip| !given.contains(ip) && free(*ip))
            .unwrap_or(Ipv4Addr::LOCALHOST);
        self.addresses.insert(key, address);
        address
    }
}

fn nth_address(nth: u32) -> Ipv4Addr {
    let part = |number: u32| u8::try_from(number).unwrap_or(0);
    Ipv4Addr::new(
        127,
        0,
        part(nth / IN_LAST_PART),
        part(2 + nth % IN_LAST_PART),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, bind: Option<&str>) -> (Id, Option<SocketAddr>) {
        let id = ("relay:4433".to_owned(), name.parse().unwrap());
        (id, bind.map(|bind| bind.parse().unwrap()))
    }

    fn learned(endpoints: &[(&str, &str)]) -> Places {
        let mut places = Places::default();
        for (name, endpoint) in endpoints {
            assert!(places.learn(wanted(name, None).0, endpoint.parse().unwrap()));
        }
        places
    }

    #[test]
    fn two_servers_with_one_port_have_an_address_each_and_one_server_has_one() {
        let mut places = learned(&[
            ("payroll-sql", "sql01.corp:1433"),
            ("archive-sql", "sql02.corp:1433"),
            ("payroll-web", "SQL01.corp.:443"),
        ]);
        let all = [
            wanted("payroll-sql", None),
            wanted("archive-sql", None),
            wanted("payroll-web", None),
        ];
        let found: Vec<SocketAddr> = places.of(&all).into_iter().flatten().collect();
        assert_eq!(
            found.iter().map(SocketAddr::port).collect::<Vec<_>>(),
            [1433, 1433, 443]
        );
        assert_eq!(found[0].ip(), found[2].ip());
        assert_ne!(found[0].ip(), found[1].ip());
        assert!(
            found
                .iter()
                .all(|place| place.ip().is_loopback() && place.ip() != Ipv4Addr::LOCALHOST)
        );

        // After another start, in another order, without the others.
        let mut places = learned(&[("archive-sql", "sql02.corp:1433")]);
        assert_eq!(places.of(&[wanted("archive-sql", None)]), [Some(found[1])]);
    }

    #[test]
    fn what_was_said_is_taken_and_avoided_by_others() {
        let mut places = learned(&[("payroll-sql", "sql01.corp:1433")]);
        let own = places.of(&[wanted("payroll-sql", None)])[0].unwrap();
        let said = own.to_string();
        let both = [
            wanted("payroll-sql", None),
            wanted("archive-sql", Some(&said)),
        ];
        let found = places.of(&both);
        assert_eq!(found[1], Some(own));
        assert_ne!(found[0], Some(own));
        assert_eq!(places.of(&both), found, "it stays there");
    }

    #[test]
    fn the_same_endpoint_twice_is_bound_twice() {
        let mut places = learned(&[("payroll-sql", "sql01:1"), ("payroll-two", "sql01:1")]);
        let found = places.of(&[wanted("payroll-sql", None), wanted("payroll-two", None)]);
        assert_ne!(found[0], found[1]);
    }

    #[test]
    fn an_unknown_endpoint_has_no_place_and_news_are_told() {
        let mut places = learned(&[("payroll-sql", "sql01:1")]);
        assert_eq!(places.of(&[wanted("archive-sql", None)]), [None]);
        let id = wanted("payroll-sql", None).0;
        assert!(!places.learn(id.clone(), "sql01:1".parse().unwrap()));
        assert!(places.learn(id, "sql01:2".parse().unwrap()));
    }

    #[test]
    fn addresses_go_on_beyond_the_last_part() {
        assert_eq!(nth_address(0), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(nth_address(252), Ipv4Addr::new(127, 0, 0, 254));
        assert_eq!(nth_address(253), Ipv4Addr::new(127, 0, 1, 2));
        assert_eq!(nth_address(ADDRESSES - 1), Ipv4Addr::new(127, 0, 255, 254));
    }
}
