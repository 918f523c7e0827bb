//! Names of flows. Half of a name is a check of the connection that began the flow, by which an
//! agent recognises a connection of its own that came back to it. Reads nothing of the system.

use std::net::{IpAddr, SocketAddr};

/// Names a flow in the logs of both sides. The lower half is a check of its application's
/// connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowId(pub u64);

/// Where an address is valid that is not unique in the world: `127.0.0.1` is another machine's
/// on each machine, and `172.17.0.2` another container's.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Locality {
    /// Of the running kernel: FNV-1a of 64 bits over its boot id as text.
    pub kernel: u64,
    /// Of the network namespace in that kernel: its inode.
    pub network: u64,
}

impl FlowId {
    /// Of the flow that an application began by a connection from one address to another, where
    /// both are known. It was accepted at `here`.
    #[must_use]
    pub fn of_connection(
        number: u32,
        from: SocketAddr,
        to: Option<SocketAddr>,
        here: Locality,
    ) -> Self {
        let check = to.map_or(0, |to| Self::check_of(from, to, here));
        Self(u64::from(number) << 32 | u64::from(check))
    }

    /// The check of the connection that began it.
    #[must_use]
    pub fn check(self) -> u32 {
        self.0 as u32
    }

    /// The check of a connection: FNV-1a of 32 bits over both addresses, each 16 bytes (IPv4 mapped
    /// into IPv6) and the port, and over as much of the place as makes the addresses unique.
    #[must_use]
    pub fn check_of(from: SocketAddr, to: SocketAddr, here: Locality) -> u32 {
        let mut hash = Fnv(0x811c_9dc5);
        for address in [from, to] {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            hash.write(&ip.octets());
            hash.write(&address.port().to_be_bytes());
        }
        let (from, to) = (from.ip().to_canonical(), to.ip().to_canonical());
        // A connection from an address to itself never leaves its network namespace.
        let is_internal = from == to || (from.is_loopback() && to.is_loopback());
        if is_internal || !is_unique(from) || !is_unique(to) {
            hash.write(&here.kernel.to_be_bytes());
        }
        if is_internal {
            hash.write(&here.network.to_be_bytes());
        }
        hash.0
    }
}

/// Whether the address means the same machine everywhere.
fn is_unique(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // Shared with carriers (RFC 6598).
            let is_shared = matches!(ip.octets(), [100, 64..=127, ..]);
            !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || is_shared)
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
    }
}

struct Fnv(u32);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str, kernel: u64, network: u64) -> u32 {
        let [from, to] = [from, to].map(|text| text.parse().expect("an address"));
        FlowId::check_of(from, to, Locality { kernel, network })
    }

    #[test]
    fn addresses_that_are_not_unique_are_told_apart_by_their_place() {
        // From, to, and whether another kernel and another namespace make it another connection.
        for (from, to, by_kernel, by_network) in [
            ("127.0.0.1:40000", "127.0.0.7:5432", true, true),
            ("[::1]:40000", "[::1]:5432", true, true),
            ("198.51.100.7:40000", "198.51.100.7:5432", true, true),
            ("172.17.0.2:40000", "172.17.0.3:5432", true, false),
            ("10.1.2.3:40000", "198.51.100.7:5432", true, false),
            ("100.64.0.1:40000", "198.51.100.7:5432", true, false),
            ("[fd00::1]:40000", "[fd00::2]:5432", true, false),
            ("198.51.100.8:40000", "198.51.100.7:5432", false, false),
            ("[2001:db8::1]:40000", "[2001:db8::2]:5432", false, false),
        ] {
            let base = check(from, to, 1, 1);
            assert_eq!(base != check(from, to, 2, 1), by_kernel, "{from} {to}");
            assert_eq!(base != check(from, to, 1, 2), by_network, "{from} {to}");
        }
    }

    #[test]
    fn mapped_addresses_have_the_check_of_plain_ones() {
        let plain = check("127.0.0.1:40000", "127.0.0.7:5432", 1, 1);
        let mapped = check("[::ffff:127.0.0.1]:40000", "[::ffff:127.0.0.7]:5432", 1, 1);
        assert_eq!(plain, mapped);
        assert_ne!(plain, check("127.0.0.1:40001", "127.0.0.7:5432", 1, 1));
    }
}
