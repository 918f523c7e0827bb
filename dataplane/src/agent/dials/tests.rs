//! Dials of endpoints with several addresses, in a time of the test's own, over sockets that do not
//! exist.

use std::io::{Error, ErrorKind};

use crossbeam_channel::{Receiver, Sender, bounded};
use quinn_proto::{Dir, Side};
use underpass_proto::FlowId;

use super::*;
use crate::io::sim::{Op, Sim};
use crate::quic::Driver;
use crate::quic::config::EndpointKeys;

const ENDPOINT: &str = "db.corp:1433";

/// Between two looks, as a worker does it.
const TICK: Duration = crate::worker::TICK;

/// From an address that is silent to the next one.
const STEP: Duration = crate::addresses::ATTEMPT_EVERY;

struct Scene {
    core: Core<Sim, AgentFlow>,
    dials: Dials,
    allow: AllowList,
    start: Instant,
    /// Attempts under way, in their order.
    connecting: Vec<(SocketId, SocketAddr)>,
    _never: Sender<()>,
    _inbox: Receiver<Message>,
}

#[test]
fn a_name_without_an_address_is_told_from_one_that_may_not_be_dialled() {
    let endpoint: Endpoint = ENDPOINT.parse().expect("an endpoint");
    let allow = allowed();
    let (metadata, fine) = (found("169.254.169.254"), found("10.1.2.3"));
    assert_eq!(
        permitted(&allow, &endpoint, &[metadata]),
        Err(FlowCode::NotAllowed)
    );
    let only = "10.1.2.3:1433".parse().expect("an address");
    assert_eq!(
        permitted(&allow, &endpoint, &[metadata, fine]),
        Ok(vec![only])
    );
    let mut scene = Scene::open();
    let done = scene.fail_to_resolve(Failure::NotFound);
    assert_eq!(done.result, Err(FlowCode::NameNotFound));
    let done = scene.fail_to_resolve(Failure::Silent);
    assert_eq!(done.result, Err(FlowCode::NameServerSilent));
    let done = scene.fail_to_resolve(Failure::Exhausted);
    assert_eq!(done.result, Err(FlowCode::Overloaded));
}

#[test]
fn a_failed_attempt_is_reported_by_its_true_cause() {
    let (v4, v6): (SocketAddr, SocketAddr) = (
        "127.0.0.1:1433".parse().expect("an address"),
        // Link-local, and no interface is named: nothing leads there, on any machine.
        "[fe80::1]:1433".parse().expect("an address"),
    );
    let code = |errno| code_of(&Error::from_raw_os_error(errno), v4);
    for (errno, expected) in [
        (libc::ECONNREFUSED, FlowCode::EndpointRefused),
        (libc::ETIMEDOUT, FlowCode::EndpointTimedOut),
        (libc::EADDRNOTAVAIL, FlowCode::NoSourcePort),
        (libc::EHOSTUNREACH, FlowCode::EndpointUnreachable),
        (libc::ENETUNREACH, FlowCode::EndpointUnreachable),
        (libc::ENETDOWN, FlowCode::EndpointUnreachable),
        (libc::EAFNOSUPPORT, FlowCode::EndpointUnreachable),
        (libc::EACCES, FlowCode::EndpointUnreachable),
        (libc::EMFILE, FlowCode::Overloaded),
        (libc::ENOBUFS, FlowCode::Overloaded),
    ] {
        assert_eq!(code(errno), expected, "errno {errno}");
    }
    let none = Error::from_raw_os_error(libc::EADDRNOTAVAIL);
    assert_eq!(code_of(&none, v6), FlowCode::EndpointUnreachable);
}

#[test]
fn a_silent_first_address_costs_a_quarter_of_a_second_and_the_next_flow_nothing() {
    let mut scene = Scene::open();
    let number = scene.begin();
    assert!(scene.resolve(number, &["fd00::1", "10.1.2.3"]).is_none());
    assert_eq!(scene.under_way(), ["[fd00::1]:1433"]);
    assert!(scene.advance(STEP - TICK).is_empty());
    assert_eq!(scene.under_way().len(), 1, "not yet");
    assert!(scene.advance(TICK).is_empty());
    assert_eq!(scene.under_way(), ["[fd00::1]:1433", "10.1.2.3:1433"]);
    let done = scene.connect("10.1.2.3:1433", Ok(())).expect("it is over");
    assert_eq!(won(&done), "10.1.2.3:1433");
    assert_eq!(scene.closed(), ["[fd00::1]:1433"]);
    assert_eq!((scene.dials.sockets, scene.dials.len()), (0, 0));

    let number = scene.begin();
    assert!(scene.resolve(number, &["fd00::1", "10.1.2.3"]).is_none());
    assert_eq!(scene.under_way(), ["10.1.2.3:1433"], "what worked last");
}

#[test]
fn an_address_that_fails_makes_way_at_once() {
    let mut scene = Scene::open();
    let number = scene.begin();
    scene.resolve(number, &["10.1.2.3", "10.1.2.4", "10.1.2.5"]);
    scene.advance(STEP / 2);
    assert!(scene.refuse("10.1.2.3:1433").is_none());
    assert_eq!(scene.under_way(), ["10.1.2.4:1433"]);
    // The step of the first attempt is over with it: the third address has its own 250 ms.
    scene.advance(STEP / 2 + TICK / 2);
    assert_eq!(scene.under_way(), ["10.1.2.4:1433"]);
    scene.advance(STEP);
    assert_eq!(scene.under_way(), ["10.1.2.4:1433", "10.1.2.5:1433"]);
    assert!(scene.refuse("10.1.2.4:1433").is_none());
    let done = scene.refuse("10.1.2.5:1433").expect("it is over");
    assert_eq!(done.result, Err(FlowCode::EndpointRefused));
}

#[test]
fn the_last_of_many_addresses_has_the_time_of_a_whole_attempt() {
    let mut scene = Scene::open();
    let number = scene.begin();
    let addresses: Vec<String> = (1..=8).map(|last| format!("10.1.2.{last}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    scene.resolve(number, &addresses);
    for _ in 0..30 {
        assert!(scene.advance(TICK).is_empty());
    }
    assert_eq!(scene.under_way().len(), 8);
    assert!(
        scene
            .advance(DIAL_DEADLINE - Duration::from_secs(2))
            .is_empty()
    );
    let done = scene.connect("10.1.2.8:1433", Ok(())).expect("it is over");
    assert_eq!(won(&done), "10.1.2.8:1433");
    assert_eq!(scene.closed().len(), 7);
}

#[test]
fn two_silent_addresses_fail_when_the_second_one_has_had_its_time() {
    let mut scene = Scene::open();
    let number = scene.begin();
    scene.resolve(number, &["10.1.2.3", "10.1.2.4"]);
    assert!(scene.advance(STEP).is_empty());
    assert_eq!(scene.under_way().len(), 2);
    assert!(scene.advance(DIAL_DEADLINE - STEP).is_empty());
    assert!(scene.advance(STEP - Duration::from_millis(1)).is_empty());
    let over = scene.advance(Duration::from_millis(1));
    assert_eq!(over.len(), 1);
    assert_eq!(over[0].result, Err(FlowCode::EndpointTimedOut));
    assert_eq!(scene.core.now - scene.start, DIAL_DEADLINE + STEP);
    assert!(scene.dials.late.is_empty());
}

#[test]
fn a_name_that_took_long_takes_nothing_from_the_dial_but_the_relay_is_answered_in_time() {
    let mut scene = Scene::open();
    let number = scene.begin();
    assert!(scene.advance(Duration::from_secs(3)).is_empty());
    scene.resolve(number, &["10.1.2.3"]);
    assert!(
        scene
            .advance(DIAL_DEADLINE - Duration::from_millis(1))
            .is_empty()
    );
    assert_eq!(scene.under_way(), ["10.1.2.3:1433"]);
    let over = scene.advance(Duration::from_secs(2));
    assert_eq!(over.len(), 1);
    assert_eq!(over[0].result, Err(FlowCode::EndpointTimedOut));
    assert!(scene.core.now - scene.start <= underpass_proto::limits::OPEN_DEADLINE);
    assert_eq!(scene.closed(), ["10.1.2.3:1433"]);
}

#[test]
fn one_address_that_is_silent_is_given_up_as_ever() {
    let mut scene = Scene::open();
    let number = scene.begin();
    scene.resolve(number, &["10.1.2.3"]);
    assert!(scene.dials.steps.is_empty(), "no timer of its own");
    assert!(
        scene
            .advance(DIAL_DEADLINE - Duration::from_millis(1))
            .is_empty()
    );
    let over = scene.advance(Duration::from_millis(1));
    assert_eq!(over[0].result, Err(FlowCode::EndpointTimedOut));
    assert_eq!(scene.closed(), ["10.1.2.3:1433"]);
}

#[test]
fn the_failure_that_tells_most_is_reported_with_its_address() {
    let timed_out = || Err(Error::from(ErrorKind::TimedOut));
    let unreachable = || Err(Error::from(ErrorKind::NetworkUnreachable));
    let mut scene = Scene::open();
    let number = scene.begin();
    scene.resolve(number, &["10.1.2.3", "fd00::1"]);
    assert!(scene.refuse("10.1.2.3:1433").is_none());
    let done = scene.connect("[fd00::1]:1433", unreachable());
    let done = done.expect("it is over");
    assert_eq!(done.result, Err(FlowCode::EndpointRefused));
    let told = done.dial.last.map(|(_, address)| address.to_string());
    assert_eq!(told.as_deref(), Some("10.1.2.3:1433"));

    let number = scene.begin();
    scene.resolve(number, &["fd00::1", "10.1.2.3"]);
    assert!(scene.connect("[fd00::1]:1433", unreachable()).is_none());
    let done = scene.connect("10.1.2.3:1433", timed_out());
    assert_eq!(
        done.expect("it is over").result,
        Err(FlowCode::EndpointTimedOut)
    );
}

#[test]
fn a_flow_that_is_taken_back_closes_every_attempt() {
    let mut scene = Scene::open();
    let number = scene.begin();
    scene.resolve(number, &["10.1.2.3", "10.1.2.4"]);
    scene.advance(STEP + TICK);
    scene.dials.abandon(&mut scene.core, number);
    assert_eq!(scene.closed(), ["10.1.2.3:1433", "10.1.2.4:1433"]);
    assert_eq!((scene.dials.sockets, scene.dials.len()), (0, 0));
    assert!(scene.advance(ANSWER_DEADLINE).is_empty());
}

impl Scene {
    fn open() -> Self {
        let start = Instant::now();
        let quic = Driver::new(0, &EndpointKeys::ephemeral(), None, None);
        // A name is resolved when the test says so.
        let (never, gate) = bounded::<()>(0);
        let resolver = Resolver::by(std::sync::Arc::new(move |_| {
            let _ = gate.recv();
            Err(Failure::Silent)
        }));
        let (handle, inbox) = Handle::to_inbox();
        Self {
            core: Core::new(0, Sim::new(start, 1), quic),
            dials: Dials::new(resolver, handle),
            allow: allowed(),
            start,
            connecting: Vec::new(),
            _never: never,
            _inbox: inbox,
        }
    }

    /// A flow asks for the endpoint. Answers its number.
    fn begin(&mut self) -> u64 {
        let relay = "relay.example:4433".parse().expect("an endpoint");
        let open = Open {
            hyco: "payroll-sql".parse().expect("a name"),
            flow: FlowId(1),
            endpoint: ENDPOINT.parse().expect("an endpoint"),
            application: "10.0.0.9:50000".parse().expect("an address"),
        };
        let stream = StreamId::new(Side::Server, Dir::Bi, self.dials.next);
        let purpose = DialPurpose::Flow {
            stream,
            open,
            first: Bytes::new(),
            hops: Hops::default(),
        };
        let of = (&relay, SessionId::of_test(1));
        let done = self.dials.begin(&mut self.core, &self.allow, of, purpose);
        assert!(done.is_none(), "{done:?}");
        self.dials.next
    }

    fn resolve(&mut self, number: u64, ips: &[&str]) -> Option<Done> {
        let answer = Ok(ips.iter().map(|ip| found(ip)).collect());
        let done = self
            .dials
            .found(&mut self.core, &self.allow, number, &answer);
        self.look();
        done
    }

    fn fail_to_resolve(&mut self, failure: Failure) -> Done {
        let number = self.begin();
        let (core, allow) = (&mut self.core, &self.allow);
        let done = self.dials.found(core, allow, number, &Err(failure));
        done.expect("it is over")
    }

    /// Time goes on, and the worker looks.
    fn advance(&mut self, by: Duration) -> Vec<Done> {
        self.core.now += by;
        let over = self.dials.expire(&mut self.core);
        self.look();
        over
    }

    /// The attempt at this address ends.
    fn connect(&mut self, address: &str, result: std::io::Result<()>) -> Option<Done> {
        let is_it = |(_, it): &(SocketId, SocketAddr)| it.to_string() == address;
        let at = self.connecting.iter().position(is_it);
        let (socket, _) = self.connecting.remove(at.expect("it is under way"));
        let Owner::Role(number) = self.core.owner(socket) else {
            panic!("{address} belongs to nobody");
        };
        let done = self.dials.connected(&mut self.core, number, socket, result);
        self.look();
        done
    }

    fn refuse(&mut self, address: &str) -> Option<Done> {
        self.connect(address, Err(ErrorKind::ConnectionRefused.into()))
    }

    fn look(&mut self) {
        // What is closed stays in the list until the test asks for it.
        for op in self.core.io.take_ops() {
            if let Op::Connect(socket, to) = op {
                self.connecting.push((socket, to));
            }
        }
    }

    fn is_open(&self, socket: SocketId) -> bool {
        self.core.owner(socket) != Owner::None
    }

    fn under_way(&self) -> Vec<String> {
        let open = self
            .connecting
            .iter()
            .filter(|(socket, _)| self.is_open(*socket));
        open.map(|(_, address)| address.to_string()).collect()
    }

    /// The attempts that were closed without an end of their own, since the last call.
    fn closed(&mut self) -> Vec<String> {
        let all = std::mem::take(&mut self.connecting);
        let (open, closed): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(socket, _)| self.is_open(*socket));
        self.connecting = open;
        closed
            .into_iter()
            .map(|(_, address)| address.to_string())
            .collect()
    }
}

fn won(done: &Done) -> String {
    done.result.expect("it is connected").1.to_string()
}

fn found(ip: &str) -> Found {
    Found {
        ip: ip.parse().expect("an address"),
        from_hosts_file: false,
    }
}

fn allowed() -> AllowList {
    std::iter::once(ENDPOINT.parse().expect("an entry")).collect()
}
