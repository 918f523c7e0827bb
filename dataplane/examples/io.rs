//! Compares the backends of the io seam on one machine: what a worker moves, and what processor
//! time it takes for it.
//!
//! `cargo run --release -p underpass-dataplane --example io -- [rounds] [row …]`. A round runs
//! every row on every backend in turn, so that what else the machine does hits both; medians are
//! printed. The other side of each row is the same for both backends. Processor time and system
//! calls are the worker's own.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement ends where something fails"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use underpass_dataplane::io::{Close, Completion, Io, Poll, SocketId, Transmit, socket, udp};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long one row runs.
const TIME: Duration = Duration::from_millis(400);

/// A small request, bytes.
const REQUEST: usize = 100;

const ROWS: [(&str, Row); 9] = [
    (
        "echo, 1 connection, 100 B",
        Row::Echo {
            connections: 1,
            size: REQUEST,
        },
    ),
    (
        "echo, 64 connections, 100 B",
        Row::Echo {
            connections: 64,
            size: REQUEST,
        },
    ),
    (
        "echo, 8 connections, 64 KiB",
        Row::Echo {
            connections: 8,
            size: 65536,
        },
    ),
    ("sink, 1 connection", Row::Sink { connections: 1 }),
    ("sink, 8 connections", Row::Sink { connections: 8 }),
    ("source, 1 connection", Row::Source),
    ("a connection each request, 16 at a time", Row::Connections),
    ("datagrams, 1452 B", Row::Datagrams { size: 1452 }),
    ("datagrams, 65507 B", Row::Datagrams { size: 65507 }),
];

#[derive(Clone, Copy)]
enum Row {
    /// Requests come back.
    Echo { connections: usize, size: usize },
    /// Bytes arrive and are dropped.
    Sink { connections: usize },
    /// Bytes are sent as fast as they are taken.
    Source,
    /// Open, a request there and back, close.
    Connections,
    /// One worker sends, another receives.
    Datagrams { size: usize },
}

/// What a worker did.
struct Measured {
    /// Requests, or bytes.
    done: u64,
    elapsed: Duration,
    processor: Duration,
    system_calls: u64,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(5, |rounds| rounds.parse().unwrap());
    let wanted: Vec<String> = arguments.collect();
    let mut figures: BTreeMap<(usize, &str), Vec<Measured>> = BTreeMap::new();
    for _ in 0..rounds {
        for (number, (name, row)) in ROWS.iter().enumerate() {
            if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
                continue;
            }
            let poll = run(*row, Poll::new);
            figures.entry((number, "poll")).or_default().push(poll);
            #[cfg(target_os = "linux")]
            {
                let ring = run(*row, underpass_dataplane::io::Ring::new);
                figures.entry((number, "ring")).or_default().push(ring);
            }
        }
    }
    println!(
        "{:42} {:5} {:>14} {:>16} {:>14}",
        "row", "", "rate", "cpu", "system calls"
    );
    for ((number, backend), runs) in figures {
        let (name, row) = ROWS[number];
        let rate = median(
            runs.iter()
                .map(|run| run.done as f64 / run.elapsed.as_secs_f64()),
        );
        let cpu = median(
            runs.iter()
                .map(|run| run.processor.as_secs_f64() / run.done as f64),
        );
        let calls = median(
            runs.iter()
                .map(|run| run.system_calls as f64 / run.done as f64),
        );
        if row.counts_bytes() {
            println!(
                "{name:42} {backend:5} {:>9.2} Gb/s {:>11.3} s/GB {:>11.0} /GB",
                rate * 8e-9,
                cpu * 1e9,
                calls * 1e9
            );
        } else {
            println!(
                "{name:42} {backend:5} {rate:>12.0}/s {:>13.2} us {calls:>14.2}",
                cpu * 1e6
            );
        }
    }
}

impl Row {
    fn counts_bytes(self) -> bool {
        self.unit() == 1
    }

    /// Bytes of what is counted.
    fn unit(self) -> u64 {
        match self {
            Self::Echo { size, .. } => size as u64,
            Self::Connections => REQUEST as u64,
            Self::Sink { .. } | Self::Source | Self::Datagrams { .. } => 1,
        }
    }
}

fn run<I: Io + 'static>(row: Row, make: fn(udp::Udp) -> std::io::Result<I>) -> Measured {
    let (tell, address) = std::sync::mpsc::channel();
    let worker = thread::spawn(move || {
        let socket = udp::bind(local(), false).unwrap();
        let udp_address = socket.address();
        let mut io = make(socket).unwrap();
        let listener = socket::listener(local(), false).unwrap();
        let tcp_address = listener.local_addr().unwrap();
        io.listen(listener).unwrap();
        tell.send((tcp_address, udp_address)).unwrap();
        serve(&mut io, row)
    });
    let (tcp, udp) = address.recv().unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let peers: Vec<_> = peers(row, tcp, udp, make, &end);
    let measured = worker.join().unwrap();
    end.store(true, Ordering::Relaxed);
    for peer in peers {
        peer.join().unwrap();
    }
    measured
}

/// The worker under measurement.
fn serve<I: Io>(io: &mut I, row: Row) -> Measured {
    let (began, processor, before) = (Instant::now(), processor_time(), io.counters().system_calls);
    let end = began + TIME;
    let block = Bytes::from(vec![7; 64 * 1024]);
    let mut done = 0;
    let mut completions = Vec::new();
    while Instant::now() < end {
        io.wait(Some(end), &mut completions).unwrap();
        for completion in completions.drain(..) {
            match completion {
                Completion::Accepted {
                    socket: Ok((socket, _)),
                    ..
                } => match row {
                    Row::Source => io.send(socket, vec![block.clone(); 4]),
                    _ => io.receive(socket),
                },
                Completion::Received { socket, result } => match result {
                    Ok(chunk) if !chunk.is_empty() => match row {
                        Row::Sink { .. } => {
                            done += chunk.len() as u64;
                            io.receive(socket);
                        }
                        _ => io.send(socket, vec![chunk]),
                    },
                    _ => io.close(socket, Close::Reset),
                },
                Completion::Sent {
                    socket,
                    result: Ok(len),
                } => {
                    done += len as u64;
                    match row {
                        Row::Source => io.send(socket, vec![block.clone(); 4]),
                        _ => io.receive(socket),
                    }
                }
                Completion::Sent { socket, .. } => io.close(socket, Close::Reset),
                Completion::Datagrams(batch) => done += batch.data.len() as u64,
                _ => {}
            }
        }
    }
    Measured {
        done: done / row.unit(),
        elapsed: began.elapsed(),
        processor: processor_time() - processor,
        system_calls: io.counters().system_calls - before,
    }
}

fn peers<I: Io + 'static>(
    row: Row,
    tcp: SocketAddr,
    udp: SocketAddr,
    make: fn(udp::Udp) -> std::io::Result<I>,
    end: &Arc<AtomicBool>,
) -> Vec<thread::JoinHandle<()>> {
    let end = end.clone();
    match row {
        Row::Echo { connections, size } => vec![thread::spawn(move || {
            ask(tcp, connections, size, false, &end);
        })],
        Row::Connections => vec![thread::spawn(move || {
            ask(tcp, 16, REQUEST, true, &end);
        })],
        Row::Sink { connections } => (0..connections)
            .map(|_| {
                let end = end.clone();
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(tcp).unwrap();
                    let block = vec![7; 256 * 1024];
                    while !end.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
                })
            })
            .collect(),
        Row::Source => vec![thread::spawn(move || {
            let mut stream = TcpStream::connect(tcp).unwrap();
            let mut block = vec![7; 256 * 1024];
            while !end.load(Ordering::Relaxed) && stream.read(&mut block).is_ok_and(|len| len > 0) {
            }
        })],
        Row::Datagrams { size } => vec![thread::spawn(move || {
            let mut io = make(udp::bind(local(), false).unwrap()).unwrap();
            flood(&mut io, udp, size, &end);
        })],
    }
}

/// Clients that ask and wait for the answer, all in one thread, on `poll`.
fn ask(to: SocketAddr, connections: usize, size: usize, once: bool, end: &AtomicBool) {
    let mut io = Poll::new(udp::bind(local(), false).unwrap()).unwrap();
    let request = Bytes::from(vec![7; size]);
    let mut missing: BTreeMap<u32, usize> = BTreeMap::new();
    let ask = |io: &mut Poll, socket: SocketId| {
        io.send(socket, vec![request.clone()]);
        io.receive(socket);
    };
    for _ in 0..connections {
        io.connect(to).unwrap();
    }
    let mut completions = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let soon = Instant::now() + Duration::from_millis(100);
        io.wait(Some(soon), &mut completions).unwrap();
        for completion in completions.drain(..) {
            match completion {
                Completion::Connected {
                    socket,
                    result: Ok(()),
                } => ask(&mut io, socket),
                Completion::Received {
                    socket,
                    result: Ok(chunk),
                } if !chunk.is_empty() => {
                    let left = missing.entry(socket.index).or_insert(size);
                    *left -= chunk.len();
                    if *left > 0 {
                        io.receive(socket);
                    } else if once {
                        missing.remove(&socket.index);
                        io.close(socket, Close::Reset);
                        io.connect(to).unwrap();
                    } else {
                        *left = size;
                        ask(&mut io, socket);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Sends datagrams without end; what the receiver cannot take is lost.
fn flood(io: &mut impl Io, to: SocketAddr, size: usize, end: &AtomicBool) {
    let segments = (65_507 / size).min(io.max_segments());
    let transmit = Transmit {
        destination: to,
        ecn: None,
        segment_size: Some(size),
        src_ip: None,
    };
    let mut completions = Vec::new();
    while !end.load(Ordering::Relaxed) {
        for _ in 0..8 {
            let Some(mut buffer) = io.datagram_buffer() else {
                break;
            };
            buffer.data.resize(size * segments, 7);
            io.send_datagrams(buffer, &transmit);
        }
        io.wait(Some(Instant::now()), &mut completions).unwrap();
        completions.clear();
    }
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Processor time of this thread.
#[expect(unsafe_code, reason = "no crate at hand wraps getrusage of a thread")]
fn processor_time() -> Duration {
    // SAFETY: a plain C structure for which all zeroes are valid, and which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec as u64) + Duration::from_micros(value.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
