//! Bytes pass exactly: every size, either way, in their order, urgent ones too.

use std::io::{Read, Write};
use std::thread;

use bytes::Bytes;
use socket2::SockRef;
use underpass_dataplane::io::{Close, Io, READ_SIZE};

use crate::driver::{Driver, connect, pattern};

on_every_backend! {
    local:
    bytes_pass_exactly_both_ways_in_every_size,
    a_slow_reader_gets_all_of_a_large_send,
    many_chunks_of_odd_sizes_keep_their_order,
    urgent_bytes_arrive_in_their_place,
    bulk_is_received_without_a_copy;
}

fn bytes_pass_exactly_both_ways_in_every_size(mut worker: Driver<impl Io>) {
    let address = worker.listen();
    let sizes = [
        1,
        100,
        4095,
        4096,
        READ_SIZE - 1,
        READ_SIZE,
        READ_SIZE + 1,
        10 * 1024 * 1024,
    ];
    for size in sizes {
        let data = pattern(size);
        let sent = data.clone();
        let peer = thread::spawn(move || {
            let mut stream = connect(address);
            stream.write_all(&sent).unwrap();
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).unwrap();
            assert!(back == sent, "the echo of {} bytes differs", sent.len());
        });
        let (socket, _) = worker.accept();
        let received = worker.receive_exactly(socket, size);
        assert!(received == data, "{size} bytes differ");
        worker.send_all(socket, &received);
        peer.join().unwrap();
        assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
        worker.io.close(socket, Close::Reset);
    }
}

fn a_slow_reader_gets_all_of_a_large_send(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    let data = pattern(10 * 1024 * 1024);
    let expected = data.clone();
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        let mut buffer = vec![0; 10_000];
        loop {
            match peer.read(&mut buffer).unwrap() {
                0 => break,
                len => received.extend_from_slice(&buffer[..len]),
            }
            thread::yield_now();
        }
        assert!(received == expected);
    });
    worker.send_all(socket, &data);
    worker.io.shutdown(socket);
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
    worker.io.close(socket, Close::Clean);
    worker.turn();
    reader.join().unwrap();
}

fn many_chunks_of_odd_sizes_keep_their_order(mut worker: Driver<impl Io>) {
    const CHUNK: usize = 1021;
    const CHUNKS: usize = 64;
    const ROUNDS: usize = 64;
    let (socket, mut peer) = worker.pair();
    let data = Bytes::from(pattern(ROUNDS * CHUNKS * CHUNK));
    let expected = data.clone();
    let reader = thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        peer.read_exact(&mut received).unwrap();
        assert!(received == expected);
        peer
    });
    for round in 0..ROUNDS {
        let first = round * CHUNKS;
        let chunks = (first..first + CHUNKS).map(|n| data.slice(n * CHUNK..(n + 1) * CHUNK));
        worker.io.send(socket, chunks.collect());
        assert_eq!(worker.sent(socket).unwrap(), CHUNKS * CHUNK);
    }
    reader.join().unwrap();
}

fn urgent_bytes_arrive_in_their_place(mut worker: Driver<impl Io>) {
    for armed in [false, true] {
        let (socket, mut peer) = worker.pair();
        if armed {
            worker.io.receive(socket);
            worker.turn();
        }
        peer.write_all(b"before").unwrap();
        SockRef::from(&peer).send_out_of_band(b"!").unwrap();
        peer.write_all(b"after").unwrap();
        let mut received = Vec::new();
        if armed {
            received.extend(worker.received(socket).unwrap());
        }
        let missing = b"before!after".len() - received.len();
        received.extend(worker.receive_exactly(socket, missing));
        assert_eq!(received, b"before!after");
    }
}

fn bulk_is_received_without_a_copy(mut worker: Driver<impl Io>) {
    const SIZE: usize = 32 * 1024 * 1024;
    let (socket, mut peer) = worker.pair();
    let writer = thread::spawn(move || {
        let block = pattern(256 * 1024);
        for _ in 0..SIZE / block.len() {
            peer.write_all(&block).unwrap();
        }
        peer
    });
    let mut left = SIZE;
    while left > 0 {
        left -= worker.receive(socket).unwrap().len();
    }
    writer.join().unwrap();
    let copied = worker.io.counters().bytes_copied;
    assert!(copied < SIZE as u64 / 100, "{copied} of {SIZE} bytes");
}
