//! Rows 6 to 10: a bad network between agent and relay.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::faults::Length;
use crate::faults::apart::Apart;
use crate::faults::local::LocalFlows;
use crate::faults::scene::{Client, DEADLINE, Probes, Shape};
use crate::faults::trial::{Bar, Trial};
use crate::impair::{Link, Proxy};
use crate::run::Mode;
use crate::stand::deadline::{MOMENT, pause};

/// Largest datagram of an ordinary path: 1,500 less the headers of IP and UDP.
const ETHERNET: usize = 1_472;

/// What is promised after a black hole that ended the session.
const BACK: Duration = Duration::from_secs(2);

/// What a path MTU that shrinks may cost, at round trips up to 50 ms.
const STALL: f64 = 1_000.0;

/// Row 6: loss.
pub(in crate::faults) fn loss(trial: &mut Trial<'_>) -> Result<()> {
    let mut apart = Apart::open(trial, 1)?;
    let cells = cells(trial);
    let time = Duration::from_millis(trial.pick(1_500, 4_000, 20_000));
    let (mut lost, mut errors) = (0, 0);
    for (rtt_ms, share, burst) in cells {
        let link = Link {
            delay: Duration::from_micros(rtt_ms * 500),
            loss: share,
            burst,
            rate: Some(100_000_000),
            queue: 512 * 1024,
            mtu: Some(ETHERNET),
            ..Link::CLEAN
        };
        let how = if burst > 1.0 {
            "in runs of 5"
        } else {
            "single"
        };
        let what = format!("RTT {rtt_ms} ms, {} % lost, {how}", share * 100.0);
        trial.fault(&*what);
        apart.proxy.set(link);
        let flows = LocalFlows::start(trial, apart.scene.binding, DOWNLOAD);
        pause(time / 4);
        let (before, began) = (flows.bytes_down(), Instant::now());
        pause(time);
        let bits = (flows.bytes_down() - before) as f64 * 8.0;
        let rate = bits / began.elapsed().as_secs_f64();
        // What is still under way comes over a good network, or a row of 20 % would end tomorrow.
        apart.proxy.set(Link::CLEAN);
        errors += flows.stop(trial)?.tally.failed;
        lost += apart.sessions_lost();
        trial.figure(format!("goodput: {what}"), rate / 1e6, "Mbit/s", None);
    }
    trial.count("sessions lost", lost, Some(Bar::Exactly(0.0)));
    trial.count("flows cut", errors, Some(Bar::Exactly(0.0)));
    counts(trial, &apart.proxy);
    apart.scene.check_alive()
}

/// Round-trip time in milliseconds, loss, mean run.
fn cells(trial: &Trial<'_>) -> Vec<(u64, f64, f64)> {
    let losses = [0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2];
    let all = |rtts: &[u64], bursts: &[f64]| {
        let mut cells = Vec::new();
        for &rtt in rtts {
            for loss in losses {
                let bursts = if loss > 0.0 { bursts } else { &[1.0] };
                cells.extend(bursts.iter().map(|&burst| (rtt, loss, burst)));
            }
        }
        cells
    };
    match trial.settings.length {
        Length::Ci => vec![(50, 0.0, 1.0), (50, 0.02, 5.0), (50, 0.2, 1.0)],
        Length::TenMinutes => {
            let mut cells = all(&[50], &[1.0]);
            cells.extend([
                (50, 0.02, 5.0),
                (50, 0.1, 5.0),
                (1, 0.01, 1.0),
                (300, 0.01, 1.0),
                (300, 0.1, 5.0),
            ]);
            cells
        }
        Length::Nightly => all(&[1, 20, 50, 100, 300], &[1.0, 5.0]),
    }
}

/// Two flows that only receive: what has come is what the network has carried.
const DOWNLOAD: Shape = Shape {
    mode: Mode::Download,
    flows: 2,
    bytes: None,
    message: 1,
    deadline: DEADLINE,
    once: false,
};

/// Row 7: out of order, doubled, changed.
pub(in crate::faults) fn disorder(trial: &mut Trial<'_>) -> Result<()> {
    let mut apart = Apart::open(trial, 1)?;
    let client = Client::start(trial, apart.scene.binding, Shape::COMING_AND_GOING)?;
    let links = [
        (
            "30 % out of order",
            Link {
                reorder: 0.3,
                ..NEAR
            },
        ),
        (
            "10 % doubled",
            Link {
                duplicate: 0.1,
                ..NEAR
            },
        ),
        ("1 % with a changed bit", Link { flip: 0.01, ..NEAR }),
        (
            "all of these",
            Link {
                reorder: 0.3,
                duplicate: 0.1,
                flip: 0.01,
                ..NEAR
            },
        ),
    ];
    for (what, link) in links {
        trial.fault(what);
        apart.proxy.set(link);
        pause(Duration::from_millis(trial.pick(2_000, 6_000, 60_000)));
    }
    let seen = apart.proxy.seen();
    let flipped = seen.up.flipped + seen.down.flipped;
    trial.count(
        "datagrams with a changed bit",
        flipped,
        Some(Bar::AtLeast(10.0)),
    );
    apart.proxy.set(Link::CLEAN);
    let report = client.stop(trial)?;
    trial.count("flows cut", report.flows.error, Some(Bar::Exactly(0.0)));
    trial.count(
        "sessions lost",
        apart.sessions_lost(),
        Some(Bar::Exactly(0.0)),
    );
    counts(trial, &apart.proxy);
    apart.scene.check_alive()
}

/// A path of 10 ms that carries datagrams of an ordinary size.
const NEAR: Link = Link {
    delay: Duration::from_millis(5),
    mtu: Some(ETHERNET),
    ..Link::CLEAN
};

/// Row 8: a NAT that forgets.
pub(in crate::faults) fn rebinding(trial: &mut Trial<'_>) -> Result<()> {
    let mut apart = Apart::open(trial, 1)?;
    apart.proxy.set(NEAR);
    let client = Client::start(trial, apart.scene.binding, Shape::COMING_AND_GOING)?;
    let mut probes = Probes::of(trial, apart.scene.binding);
    let (times, each) = trial.pick((12, 1_000), (25, 1_000), (100, 5_000));
    let mut usable = Vec::new();
    for round in 0..times {
        pause(Duration::from_millis(each));
        trial.fault(format!("new address, round {round}"));
        apart.proxy.rebind();
        usable.push(probes.until_usable(Instant::now(), MOMENT)?);
    }
    trial.recovered("new address: a flow through it", &usable, None);
    let report = client.stop(trial)?;
    probes.end(trial)?;
    trial.count(
        "new addresses",
        apart.proxy.seen().rebinds,
        Some(Bar::AtLeast(f64::from(times))),
    );
    trial.count("flows cut", report.flows.error, Some(Bar::Exactly(0.0)));
    trial.count(
        "sessions lost",
        apart.sessions_lost(),
        Some(Bar::Exactly(0.0)),
    );
    if let Some(silence) = report.silence {
        trial.figure(
            "longest silence of a flow",
            silence.max_us as f64 / 1e3,
            "ms",
            None,
        );
    }
    apart.scene.check_alive()
}

/// Row 9: nothing gets through for a while.
pub(in crate::faults) fn black_hole(trial: &mut Trial<'_>) -> Result<()> {
    let mut apart = Apart::open(trial, 1)?;
    apart.proxy.set(NEAR);
    let mut back = Vec::new();
    let holes: &[u64] = trial.pick(&[1, 5], &[1, 5, 10, 20], &[1, 5, 10, 20, 60]);
    for &seconds in holes {
        let client = Client::start(trial, apart.scene.binding, Shape::COMING_AND_GOING)?;
        let mut probes = Probes::of(trial, apart.scene.binding);
        probes.until_usable(Instant::now(), MOMENT)?;
        trial.fault(format!("black hole of {seconds} s"));
        apart.proxy.black_hole(true);
        pause(Duration::from_secs(seconds));
        apart.proxy.black_hole(false);
        let usable = probes.until_usable(Instant::now(), MOMENT)?;
        let cut = client.stop(trial)?.flows.error;
        probes.end(trial)?;
        let lost = apart.sessions_lost();
        let survives = (seconds <= 5).then_some(Bar::Exactly(0.0));
        trial.count(format!("{seconds} s: flows cut"), cut, survives);
        trial.count(format!("{seconds} s: sessions lost"), lost, survives);
        if seconds >= 20 {
            back.push(usable);
        } else {
            trial.recovered(
                &format!("black hole of {seconds} s healed: usable"),
                &[usable],
                None,
            );
        }
    }
    if !back.is_empty() {
        trial.recovered(
            "black hole of 20 s or more healed: usable",
            &back,
            Some(BACK),
        );
    }
    apart.scene.check_alive()
}

/// Row 10: the path carries smaller datagrams from one moment to the next, or larger ones.
pub(in crate::faults) fn mtu(trial: &mut Trial<'_>) -> Result<()> {
    let mut apart = Apart::open(trial, 1)?;
    let messages = Shape {
        bytes: None,
        ..Shape::COMING_AND_GOING
    };
    let bulk = Shape {
        mode: Mode::Both,
        flows: 2,
        ..messages
    };
    for (rtt_ms, name, shape) in [
        (5, "messages", messages),
        (50, "messages", messages),
        (50, "bulk both ways", bulk),
    ] {
        narrow_and_widen(trial, &mut apart, rtt_ms, name, shape)?;
    }
    trial.count(
        "sessions lost",
        apart.sessions_lost(),
        Some(Bar::Exactly(0.0)),
    );
    let seen = apart.proxy.seen();
    trial.count(
        "datagrams too large for the path",
        seen.up.too_large + seen.down.too_large,
        Some(Bar::AtLeast(1.0)),
    );
    counts(trial, &apart.proxy);
    apart.scene.check_alive()
}

/// Changes the largest datagram again and again, while flows of this shape last.
fn narrow_and_widen(
    trial: &mut Trial<'_>,
    apart: &mut Apart,
    rtt_ms: u64,
    name: &str,
    shape: Shape,
) -> Result<()> {
    let time = Duration::from_millis(trial.pick(1_500, 2_000, 5_000));
    let link = Link {
        delay: Duration::from_micros(rtt_ms * 500),
        rate: Some(100_000_000),
        mtu: Some(ETHERNET),
        ..Link::CLEAN
    };
    apart.proxy.set(link);
    let client = Client::start(trial, apart.scene.binding, shape)?;
    pause(time);
    let mut size = 1_200; // The first change is one that every full datagram notices.
    for _ in 0..trial.pick(4, 8, 50) {
        trial.fault(format!(
            "{name}, RTT {rtt_ms} ms, largest datagram {size} bytes"
        ));
        apart.proxy.set(Link {
            mtu: Some(size),
            ..link
        });
        pause(time);
        let sizes = [1_200, 1_252, 1_320, 1_400, 1_452, ETHERNET];
        size = sizes[usize::try_from(trial.chance(sizes.len() as u64))?];
    }
    let report = client.stop(trial)?;
    let silence = report
        .silence
        .map_or(f64::NAN, |silence| silence.max_us as f64 / 1e3);
    trial.figure(
        format!("{name}, RTT {rtt_ms} ms: longest silence of a flow"),
        silence,
        "ms",
        Some(Bar::Under(STALL)),
    );
    trial.count(
        format!("{name}, RTT {rtt_ms} ms: flows cut"),
        report.flows.error,
        Some(Bar::Exactly(0.0)),
    );
    Ok(())
}

/// What the network did.
fn counts(trial: &mut Trial<'_>, proxy: &Proxy) {
    let seen = proxy.seen();
    let both = |of: fn(&crate::impair::Counts) -> u64| of(&seen.up) + of(&seen.down);
    for (name, count) in [
        ("datagrams", both(|counts| counts.received)),
        ("lost", both(|counts| counts.lost)),
        ("over the rate", both(|counts| counts.queue_full)),
        ("too large", both(|counts| counts.too_large)),
        ("out of order", both(|counts| counts.reordered)),
        ("doubled", both(|counts| counts.duplicated)),
    ] {
        if count > 0 {
            trial.count(format!("network: {name}"), count, None);
        }
    }
}
