//! Everything over IPv6: an agent and a sender dial the relay there, an application comes to its
//! binding there, and the endpoint is there.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use underpass_tests::installation::{Installation, Setup};
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";

on_every_backend! {
    fn relay_agent_sender_application_and_endpoint_meet_over_ipv6(io) {
        let here = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        if let Err(why) = UdpSocket::bind(here) {
            return underpass_loadtest::note!("skipped: this machine has no IPv6: {why}");
        }
        let _turn = turn::shared();
        let service = Service::start_at(here, b'6').unwrap();
        let setup = Setup { ip: here.ip(), ..Setup::new(io) };
        let endpoint = service.address.to_string();
        let installation = Installation::start(setup.clone(), &[(NAME, &endpoint)]).unwrap();
        let _agent = installation.start_agent(&[NAME], &[&endpoint]).unwrap();
        let sender = Sender::start(&installation, setup, &[NAME]).unwrap();
        let binding = installation.binding(NAME).unwrap();
        assert!(binding.is_ipv6() && installation.listen().is_ipv6());
        for address in [binding, sender.address(NAME).unwrap()] {
            let mut talk = Talk::start(address).unwrap();
            assert_eq!(talk.letter, b'6');
            talk.exchange().unwrap();
        }
        let status = installation.status().unwrap().relay.unwrap();
        assert_eq!(status.sessions.len(), 2);
        assert!(status.sessions.iter().all(|session| session.remote.is_ipv6()));
    }
}
