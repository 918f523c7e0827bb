//! Ends are told as they happened: a FIN, a reset, a close, and in no order that loses one.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use underpass_dataplane::io::{Close, Io, udp};

use crate::driver::{Driver, PATIENCE, connect, endless, pattern, read_to_error, reset};

on_every_backend! {
    local:
    fin_passes_in_both_directions,
    a_reset_is_seen_under_receive,
    a_reset_is_seen_under_watch,
    a_reset_before_watch_is_seen,
    a_reset_is_seen_under_send,
    a_reset_is_never_a_clean_end,
    what_came_before_a_reset_is_read_first,
    a_reset_between_watch_and_receive_is_told_once,
    a_fin_does_not_disturb_watch,
    receive_replaces_watch,
    closing_with_reset_gives_the_peer_a_reset,
    closing_with_reset_under_way_gives_the_peer_a_reset,
    a_closed_socket_lets_go_of_what_it_sent,
    closing_cleanly_delivers_everything,
    closing_cleanly_sends_fin,
    what_is_sent_last_arrives_with_fin,
    what_is_sent_last_waits_for_fin,
    a_closed_socket_is_ignored,
    dropping_a_backend_resets_its_peers;
}

fn fin_passes_in_both_directions(mut worker: Driver<impl Io>) {
    // The peer ends first, and the worker still answers.
    let (socket, mut peer) = worker.pair();
    peer.write_all(b"last words").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(worker.receive(socket).unwrap(), "last words");
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
    worker.send_all(socket, b"answer");
    worker.io.shutdown(socket);
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");

    // The worker ends first, and still hears.
    let (socket, mut peer) = worker.pair();
    worker.send_all(socket, b"question");
    worker.io.shutdown(socket);
    let mut question = Vec::new();
    peer.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    peer.write_all(b"reply").unwrap();
    drop(peer);
    assert_eq!(worker.receive(socket).unwrap(), "reply");
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
}

fn a_reset_is_seen_under_receive(mut worker: Driver<impl Io>) {
    let (socket, peer) = worker.pair();
    worker.io.receive(socket);
    worker.turn();
    reset(peer);
    let error = worker.received(socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn a_reset_is_seen_under_watch(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    worker.io.watch(socket);
    worker.turn();
    // Data does not end a watch.
    peer.write_all(b"unread").unwrap();
    worker.turn();
    reset(peer);
    assert_eq!(worker.hung_up(socket).kind(), ErrorKind::ConnectionReset);
}

fn a_reset_before_watch_is_seen(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    peer.write_all(b"x").unwrap();
    assert_eq!(worker.receive(socket).unwrap(), "x");
    reset(peer);
    // Turns pass without any operation on the socket.
    worker.turn();
    worker.turn();
    worker.io.watch(socket);
    assert_eq!(worker.hung_up(socket).kind(), ErrorKind::ConnectionReset);
}

fn a_reset_is_seen_under_send(mut worker: Driver<impl Io>) {
    let (socket, peer) = worker.pair();
    worker.io.send(socket, endless());
    worker.turn();
    reset(peer);
    let error = worker.sent(socket).unwrap_err();
    let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(reset.contains(&error.kind()), "{error}");
}

fn a_reset_is_never_a_clean_end(mut worker: Driver<impl Io>) {
    // With a send and a receive under way, only one of them gets the error from the kernel.
    for _ in 0..50 {
        let (socket, mut peer) = worker.pair();
        worker.io.send(socket, endless());
        worker.io.receive(socket);
        worker.turn();
        peer.write_all(b"hello").unwrap();
        assert_eq!(worker.received(socket).unwrap(), "hello");
        worker.io.receive(socket);
        worker.turn();
        reset(peer);
        assert!(worker.received(socket).is_err());
        assert!(worker.sent(socket).is_err());
        assert!(worker.receive(socket).is_err());
        worker.io.close(socket, Close::Reset);
    }
}

fn what_came_before_a_reset_is_read_first(mut worker: Driver<impl Io>) {
    // However the reset is noticed first: by the receive itself, under watch, or by a send that
    // fails.
    for noticed in ["receive", "watch", "send"] {
        let (socket, mut peer) = worker.pair();
        peer.write_all(b"last words").unwrap();
        reset(peer);
        match noticed {
            "watch" => {
                worker.io.watch(socket);
                worker.hung_up(socket);
            }
            "send" => {
                worker.io.send(socket, vec![Bytes::from_static(b"x")]);
                assert!(worker.sent(socket).is_err());
            }
            _ => {}
        }
        assert_eq!(worker.receive(socket).unwrap(), "last words", "{noticed}");
        assert!(worker.receive(socket).is_err(), "{noticed}");
        assert!(worker.receive(socket).is_err(), "{noticed}");
    }
}

fn a_reset_between_watch_and_receive_is_told_once(mut worker: Driver<impl Io>) {
    for _ in 0..50 {
        let (socket, peer) = worker.pair();
        worker.io.watch(socket);
        worker.turn();
        reset(peer);
        worker.io.receive(socket);
        let error = worker.received(socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        worker.turn();
        assert!(worker.pending.is_empty(), "{:?}", worker.pending);
        worker.io.close(socket, Close::Reset);
    }
    worker.quiet();
}

fn a_fin_does_not_disturb_watch(mut worker: Driver<impl Io>) {
    let (socket, peer) = worker.pair();
    worker.io.watch(socket);
    peer.shutdown(Shutdown::Write).unwrap();
    worker.io.shutdown(socket);
    worker.quiet();
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
}

fn receive_replaces_watch(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    for _ in 0..10 {
        worker.io.watch(socket);
        worker.turn();
        peer.write_all(b"more").unwrap();
        assert_eq!(worker.receive(socket).unwrap(), "more");
    }
    worker.io.watch(socket);
    worker.io.receive(socket);
    worker.turn();
    reset(peer);
    // One completion, and it is the receive's.
    assert!(worker.received(socket).is_err());
    worker.quiet();
    worker.io.watch(socket);
    worker.hung_up(socket);
}

fn closing_with_reset_gives_the_peer_a_reset(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    worker.io.close(socket, Close::Reset);
    worker.turn();
    assert_eq!(read_to_error(&mut peer), ErrorKind::ConnectionReset);
}

fn closing_with_reset_under_way_gives_the_peer_a_reset(mut worker: Driver<impl Io>) {
    for watched in [false, true] {
        let (socket, mut peer) = worker.pair();
        if watched {
            worker.io.watch(socket);
            worker.turn();
        }
        worker.io.receive(socket);
        worker.io.send(socket, endless());
        worker.turn();
        worker.io.close(socket, Close::Reset);
        worker.turn();
        assert_eq!(read_to_error(&mut peer), ErrorKind::ConnectionReset);
        worker.quiet();
    }
}

fn a_closed_socket_lets_go_of_what_it_sent(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    let chunks: Vec<_> = (0..64).map(|n| Bytes::from(vec![n; 1024 * 1024])).collect();
    worker.io.send(socket, chunks.clone());
    worker.turn();
    assert!(!chunks[63].is_unique());
    worker.io.close(socket, Close::Reset);
    let give_up = Instant::now() + PATIENCE;
    while !chunks.iter().all(Bytes::is_unique) {
        assert!(Instant::now() < give_up);
        worker.turn();
    }
    assert_eq!(read_to_error(&mut peer), ErrorKind::ConnectionReset);
}

fn closing_cleanly_delivers_everything(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    let data = pattern(2 * 1024 * 1024);
    let expected = data.clone();
    let reader = thread::spawn(move || {
        peer.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        assert!(received == expected);
    });
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
    worker.send_all(socket, &data);
    worker.io.shutdown(socket);
    worker.io.close(socket, Close::Clean);
    worker.turn();
    reader.join().unwrap();
}

fn closing_cleanly_sends_fin(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(worker.receive(socket).unwrap(), Bytes::new());
    worker.send_all(socket, b"answer");
    worker.io.close(socket, Close::Clean);
    worker.turn();
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
}

fn what_is_sent_last_arrives_with_fin(mut worker: Driver<impl Io>) {
    for size in [1, 100_000, 2 * 1024 * 1024] {
        let (socket, mut peer) = worker.pair();
        let data = pattern(size);
        let expected = data.clone();
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).unwrap();
            assert!(received == expected);
        });
        worker.io.send_last(socket, vec![Bytes::from(data)]);
        assert_eq!(worker.sent(socket).unwrap(), size);
        worker.io.shutdown(socket);
        reader.join().unwrap();
    }
}

/// FIN and the last bytes make one packet, where the system can: nothing comes before FIN. The
/// kernel keeps bytes back for some 200 ms, so a machine that stands still may let them go once,
/// not each time.
fn what_is_sent_last_waits_for_fin(mut worker: Driver<impl Io>) {
    let kept_back = (0..10).any(|_| {
        let (socket, mut peer) = worker.pair();
        peer.set_nonblocking(true).unwrap();
        worker
            .io
            .send_last(socket, vec![Bytes::from_static(b"bye")]);
        assert_eq!(worker.sent(socket).unwrap(), 3);
        let early = peer.peek(&mut [0; 4]);
        worker.io.shutdown(socket);
        peer.set_nonblocking(false).unwrap();
        let mut last = Vec::new();
        peer.read_to_end(&mut last).unwrap();
        assert_eq!(last, b"bye");
        early.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    assert!(kept_back || cfg!(not(target_os = "linux")));
}

fn a_closed_socket_is_ignored(mut worker: Driver<impl Io>) {
    let (stale, _first) = worker.pair();
    worker.io.receive(stale);
    worker.io.close(stale, Close::Reset);
    worker.turn();
    let (socket, mut peer) = worker.pair();
    worker.io.receive(stale);
    worker.io.watch(stale);
    worker.io.send(stale, vec![Bytes::from_static(b"x")]);
    worker.io.shutdown(stale);
    worker.io.close(stale, Close::Clean);
    assert!(worker.io.release(stale).is_none());
    worker.quiet();
    peer.write_all(b"alive").unwrap();
    assert_eq!(worker.receive(socket).unwrap(), "alive");
}

fn dropping_a_backend_resets_its_peers(mut worker: Driver<impl Io>) {
    let (receiving, mut first) = worker.pair();
    let (sending, mut second) = worker.pair();
    worker.io.receive(receiving);
    worker.io.send(sending, endless());
    worker.turn();
    // Accepted by the kernel, and not seen by anybody yet.
    let mut unseen = connect(worker.listen());
    worker.turn();
    let listener = worker.listen();
    worker.turn();
    let mut third = connect(listener);
    let address = worker.udp_address;
    drop(worker);
    for peer in [&mut unseen, &mut third] {
        assert_eq!(read_to_error(peer), ErrorKind::ConnectionReset);
    }
    assert_eq!(read_to_error(&mut first), ErrorKind::ConnectionReset);
    assert_eq!(read_to_error(&mut second), ErrorKind::ConnectionReset);
    // The kernel may let go of a ring's descriptors a little late.
    udp::bind_workers(address, 2).unwrap();
}
