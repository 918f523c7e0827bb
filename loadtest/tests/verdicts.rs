//! The check can fail: behind a proxy that does one kind of harm, every flow is counted as exactly
//! that kind, by every io and mode.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use underpass_loadtest::io::Choice;
use underpass_loadtest::run::Tally;
use underpass_loadtest::{Endpoint, Mode, Plan, endpoint, run};

const BYTES: u64 = 300_000;

/// Flows per run: enough that some run side by side.
const FLOWS: u64 = 4;

const MODES: [Mode; 5] = [
    Mode::Echo,
    Mode::Upload,
    Mode::Download,
    Mode::Both,
    Mode::PingPong,
];

/// What a proxy does to the bytes of one direction.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Harm {
    None,
    /// Changes the byte at this position.
    Flip(u64),
    /// Leaves out the ten bytes from this position on.
    Skip(u64),
    /// Sends the ten bytes before this position twice.
    Repeat(u64),
    /// Ends the direction cleanly at this position.
    Cut(u64),
    /// Forwards nothing from this position on.
    Stop(u64),
    /// Resets both sides at this position.
    Reset(u64),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Up,
    Down,
}

#[test]
fn an_honest_proxy_gives_right_flows() {
    for (io, mode) in cases() {
        let tally = run_behind(io, mode, Way::Up, Harm::None);
        assert_eq!(
            counts(&tally),
            [FLOWS, 0, 0, 0, 0],
            "{io:?} {mode:?}: {:?}",
            tally.faults
        );
    }
}

#[test]
fn a_changed_missing_or_repeated_byte_is_corrupt() {
    for (io, mode) in cases() {
        for (way, at) in bulk_ways(mode) {
            for harm in [Harm::Flip(at), Harm::Skip(at), Harm::Repeat(at)] {
                let tally = run_behind(io, mode, way, harm);
                assert_eq!(
                    counts(&tally),
                    [0, 0, FLOWS, 0, 0],
                    "{io:?} {mode:?} {way:?} {harm:?}: {:?}",
                    tally.faults
                );
            }
        }
    }
}

#[test]
fn a_changed_byte_in_header_or_verdict_is_corrupt() {
    for (io, mode) in cases() {
        let last = if matches!(mode, Mode::Upload) {
            5
        } else {
            BYTES + 5
        };
        for (way, at) in [(Way::Up, 30), (Way::Down, last)] {
            let tally = run_behind(io, mode, way, Harm::Flip(at));
            assert_eq!(
                counts(&tally),
                [0, 0, FLOWS, 0, 0],
                "{io:?} {mode:?} {way:?}: {:?}",
                tally.faults
            );
        }
    }
}

#[test]
fn a_clean_end_too_early_is_truncated() {
    for (io, mode) in cases() {
        for (way, at) in bulk_ways(mode) {
            let tally = run_behind(io, mode, way, Harm::Cut(at));
            assert_eq!(
                counts(&tally),
                [0, 0, 0, FLOWS, 0],
                "{io:?} {mode:?} {way:?}: {:?}",
                tally.faults
            );
        }
        let tally = run_behind(io, mode, Way::Down, Harm::Cut(0));
        assert_eq!(
            counts(&tally),
            [0, 0, 0, FLOWS, 0],
            "{io:?} {mode:?} at once: {:?}",
            tally.faults
        );
    }
}

#[test]
fn silence_is_hung() {
    for (io, mode) in cases() {
        for (way, at) in bulk_ways(mode) {
            let tally = run_behind(io, mode, way, Harm::Stop(at));
            assert_eq!(
                counts(&tally),
                [0, 0, 0, 0, FLOWS],
                "{io:?} {mode:?} {way:?}: {:?}",
                tally.faults
            );
        }
    }
}

#[test]
fn a_reset_is_an_explicit_error() {
    for (io, mode) in cases() {
        for (way, at) in bulk_ways(mode) {
            let tally = run_behind(io, mode, way, Harm::Reset(at));
            assert_eq!(
                counts(&tally),
                [0, FLOWS, 0, 0, 0],
                "{io:?} {mode:?} {way:?}: {:?}",
                tally.faults
            );
        }
    }
}

#[test]
fn a_refused_connect_is_an_explicit_error() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    for io in [Choice::Tokio, Choice::Auto] {
        let plan = Plan {
            flows: 2,
            io,
            ..Plan::new(closed, Mode::Echo)
        };
        let tally = run::run(&plan, |_| ()).expect("runs").tally;
        assert_eq!(counts(&tally), [0, 2, 0, 0, 0]);
    }
}

#[test]
fn flows_without_a_length_end_with_the_duration_and_are_checked() {
    for (io, mode) in cases() {
        let endpoint = endpoint(io);
        let plan = Plan {
            flows: 2,
            bytes: None,
            duration: Some(Duration::from_millis(200)),
            io,
            ..Plan::new(endpoint.address(), mode)
        };
        let outcome = run::run(&plan, |_| ()).expect("runs");
        assert_eq!(
            counts(&outcome.tally),
            [2, 0, 0, 0, 0],
            "{io:?} {mode:?}: {:?}",
            outcome.tally.faults
        );
        assert!(
            outcome.elapsed >= Duration::from_millis(200),
            "{io:?} {mode:?} took {:?}",
            outcome.elapsed
        );
        assert!(
            outcome.bytes_up + outcome.bytes_down > 1_000,
            "{io:?} {mode:?} moved bytes"
        );
        assert_eq!(endpoint.stop().right, 2);
    }
}

#[test]
fn both_ends_count_alike() {
    let endpoint = endpoint(Choice::Auto);
    let plan = Plan {
        flows: 3,
        total: Some(9),
        bytes: Some(10_000),
        threads: 2,
        ..Plan::new(endpoint.address(), Mode::Both)
    };
    let outcome = run::run(&plan, |_| ()).expect("runs");
    assert_eq!(counts(&outcome.tally), [9, 0, 0, 0, 0]);
    let seen = endpoint.stop();
    assert_eq!((seen.opened, seen.right), (9, 9));
    assert_eq!((seen.bytes_received, seen.bytes_sent), (90_000, 90_000));
    assert_eq!(outcome.bytes_up, 90_000);
}

#[test]
fn an_endpoint_serves_only_what_it_is_for() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let settings = endpoint::Settings {
        serves: endpoint::Serves::Sink,
        ..endpoint::Settings::new(address)
    };
    let sink = Endpoint::start(settings).expect("starts");
    for (mode, expected) in [
        (Mode::Upload, [1, 0, 0, 0, 0]),
        (Mode::Echo, [0, 1, 0, 0, 0]),
        (Mode::Download, [0, 1, 0, 0, 0]),
        (Mode::PingPong, [0, 1, 0, 0, 0]),
    ] {
        let plan = Plan {
            bytes: Some(1_000),
            ..Plan::new(sink.address(), mode)
        };
        assert_eq!(
            counts(&run::run(&plan, |_| ()).expect("runs").tally),
            expected,
            "{mode:?}"
        );
    }
    assert_eq!(sink.stop().not_served, 3);
}

#[test]
fn a_stopped_endpoint_resets_live_flows() {
    for io in [Choice::Tokio, Choice::Auto] {
        let mut endpoint = Some(endpoint(io));
        let address = endpoint
            .as_ref()
            .map(Endpoint::address)
            .expect("just started");
        let plan = Plan {
            bytes: None,
            duration: Some(Duration::from_secs(20)),
            io,
            ..Plan::new(address, Mode::Both)
        };
        let outcome = run::run(&plan, |counters| {
            if counters.bytes_down() > 1_000_000 {
                drop(endpoint.take());
            }
        });
        let outcome = outcome.expect("runs");
        assert_eq!(
            counts(&outcome.tally),
            [0, 1, 0, 0, 0],
            "{io:?}: {:?}",
            outcome.tally.faults
        );
        assert!(outcome.elapsed < Duration::from_secs(20));
    }
}

fn cases() -> impl Iterator<Item = (Choice, Mode)> {
    // Where io_uring is forbidden, `Auto` is tokio once more.
    [Choice::Tokio, Choice::Auto]
        .into_iter()
        .flat_map(|io| MODES.map(|mode| (io, mode)))
}

/// The ways that carry pattern bytes, with a position among them.
fn bulk_ways(mode: Mode) -> Vec<(Way, u64)> {
    match mode {
        Mode::Upload => vec![(Way::Up, 200_000)],
        Mode::Download => vec![(Way::Down, 200_000)],
        Mode::Echo | Mode::Both | Mode::PingPong => vec![(Way::Up, 200_000), (Way::Down, 200_000)],
    }
}

fn counts(tally: &Tally) -> [u64; 5] {
    [
        tally.right,
        tally.failed,
        tally.corrupt,
        tally.truncated,
        tally.hung,
    ]
}

fn endpoint(io: Choice) -> Endpoint {
    let address = "127.0.0.1:0".parse().expect("an address");
    Endpoint::start(endpoint::Settings {
        io,
        ..endpoint::Settings::new(address)
    })
    .expect("starts")
}

fn run_behind(io: Choice, mode: Mode, way: Way, harm: Harm) -> Tally {
    let endpoint = endpoint(io);
    let stall = match harm {
        Harm::Stop(_) => Duration::from_millis(400),
        _ => Duration::from_secs(30),
    };
    let plan = Plan {
        flows: FLOWS,
        bytes: Some(BYTES),
        message: 1_000,
        stall,
        io,
        ..Plan::new(proxy(endpoint.address(), way, harm), mode)
    };
    run::run(&plan, |_| ()).expect("runs").tally
}

/// Forwards to `endpoint` and does harm to one direction of each flow. Its threads end with the
/// flows, the listener's with the test.
fn proxy(endpoint: SocketAddr, way: Way, harm: Harm) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("accepts");
            let server = TcpStream::connect(endpoint).expect("the endpoint listens");
            for (from, to, here) in [(&client, &server, Way::Up), (&server, &client, Way::Down)] {
                let (from, to) = (
                    from.try_clone().expect("clones"),
                    to.try_clone().expect("clones"),
                );
                let harm = if here == way { harm } else { Harm::None };
                std::thread::spawn(move || pump(&from, &to, harm));
            }
        }
    });
    address
}

/// One direction, byte positions counted from the start of the stream. An error ends both
/// directions with a reset.
fn pump(from: &TcpStream, to: &TcpStream, harm: Harm) {
    let reset = || {
        for socket in [from, to] {
            // Fails where the other direction did it already.
            let _ = rustix::net::connect_unspec(socket);
        }
    };
    let mut position = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = match { from }.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(len) => len,
            Err(_) => return reset(),
        };
        let mut chunk = buffer[..len].to_vec();
        let inside = |at: u64| {
            usize::try_from(at.wrapping_sub(position))
                .ok()
                .filter(|&at| at < len)
        };
        let mut ends = false;
        match harm {
            Harm::Flip(at) => {
                if let Some(at) = inside(at) {
                    chunk[at] ^= 0x20;
                }
            }
            Harm::Skip(at) => {
                chunk = (position..)
                    .zip(chunk)
                    .filter(|(p, _)| !(at..at + 10).contains(p))
                    .map(|(_, b)| b)
                    .collect();
            }
            Harm::Repeat(at) => {
                if let Some(at) = inside(at) {
                    let again = chunk[..at]
                        .iter()
                        .copied()
                        .rev()
                        .take(10)
                        .rev()
                        .collect::<Vec<_>>();
                    let again = if again.is_empty() {
                        vec![chunk[0]; 10]
                    } else {
                        again
                    };
                    chunk.splice(at..at, again);
                }
            }
            Harm::Cut(at) | Harm::Stop(at) | Harm::Reset(at) => {
                if let Some(at) = inside(at) {
                    chunk.truncate(at);
                    ends = true;
                }
            }
            Harm::None => {}
        }
        position += len as u64;
        if { to }.write_all(&chunk).is_err() {
            return reset();
        }
        if ends {
            match harm {
                Harm::Reset(_) => return reset(),
                Harm::Cut(_) => {
                    let _ = to.shutdown(Shutdown::Write);
                }
                // Else the last handle would end the direction when all others are through.
                _ => std::mem::forget(to.try_clone()),
            }
            // The other direction goes on; what still comes is swallowed, so that its sender
            // notices nothing.
            while { from }.read(&mut buffer).is_ok_and(|len| len > 0) {}
            return;
        }
    }
}
