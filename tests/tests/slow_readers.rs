//! Applications that do not read: what they pin must not be what the others of the same session
//! live on.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

/// More than the 128 that once pinned all of a session's window.
const READERS: usize = 160;

/// Their endpoint pours without end.
const POURS: &str = "pours-bytes";
/// The others' endpoint, by the same agent and session.
const ECHOES: &str = "echoes-bytes";

#[test]
fn readers_that_stand_still_do_not_stop_others() {
    let _turn = turn::alone();
    let service = Service::start(b'a').unwrap();
    let definitions = [
        (POURS, pour().to_string()),
        (ECHOES, service.address.to_string()),
    ];
    let setup = Setup {
        probe: false,
        ..Setup::new(Io::Poll)
    };
    let definitions = definitions.each_ref().map(|(name, at)| (*name, &**at));
    let installation = Installation::start(setup, &definitions).unwrap();
    let _agent = installation.start_agent(&[POURS, ECHOES], &[]).unwrap();
    let pours = installation.binding(POURS).unwrap();
    let still: Vec<TcpStream> = (0..READERS)
        .map(|_| TcpStream::connect(pours).unwrap())
        .collect();
    let mut seen = (0, Instant::now());
    wait_for("the readers' buffers to be full", MOMENT, || {
        let report = installation.hyco(POURS).ok().flatten()?;
        if report.bytes_to_application != seen.0 {
            seen = (report.bytes_to_application, Instant::now());
        }
        let all = report.flows_live >= still.len() as u64 && seen.0 > 0;
        (all && seen.1.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .unwrap();
    let asked = Instant::now();
    let mut talk = Talk::start(installation.binding(ECHOES).unwrap()).unwrap();
    talk.exchange().unwrap();
    let took = asked.elapsed();
    assert!(
        took < Duration::from_secs(2),
        "beside readers that stand still: {took:?}"
    );
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
