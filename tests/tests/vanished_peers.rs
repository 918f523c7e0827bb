//! Hosts that vanish without a word: both outer sockets of a flow ask for signs of life, so that
//! the kernel notices.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::Setup;
use underpass_tests::on_every_backend;
use underpass_tests::service::{Service, Talk};
use underpass_tests::tunnel::Tunnel;

/// Established, in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// The timer that runs is keep-alive's, in `/proc/net/tcp`.
const KEEP_ALIVE: &str = "02";

/// Silence before the first probe, in hundredths of a second.
const IDLE: u64 = 60 * 100;

on_every_backend! {
    fn both_ends_of_a_flow_are_asked_for_signs_of_life(io) {
        let service = Service::start(b'a').unwrap();
        let tunnel = Tunnel::open(Setup::new(io), service.address).unwrap();
        let talk = Talk::start(tunnel.address).unwrap();
        let application = talk.local().unwrap();
        wait_for("keep-alive towards the application", MOMENT, || keep_alive_towards(application)).unwrap();
        wait_for("keep-alive towards the endpoint", MOMENT, || keep_alive_towards(service.address)).unwrap();
        talk.finish().unwrap();
    }
}

/// Whether a connection to this address waits for its keep-alive timer, for as long as it should at
/// most.
fn keep_alive_towards(remote: SocketAddr) -> Option<()> {
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    // sl local remote state queues timer:when, all but the first hexadecimal.
    let waits = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, to, ESTABLISHED, _, timer, ..] = fields[..] else {
            return false;
        };
        let (kind, when) = timer.split_once(':').unwrap();
        address(to) == Some(remote)
            && kind == KEEP_ALIVE
            && u64::from_str_radix(when, 16).unwrap() <= IDLE
    };
    connections.lines().skip(1).any(waits).then_some(())
}

/// `0100007F:1F90`, the address in the machine's order of bytes.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddrV4::new(ip, port).into())
}
