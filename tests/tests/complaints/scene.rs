//! What every complaint is tried on: one hybrid connection with one agent, and one whose endpoint
//! is not there.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_proto::snapshot::{HealthState, HycoReport, SessionReport};
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, underpass};
use underpass_tests::process::{Signal, free_tcp_address, run, run_ok};
use underpass_tests::promise::assert_within;
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

pub(crate) const NAME: &str = "payroll-sql";

/// From the start of a relay or an agent until a flow works, with the margin of two shared cores.
pub(crate) const BACK: Duration = Duration::from_millis(2_000 + 1_000);

/// Another hybrid connection, whose endpoint is not there.
pub(crate) const AWAY: &str = "nobody-there";

/// One hybrid connection with one agent, and one whose endpoint is not there.
pub(crate) struct Scene {
    pub(crate) installation: Installation,
    pub(crate) agent: Agent,
    pub(crate) binding: SocketAddr,
    pub(crate) away: SocketAddr,
    _service: Service,
    _turn: turn::Turn,
}

impl Scene {
    pub(crate) fn open(io: Io) -> Self {
        let turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let nobody = free_tcp_address().to_string();
        let endpoint = service.address.to_string();
        let definitions = [(NAME, &*endpoint), (AWAY, &*nobody)];
        let installation = Installation::start(setup(io), &definitions).unwrap();
        let agent = installation.start_agent(&[NAME, AWAY], &[]).unwrap();
        Self {
            binding: installation.binding(NAME).unwrap(),
            away: installation.binding(AWAY).unwrap(),
            installation,
            agent,
            _service: service,
            _turn: turn,
        }
    }

    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&HycoReport) -> bool) -> HycoReport {
        self.installation.wait_for_hyco(NAME, what, is_so).unwrap()
    }

    pub(crate) fn signal_agent(&self, signal: Signal) {
        let mut process = self.agent.process();
        process.as_mut().unwrap().signal(signal).unwrap();
    }

    pub(crate) fn kill_relay(&self) {
        self.installation.relay().as_mut().unwrap().kill().unwrap();
    }

    /// Starts the relay again, and a flow works in time.
    pub(crate) fn assert_back_in_time(&self) {
        self.installation.start_relay().unwrap();
        wait_for("the relay to listen", MOMENT, || {
            TcpStream::connect(self.binding).ok()
        })
        .unwrap();
        let listens = Instant::now();
        wait_for("a flow", MOMENT, || Talk::start(self.binding).ok()).unwrap();
        assert_within(listens, BACK);
    }

    pub(crate) fn sessions(&self) -> Vec<SessionReport> {
        let report = self.installation.status().unwrap().relay;
        report.map(|report| report.sessions).unwrap_or_default()
    }

    pub(crate) fn flows_failed(&self) -> u64 {
        self.installation.hyco(NAME).unwrap().unwrap().flows_failed
    }

    /// Waits until the status says so, and with a reason that contains `why`. Answers the reason.
    pub(crate) fn wait_for_health(&self, state: HealthState, why: &str) -> Option<String> {
        let fits = |hyco: &HycoReport| {
            hyco.health.state == state && hyco.health.why.as_deref().unwrap_or("").contains(why)
        };
        self.wait_until(&format!("{state:?} with {why:?}"), fits)
            .health
            .why
    }
}

pub(crate) fn setup(io: Io) -> Setup {
    Setup {
        workers: 2,
        ..Setup::new(io)
    }
}

/// `underpass status NAME`: its exit code and all that it says.
pub(crate) fn status(scene: &Scene, name: &str) -> (Option<i32>, String) {
    let mut command = underpass().unwrap();
    command
        .args(["status", name, "--dir"])
        .arg(scene.installation.directory());
    let ran = run(&mut command, MOMENT).unwrap();
    (ran.status.code(), ran.stdout + &ran.stderr)
}

pub(crate) fn allow(agent: &Agent, endpoint: SocketAddr) {
    let mut command = underpass().unwrap();
    command
        .args(["agent", "allow", &endpoint.to_string(), "--config"])
        .arg(agent.config());
    run_ok(&mut command, MOMENT).unwrap();
}
