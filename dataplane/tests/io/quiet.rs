//! Sends that nobody waits for: no wait ends for their sake, unless there is no room or the socket
//! has failed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use underpass_dataplane::io::{Close, Completion, Io, SocketId, Waker};

use crate::driver::{Driver, PATIENCE, endless, read_to_error, reset};

on_every_backend! {
    local:
    the_end_of_a_quiet_send_ends_no_wait,
    it_comes_ahead_of_what_ends_the_next,
    a_quiet_send_without_room_is_told_when_it_has_ended,
    a_quiet_send_that_fails_is_told_at_once,
    more_quiet_sends_than_the_kernel_takes_at_once,
    nothing_is_told_of_a_socket_that_was_closed;
}

const WORD: Bytes = Bytes::from_static(b"word");

fn the_end_of_a_quiet_send_ends_no_wait(mut worker: Driver<impl Io>) {
    const WHILE: Duration = Duration::from_millis(50);
    let (socket, mut peer) = used_pair(&mut worker);
    worker.io.send_quietly(socket, vec![WORD]);
    let start = Instant::now();
    worker.wait(start + WHILE);
    assert!(start.elapsed() >= WHILE);
    assert_eq!(read_word(&mut peer), WORD);
    assert_eq!(worker.pending.len(), 1);
    assert_eq!(worker.sent(socket).unwrap(), WORD.len());
    worker.quiet();
}

fn it_comes_ahead_of_what_ends_the_next(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = used_pair(&mut worker);
    let echo = std::thread::spawn(move || {
        for _ in 0..100 {
            let word = read_word(&mut peer);
            peer.write_all(&word).unwrap();
        }
        peer
    });
    for _ in 0..100 {
        worker.io.receive(socket);
        worker.io.send_quietly(socket, vec![WORD]);
        worker.wait(Instant::now() + PATIENCE);
        let told: Vec<_> = worker.pending.drain(..).collect();
        assert!(
            matches!(
                &told[..],
                [Completion::Sent { result: Ok(4), .. }, Completion::Received { result: Ok(word), .. }]
                    if *word == WORD
            ),
            "{told:?}"
        );
    }
    echo.join().unwrap();
}

fn a_quiet_send_without_room_is_told_when_it_has_ended(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    let data = endless();
    let size: usize = data.iter().map(Bytes::len).sum();
    worker.io.send_quietly(socket, data);
    worker.quiet();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(worker.sent(socket).unwrap(), size);
    worker.io.shutdown(socket);
    worker.io.close(socket, Close::Clean);
    worker.turn();
    let bytes = reader.join().unwrap();
    assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == 7));
}

fn a_quiet_send_that_fails_is_told_at_once(mut worker: Driver<impl Io>) {
    let (socket, peer) = worker.pair();
    worker.turn();
    reset(peer);
    worker.io.send_quietly(socket, vec![WORD, WORD]);
    let error = worker.sent(socket).unwrap_err();
    let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(reset.contains(&error.kind()), "{error}");
}

fn more_quiet_sends_than_the_kernel_takes_at_once(mut worker: Driver<impl Io>) {
    let (sockets, mut peers) = worker.pairs(1500);
    worker.turn();
    for socket in &sockets {
        worker.io.send_quietly(*socket, vec![WORD]);
    }
    let waker = worker.io.waker();
    waker.wake();
    for socket in &sockets {
        assert_eq!(worker.sent(*socket).unwrap(), WORD.len());
    }
    for peer in &mut peers {
        assert_eq!(read_word(peer), WORD);
    }
}

fn nothing_is_told_of_a_socket_that_was_closed(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    worker.turn();
    worker.io.send_quietly(socket, vec![WORD]);
    worker.io.close(socket, Close::Reset);
    worker.quiet();
    assert_eq!(read_to_error(&mut peer), ErrorKind::ConnectionReset);
}

/// A socket on which something was sent before: `poll` may end a wait for the first news of a
/// socket.
fn used_pair(worker: &mut Driver<impl Io>) -> (SocketId, TcpStream) {
    let (socket, mut peer) = worker.pair();
    worker.send_all(socket, &WORD);
    assert_eq!(read_word(&mut peer), WORD);
    worker.quiet();
    (socket, peer)
}

fn read_word(peer: &mut impl Read) -> Vec<u8> {
    let mut word = vec![0; WORD.len()];
    peer.read_exact(&mut word).unwrap();
    word
}
