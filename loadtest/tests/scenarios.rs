//! Scenarios against real endpoints: every call is answered and counted, and what a way does to
//! calls shows where it should.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use underpass_loadtest::io::Choice;
use underpass_loadtest::scenario::{self, Group, Outcome, Pace, Scenario, Settings, Sizes, Think};
use underpass_loadtest::{Endpoint, endpoint};

const MS: Duration = Duration::from_millis(1);

#[test]
fn every_call_is_answered_and_both_ends_count_alike() {
    for io in [Choice::Tokio, Choice::Auto] {
        let endpoint = endpoint();
        let groups = vec![
            Group {
                flows: 3,
                pace: Pace::Rate(300.0),
                request: Sizes::between(0, 300),
                response: Sizes::between(0, 5_000),
                ..Group::new("interactive")
            },
            Group {
                request: Sizes::fixed(3_000_000),
                ..Group::new("bulk-up")
            },
            Group {
                flows: 2,
                response: Sizes::fixed(300_000),
                verify: false,
                ..Group::new("bulk-down")
            },
            Group {
                flows: 2,
                churn: Some(2),
                ..Group::new("churn")
            },
        ];
        let outcome = run(&scenario(300 * MS, groups), endpoint.address(), io);
        let mut right = 0;
        for group in &outcome.groups {
            let (name, counts) = (&group.name, group.counts);
            assert_eq!(counts.bad(), 0, "{io:?} {name}: {:?}", group.faults);
            assert_eq!((counts.cut, counts.unsent), (0, 0), "{io:?} {name}");
            assert!(counts.right > 2, "{io:?} {name}: {counts:?}");
            assert_eq!(group.latency.count(), counts.right, "{io:?} {name}");
            assert_eq!(group.connect.count(), counts.connections);
            let series: u64 = group.series.iter().map(|second| second.right).sum();
            assert_eq!(series, counts.right, "{io:?} {name}");
            right += counts.connections;
        }
        assert_eq!(outcome.groups[0].counts.right, 90, "{io:?}: 300 a second");
        let churned = outcome.groups[3].counts;
        assert!(
            churned.connections >= churned.right / 2,
            "{io:?} {churned:?}"
        );
        let seen = endpoint.stop();
        assert_eq!((seen.opened, seen.right), (right, right), "{io:?} {seen:?}");
    }
}

#[test]
fn a_stall_shows_in_every_call_that_was_due_and_not_only_in_the_one_under_way() {
    let endpoint = endpoint();
    let way = stalling(endpoint.address(), 300 * MS, 200 * MS);
    let group = Group {
        pace: Pace::Rate(200.0),
        ..Group::new("open")
    };
    let outcome = run(&scenario(1000 * MS, vec![group]), way, Choice::Auto);
    let open = &outcome.groups[0];
    assert_eq!((open.counts.right, open.counts.bad()), (200, 0));
    // 40 of 200 calls were due in the stall, so a tenth of all waited half of it or more.
    let at = |quantile| open.latency.at(quantile).expect("there were calls");
    assert!(at(0.99) >= 150 * MS, "p99 {:?}", at(0.99));
    assert!(at(0.91) >= 75 * MS, "p91 {:?}", at(0.91));
    // Whoever asks only when it was answered sees one slow call.
    let service = open.service.at(0.95).expect("there were calls");
    assert!(service < 75 * MS, "service time p95 {service:?}");
}

#[test]
fn a_closed_loop_thinks_and_keeps_to_its_concurrency() {
    let endpoint = endpoint();
    let think = Think {
        from: 50 * MS,
        to: 50 * MS,
    };
    let groups = vec![
        Group {
            flows: 2,
            pace: Pace::Closed {
                concurrency: None,
                think,
            },
            ..Group::new("thinks")
        },
        Group {
            flows: 10,
            pace: Pace::Closed {
                concurrency: Some(1),
                think: Think::default(),
            },
            request: Sizes::fixed(64 << 10),
            ..Group::new("one-at-once")
        },
    ];
    let outcome = run(
        &scenario(400 * MS, groups),
        endpoint.address(),
        Choice::Auto,
    );
    let [thinks, one] = outcome.groups.as_slice() else {
        panic!("two groups");
    };
    assert!((4..=16).contains(&thinks.counts.right), "{thinks:?}");
    // Latency is service time: the wait for a turn is no part of it, so calls one after another
    // fill the time at most once.
    let busy = one.latency.mean().expect("there were calls").as_secs_f64();
    let busy = busy * one.counts.right as f64;
    assert!(busy < 0.4 + 0.1, "{busy} s under way in 0.4 s, one at once");
    assert_eq!((thinks.counts.bad(), one.counts.bad()), (0, 0));
}

#[test]
fn a_burst_is_answered_by_every_flow() {
    let endpoint = endpoint();
    let group = Group {
        flows: 200,
        pace: Pace::Burst {
            idle: 150 * MS,
            calls: 1,
        },
        ramp: 50 * MS,
        ..Group::new("burst")
    };
    let outcome = run(
        &scenario(400 * MS, vec![group]),
        endpoint.address(),
        Choice::Auto,
    );
    let burst = &outcome.groups[0];
    // At 200 and at 350 ms.
    assert_eq!((burst.counts.right, burst.counts.bad()), (400, 0));
    assert_eq!(burst.counts.connections, 200);
}

#[test]
fn a_slow_reader_reads_slowly_and_right() {
    let endpoint = endpoint();
    let group = Group {
        read_rate: Some(1_000_000),
        response: Sizes::fixed(200_000),
        ..Group::new("slow")
    };
    let outcome = run(
        &scenario(500 * MS, vec![group]),
        endpoint.address(),
        Choice::Auto,
    );
    let slow = &outcome.groups[0];
    assert_eq!(slow.counts.bad(), 0, "{:?}", slow.faults);
    assert!(
        (200_000..=650_000).contains(&slow.bytes_down),
        "{} bytes in half a second at a million a second",
        slow.bytes_down
    );
}

#[test]
fn a_target_that_refuses_is_a_failure_and_one_that_is_silent_hangs() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let outcome = run(
        &scenario(200 * MS, vec![Group::new("refused")]),
        closed,
        Choice::Auto,
    );
    let counts = outcome.groups[0].counts;
    assert!(counts.failed > 0 && counts.right == 0, "{counts:?}");

    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let scenario = Scenario {
        deadline: 100 * MS,
        ..scenario(300 * MS, vec![Group::new("silent")])
    };
    let outcome = run(&scenario, silent.local_addr().expect("bound"), Choice::Auto);
    let counts = outcome.groups[0].counts;
    assert!(counts.hung > 0 && counts.right == 0, "{counts:?}");
    assert_eq!(outcome.bad(), counts.hung);
}

#[test]
fn what_a_way_does_to_bytes_is_counted_as_what_it_is() {
    // Upwards: header 40, call 24, request 1,000. Downwards: answer 8, response 1,000, verdict 40.
    let cases = [
        (Way::Up, Harm::Flip(10)),
        (Way::Up, Harm::Flip(50)),
        (Way::Up, Harm::Flip(500)),
        (Way::Down, Harm::Flip(5)),
        (Way::Down, Harm::Flip(500)),
        (Way::Down, Harm::Flip(1_020)),
        (Way::Up, Harm::Cut(500)),
        (Way::Down, Harm::Cut(4)),
        (Way::Down, Harm::Cut(500)),
        (Way::Down, Harm::Cut(1_020)),
    ];
    for verify in [true, false] {
        for (way, harm) in cases {
            let endpoint = endpoint();
            let group = Group {
                request: Sizes::fixed(1_000),
                response: Sizes::fixed(1_000),
                churn: Some(1),
                verify,
                ..Group::new("harmed")
            };
            let target = harming(endpoint.address(), way, harm);
            let outcome = run(&scenario(40 * MS, vec![group]), target, Choice::Auto);
            let counts = outcome.groups[0].counts;
            let faults = &outcome.groups[0].faults;
            let in_payload = matches!(harm, Harm::Flip(500));
            let [corrupt, truncated] = match harm {
                Harm::Flip(_) => [verify || !in_payload, false],
                Harm::Cut(_) => [false, true],
            };
            let seen = [counts.corrupt > 0, counts.truncated > 0];
            assert_eq!(
                seen,
                [corrupt, truncated],
                "{verify} {way:?} {harm:?}: {faults:?}"
            );
            assert_eq!(
                counts.failed + counts.hung,
                0,
                "{verify} {way:?} {harm:?}: {faults:?}"
            );
        }
    }
}

#[test]
fn a_rate_that_the_way_does_not_carry_shows_as_waiting() {
    let endpoint = endpoint();
    // Stands still until long after the end.
    let way = stalling(endpoint.address(), 100 * MS, Duration::from_secs(20));
    let group = Group {
        pace: Pace::Rate(100.0),
        ..Group::new("open")
    };
    let outcome = run(&scenario(300 * MS, vec![group]), way, Choice::Auto);
    let open = &outcome.groups[0];
    let counts = open.counts;
    assert_eq!(
        (counts.right + counts.cut + counts.unsent, counts.cut),
        (30, 1),
        "{counts:?}"
    );
    assert_eq!(open.latency.count(), 30, "those without an answer count");
    let worst = open.latency.max().expect("there were calls");
    assert!(worst >= scenario::GRACE, "{worst:?}");
}

#[test]
fn a_stopped_run_tells_what_was_done_until_then() {
    let endpoint = endpoint();
    let group = Group {
        pace: Pace::Rate(100.0),
        ..Group::new("open")
    };
    let settings = Settings::default();
    let stop = settings.stop.clone();
    let scenario = scenario(Duration::from_secs(60), vec![group]);
    let outcome = scenario::run_with(&scenario, &[endpoint.address()], &settings, |progress| {
        if progress.groups[0].right >= 20 {
            stop.stop();
        }
    })
    .expect("runs");
    assert!(outcome.stopped_early && outcome.seconds < 30.0);
    let counts = outcome.groups[0].counts;
    assert!((20..3_000).contains(&counts.right), "{counts:?}");
    assert_eq!(counts.bad(), 0);
}

fn scenario(duration: Duration, groups: Vec<Group>) -> Scenario {
    Scenario {
        duration,
        ..Scenario::new("test", groups)
    }
}

fn endpoint() -> Endpoint {
    let address = "127.0.0.1:0".parse().expect("an address");
    Endpoint::start(endpoint::Settings::new(address)).expect("starts")
}

fn run(scenario: &Scenario, target: SocketAddr, io: Choice) -> Outcome {
    let settings = Settings {
        io,
        ..Settings::default()
    };
    scenario::run_with(scenario, &[target], &settings, |_| ()).expect("runs")
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Up,
    Down,
}

/// What is done to each connection, at a position of one direction.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Changes the byte there.
    Flip(usize),
    /// Ends the direction there, cleanly.
    Cut(usize),
}

/// A way that does harm to one direction of each connection. Its threads end with the connections,
/// the listener's with the test.
fn harming(endpoint: SocketAddr, way: Way, harm: Harm) -> SocketAddr {
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
                let harm = (here == way).then_some(harm);
                std::thread::spawn(move || pump_with(from, to, harm));
            }
        }
    });
    address
}

fn pump_with(mut from: TcpStream, mut to: TcpStream, harm: Option<Harm>) {
    let mut buffer = [0; 4096];
    let mut position = 0;
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let chunk = &mut buffer[..len];
        match harm {
            Some(Harm::Flip(at)) if (position..position + len).contains(&at) => {
                chunk[at - position] ^= 0x10;
            }
            Some(Harm::Cut(at)) if (position..position + len).contains(&at) => {
                let _ = to.write_all(&chunk[..at - position]);
                let _ = to.shutdown(std::net::Shutdown::Write);
                // What still comes is swallowed, so that its sender notices nothing.
                while from.read(&mut buffer).is_ok_and(|len| len > 0) {}
                return;
            }
            _ => {}
        }
        position += len;
        if to.write_all(chunk).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// A way that, this long after its first connection, stands still once for a time.
fn stalling(endpoint: SocketAddr, after: Duration, time: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (client, _) = listener.accept().expect("accepts");
        let server = TcpStream::connect(endpoint).expect("the endpoint listens");
        client.set_nodelay(true).expect("is set");
        server.set_nodelay(true).expect("is set");
        let still = Instant::now() + after;
        let back = (
            server.try_clone().expect("clones"),
            client.try_clone().expect("clones"),
        );
        std::thread::spawn(move || pump(back.0, back.1, None));
        pump(client, server, Some((still, time)));
    });
    address
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut still: Option<(Instant, Duration)>) {
    let mut buffer = [0; 4096];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 {
            let _ = to.shutdown(std::net::Shutdown::Write);
            return;
        }
        if let Some((_, time)) = still.take_if(|(at, _)| Instant::now() >= *at) {
            std::thread::sleep(time); // The fault itself, no waiting for a condition.
        }
        if to.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}
