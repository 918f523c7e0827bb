//! The baseline is worth being measured against: it carries bytes right, and ends flows as TCP
//! does.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use underpass_bench::stock::{self, Settings, relay::Event};
use underpass_loadtest::{Endpoint, Mode, Plan, endpoint, run};

/// Longer than any step here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[test]
fn every_byte_of_many_flows_is_right() {
    for mtu in [Some(1452), None] {
        let endpoint = Endpoint::start(endpoint::Settings::new(LOCAL)).expect("starts");
        let binding = start(endpoint.address(), Settings { mtu, threads: 2 });
        for (mode, flows, bytes) in [
            (Mode::Both, 8, 5_000_000),
            (Mode::Echo, 100, 10_000),
            (Mode::PingPong, 2, 500),
        ] {
            let plan = Plan {
                flows,
                bytes: Some(bytes),
                ..Plan::new(binding, mode)
            };
            let tally = run::run(&plan, |_| ()).expect("runs").tally;
            assert_eq!(
                tally.right, flows,
                "{mode:?}, mtu {mtu:?}: {:?}",
                tally.faults
            );
        }
    }
}

#[test]
fn a_reset_crosses_in_both_directions() {
    let server = TcpListener::bind(LOCAL).expect("a free port");
    let binding = start(
        server.local_addr().expect("bound"),
        Settings {
            mtu: None,
            threads: 1,
        },
    );
    for application_resets in [true, false] {
        let mut application = TcpStream::connect(binding).expect("connects");
        let (mut service, _) = server.accept().expect("dialled");
        application.write_all(b"x").expect("sends");
        service.read_exact(&mut [0]).expect("arrives");
        let (from, to) = if application_resets {
            (&application, &mut service)
        } else {
            (&service, &mut application)
        };
        rustix::net::connect_unspec(from).expect("resets");
        to.set_read_timeout(Some(DEADLINE)).expect("sets");
        let kind = to.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(
            kind,
            Err(std::io::ErrorKind::ConnectionReset),
            "application resets: {application_resets}"
        );
    }
}

#[test]
fn a_half_closed_flow_still_delivers_the_reply() {
    let server = TcpListener::bind(LOCAL).expect("a free port");
    let binding = start(
        server.local_addr().expect("bound"),
        Settings {
            mtu: None,
            threads: 1,
        },
    );
    let mut application = TcpStream::connect(binding).expect("connects");
    let (mut service, _) = server.accept().expect("dialled");
    application.write_all(b"question").expect("sends");
    application.shutdown(Shutdown::Write).expect("half-closes");
    let mut question = String::new();
    service.read_to_string(&mut question).expect("ends cleanly");
    service.write_all(b"answer").expect("sends");
    drop(service);
    let mut answer = String::new();
    application
        .read_to_string(&mut answer)
        .expect("ends cleanly");
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
}

/// Starts relay and agent on threads of their own, which end with the test's process; gives where
/// applications connect.
fn start(endpoint: SocketAddr, settings: Settings) -> SocketAddr {
    let (sender, events) = mpsc::channel();
    std::thread::spawn(move || {
        let say = |event: &Event| sender.send(*event).expect("the test listens");
        stock::block_on(settings, stock::relay::run(LOCAL, LOCAL, settings, say))
    });
    let Event::Bound { udp, tcp } = events.recv_timeout(DEADLINE).expect("the relay starts") else {
        panic!("a session before the binding");
    };
    std::thread::spawn(move || {
        stock::block_on(settings, stock::agent::run(udp, endpoint, settings))
    });
    events.recv_timeout(DEADLINE).expect("the agent comes");
    // The relay outlives this: keep its last channel end open.
    std::mem::forget(events);
    tcp
}
