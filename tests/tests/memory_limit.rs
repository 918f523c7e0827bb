//! What the relay holds stays within `memory_mib_max`, whatever is not read; those who take little
//! notice nothing, and once the others are gone all is as before.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use underpass_loadtest::stand::usage;
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

/// `memory_mib_max`, and a tenth of it: what the limit may be exceeded by.
const LIMIT_MIB: u64 = 96;
const LIMIT: u64 = LIMIT_MIB * 1_048_576 / 10 * 11;

/// Flows whose reader stands still: with 2 MiB each they held four times the limit.
const FLOWS: usize = 200;

/// Longest answer to a small question meanwhile, and how often one is asked.
const ANSWER: Duration = Duration::from_secs(2);
const ASKED: usize = 40;

/// Nobody reads what goes to this endpoint, or from it.
const STUCK: &str = "stuck-bytes";
/// The others' endpoint, by the same agent and session.
const ECHOES: &str = "echoes-bytes";

#[test]
fn applications_that_do_not_read_cost_others_nothing_and_the_limit_holds() {
    let _turn = turn::alone();
    let place = Place::start(pour());
    let binding = place.installation.binding(STUCK).unwrap();
    let crowd = Crowd::start(FLOWS, binding, |_| ());
    place.holds_beside(&crowd);
}

#[test]
fn a_sender_whose_endpoint_does_not_read_costs_others_nothing_and_the_limit_holds() {
    let _turn = turn::alone();
    let (silent, kept) = swallow_nothing();
    let place = Place::start(silent);
    let setup = Setup {
        probe: false,
        ..Setup::new(Io::Poll)
    };
    let sender = Sender::start(&place.installation, setup, &[STUCK]).unwrap();
    let address = sender.address(STUCK).unwrap();
    let crowd = Crowd::start(FLOWS, address, |mut socket| {
        while socket.write_all(&[0; 64 * 1024]).is_ok() {}
    });
    place.holds_beside(&crowd);
    drop(kept);
}

struct Place {
    installation: Installation,
    _agent: Agent,
    _service: Service,
    relay: u32,
    before: u64,
}

impl Place {
    fn start(stuck: SocketAddr) -> Self {
        let service = Service::start(b'a').unwrap();
        let setup = Setup {
            probe: false,
            ..Setup::new(Io::Poll)
        };
        let installation = Installation::new(setup).unwrap();
        installation.define(STUCK, &stuck.to_string()).unwrap();
        let echoes = service.address.to_string();
        installation.define(ECHOES, &echoes).unwrap();
        let file = installation.directory().join("namespace.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = format!("{text}[relay]\nmemory_mib_max = {LIMIT_MIB}\n");
        std::fs::write(&file, text).unwrap();
        installation.start_control().unwrap();
        installation.start_relay().unwrap();
        let agent = installation.start_agent(&[STUCK, ECHOES], &[]).unwrap();
        let relay = installation.relay().as_ref().unwrap().id();
        let before = usage::memory(relay).unwrap();
        Self {
            installation,
            _agent: agent,
            _service: service,
            relay,
            before,
        }
    }

    fn memory(&self) -> u64 {
        usage::memory(self.relay).unwrap()
    }

    fn is_overloaded(&self) -> bool {
        let relay = self.installation.status().unwrap().relay.unwrap();
        relay.overloaded.is_some()
    }

    /// The limit holds and others are served while the crowd is there, which the relay reports;
    /// afterwards all is as before.
    fn holds_beside(&self, crowd: &Crowd) {
        let echoes = self.installation.binding(ECHOES).unwrap();
        let mut talk = Talk::start(echoes).unwrap();
        let mut most = 0;
        let mut slowest = Duration::ZERO;
        let mut overloaded = false;
        let ended = || self.installation.status().unwrap().relay.unwrap().pressure;
        wait_for("flows to be ended for their memory", MOMENT, || {
            most = most.max(self.memory());
            let since = Instant::now();
            talk.exchange().unwrap();
            slowest = slowest.max(since.elapsed());
            overloaded |= self.is_overloaded();
            (ended().flows_ended > 0).then_some(())
        })
        .unwrap();
        for _ in 0..ASKED {
            let since = Instant::now();
            // A new flow of somebody who holds nothing is never refused.
            let mut fresh = Talk::start(echoes).unwrap();
            fresh.exchange().unwrap();
            talk.exchange().unwrap();
            slowest = slowest.max(since.elapsed());
            most = most.max(self.memory());
        }
        overloaded |= self.is_overloaded();
        assert!(overloaded, "status reports it");
        assert!(most <= LIMIT, "{} MiB", most >> 20);
        assert!(slowest < ANSWER, "{slowest:?}");
        crowd.leave();
        wait_for("all to be as before", Duration::from_secs(10), || {
            let calm = !self.is_overloaded();
            let small = self.memory() < self.before + (24 << 20);
            (calm && small).then_some(())
        })
        .unwrap_or_else(|error| {
            let now = self.memory() >> 20;
            panic!(
                "{error}: {now} MiB, {} at first, {} at most",
                self.before >> 20,
                most >> 20
            )
        });
    }
}

/// Applications that connect and do what they do until they leave or are cut.
struct Crowd {
    left: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Crowd {
    fn start(
        count: usize,
        to: SocketAddr,
        does: impl Fn(TcpStream) + Copy + Send + 'static,
    ) -> Self {
        let crowd = Self {
            left: Arc::default(),
            sockets: Arc::default(),
        };
        for _ in 0..count {
            let (left, sockets) = (Arc::clone(&crowd.left), Arc::clone(&crowd.sockets));
            let socket = TcpStream::connect(to).unwrap();
            sockets.lock().unwrap().push(socket.try_clone().unwrap());
            thread::spawn(move || {
                if !left.load(Ordering::Relaxed) {
                    does(socket);
                }
            });
        }
        crowd
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        // By a reset: what is only closed would still have to reach its endpoint.
        for socket in self.sockets.lock().unwrap().drain(..) {
            SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            // The thread that writes has the other handle, and closes it when its write fails.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Writes to each that connects until it is gone.
fn pour() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || while stream.write_all(&[0; 64 * 1024]).is_ok() {});
        }
    });
    address
}

/// Accepts and reads nothing.
fn swallow_nothing() -> (SocketAddr, Arc<Mutex<Vec<TcpStream>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let kept: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let keeps = Arc::clone(&kept);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            keeps.lock().unwrap().push(stream);
        }
    });
    (address, kept)
}
