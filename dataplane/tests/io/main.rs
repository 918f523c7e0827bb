//! What every backend of the io seam must do, tried on each: bytes exact, ends told as they happened, nothing lost, nothing late.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod driver;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use underpass_dataplane::io::{
    Close, Completion, DATAGRAMS_SIZE, EcnCodepoint, Io, READ_SIZE, Transmit, Waker, socket, udp,
};

use driver::{
    Driver, PATIENCE, connect, endless, in_a_child, limit_descriptors, local, local_v6, pattern,
    plain, read_to_error, reset,
};

macro_rules! on_every_backend {
    ($($address:ident: $($test:ident),+;)+) => {
        mod poll {
            $($(#[test]
            fn $test() {
                let udp = super::udp::bind(super::$address(), false).unwrap();
                let address = udp.address();
                let io = underpass_dataplane::io::Poll::new(udp).unwrap();
                super::$test(super::Driver::new(io, address));
            })+)+
        }
        #[cfg(target_os = "linux")]
        mod ring {
            $($(#[test]
            fn $test() {
                let udp = super::udp::bind(super::$address(), false).unwrap();
                let address = udp.address();
                let io = underpass_dataplane::io::Ring::new(udp).unwrap();
                super::$test(super::Driver::new(io, address));
            })+)+
        }
    };
}

on_every_backend! {
    local:
    bytes_pass_exactly_both_ways_in_every_size,
    a_slow_reader_gets_all_of_a_large_send,
    many_chunks_of_odd_sizes_keep_their_order,
    urgent_bytes_arrive_in_their_place,
    bulk_is_received_without_a_copy,
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
    a_closed_socket_is_ignored,
    connecting_tells_success_and_refusal,
    both_ends_in_one_worker,
    closing_a_listener_ends_it,
    a_thousand_sockets_at_once,
    more_receives_than_buffers,
    accepting_recovers_from_the_descriptor_limit,
    a_socket_moves_to_another_worker,
    a_wake_comes_from_another_thread,
    wakes_are_joined,
    no_wake_is_lost,
    the_deadline_is_kept,
    datagrams_keep_stride_ecn_and_addresses,
    large_datagrams_pass,
    many_datagrams_arrive_in_order,
    datagrams_are_received_without_a_copy,
    transmit_buffers_run_out_and_come_back,
    dropping_a_backend_resets_its_peers;
    local_v6:
    the_largest_datagram_of_ipv6_passes;
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
    // However the reset is noticed first: by the receive itself, under watch, or by a send that fails.
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

fn connecting_tells_success_and_refusal(mut worker: Driver<impl Io>) {
    let endpoint = socket::listener(local(), false).unwrap();
    let address = endpoint.local_addr().unwrap();
    let socket = worker.io.connect(address).unwrap();
    worker.connected(socket).unwrap();
    endpoint.set_nonblocking(false).unwrap();
    let (mut peer, _) = endpoint.accept().unwrap();
    worker.send_all(socket, b"hello");
    let mut hello = [0; 5];
    peer.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    drop(peer); // With linger zero, as the listener has it.
    let error = worker.receive(socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    worker.io.close(socket, Close::Reset);

    // Given up on the way.
    let socket = worker.io.connect(address).unwrap();
    worker.io.close(socket, Close::Reset);
    worker.quiet();

    drop(endpoint);
    let socket = worker.io.connect(address).unwrap();
    let error = worker.connected(socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    worker.io.close(socket, Close::Reset);
}

fn both_ends_in_one_worker(mut worker: Driver<impl Io>) {
    let address = worker.listen();
    let near = worker.io.connect(address).unwrap();
    worker.connected(near).unwrap();
    let (far, _) = worker.accept();
    let data = pattern(3 * READ_SIZE);
    worker.io.send(near, vec![Bytes::from(data.clone())]);
    let received = worker.receive_exactly(far, data.len());
    assert!(received == data);
    assert_eq!(worker.sent(near).unwrap(), data.len());
}

fn closing_a_listener_ends_it(mut worker: Driver<impl Io>) {
    let listener = socket::listener(local(), false).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = worker.io.listen(listener).unwrap();
    let _peer = connect(address);
    let (socket, _) = worker.accept();
    worker.io.close(listener, Close::Reset);
    worker.turn();
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    worker.send_all(socket, b"still here");
}

fn a_thousand_sockets_at_once(mut worker: Driver<impl Io>) {
    let (sockets, mut peers) = worker.pairs(1000);
    for socket in &sockets {
        worker.io.receive(*socket);
    }
    worker.turn();
    for (n, peer) in peers.iter_mut().enumerate() {
        peer.write_all(&n.to_be_bytes()).unwrap();
    }
    for (n, socket) in sockets.iter().enumerate() {
        let chunk = worker.received(*socket).unwrap();
        assert_eq!(chunk, n.to_be_bytes()[..]);
        worker.io.send(*socket, vec![chunk]);
    }
    for socket in &sockets {
        assert_eq!(worker.sent(*socket).unwrap(), size_of::<usize>());
    }
    for (n, peer) in peers.iter_mut().enumerate() {
        let mut echo = [0; size_of::<usize>()];
        peer.read_exact(&mut echo).unwrap();
        assert_eq!(usize::from_be_bytes(echo), n);
    }
    for socket in &sockets {
        worker.io.close(*socket, Close::Reset);
    }
    worker.turn();
    for peer in &mut peers {
        assert_eq!(read_to_error(peer), ErrorKind::ConnectionReset);
    }
}

fn more_receives_than_buffers(mut worker: Driver<impl Io>) {
    // All become readable at once, far more than any pool of 64 KiB buffers holds, and each fills one.
    let (sockets, mut peers) = worker.pairs(700);
    let data = pattern(READ_SIZE);
    for socket in &sockets {
        worker.io.receive(*socket);
    }
    worker.turn();
    for peer in &mut peers {
        peer.write_all(&data).unwrap();
    }
    for socket in &sockets {
        let mut received = worker.received(*socket).unwrap().to_vec();
        let rest = data.len() - received.len();
        received.extend(worker.receive_exactly(*socket, rest));
        assert!(received == data);
    }
}

fn accepting_recovers_from_the_descriptor_limit(mut worker: Driver<impl Io>) {
    // The limit is the process's, and other tests must not run into it: this one goes on in a process of its own.
    if in_a_child(
        "accepting_recovers_from_the_descriptor_limit",
        worker.io.name(),
    ) {
        return;
    }
    limit_descriptors(64);
    let address = worker.listen();
    let _one = connect(address);
    let (first, _) = worker.accept();
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.pop();
    let _two = connect(address); // Takes the last descriptor, so that the accept finds none.
    let error = worker.until("accept that fails", |completion| match completion {
        Completion::Accepted {
            socket: Err(error), ..
        } => error.raw_os_error(),
        _ => None,
    });
    assert_eq!(error, libc::EMFILE);
    held.clear();
    let began = Instant::now();
    let (second, _) = worker.accept();
    assert!(began.elapsed() < Duration::from_secs(1));
    worker.send_all(first, b"1");
    worker.send_all(second, b"2");
}

fn a_socket_moves_to_another_worker(mut worker: Driver<impl Io>) {
    let (socket, mut peer) = worker.pair();
    peer.write_all(b"before").unwrap();
    let stream = worker.io.release(socket).expect("an unused socket");
    assert!(worker.io.release(socket).is_none());
    worker.turn();
    let adopted = worker.io.adopt(stream).unwrap();
    assert_ne!(adopted, socket);
    assert_eq!(worker.receive(adopted).unwrap(), "before");
    worker.send_all(adopted, b"after");
    let mut after = [0; 5];
    peer.read_exact(&mut after).unwrap();
    assert_eq!(&after, b"after");
}

fn a_wake_comes_from_another_thread(mut worker: Driver<impl Io>) {
    for _ in 0..100 {
        let waker = worker.io.waker();
        let thread = thread::spawn(move || waker.wake());
        worker.woken();
        thread.join().unwrap();
    }
}

fn wakes_are_joined(mut worker: Driver<impl Io>) {
    let waker = worker.io.waker();
    for _ in 0..3 {
        for _ in 0..1000 {
            waker.wake();
        }
        worker.woken();
        worker.quiet();
    }
}

fn no_wake_is_lost(mut worker: Driver<impl Io>) {
    // The other thread says the next number only when the worker has seen the one before, so each wake meets another moment of the worker's turn.
    const ROUNDS: u32 = 5000;
    let (said, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let thread = thread::spawn({
        let (said, seen, waker) = (said.clone(), seen.clone(), worker.io.waker());
        move || {
            let give_up = Instant::now() + 3 * PATIENCE;
            for round in 1..=ROUNDS {
                said.store(round, Ordering::SeqCst);
                waker.wake();
                while seen.load(Ordering::SeqCst) < round {
                    assert!(Instant::now() < give_up, "round {round} was not seen");
                    thread::yield_now();
                }
            }
        }
    });
    while seen.load(Ordering::SeqCst) < ROUNDS {
        worker.woken();
        seen.store(said.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    thread.join().unwrap();
}

fn the_deadline_is_kept(mut worker: Driver<impl Io>) {
    let mut completions = Vec::new();
    let mut late = Vec::new();
    for ms in [0, 1, 3, 10, 30, 100] {
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_millis(ms);
            while Instant::now() < deadline {
                worker.io.wait(Some(deadline), &mut completions).unwrap();
            }
            late.push(deadline.elapsed());
        }
    }
    assert!(completions.is_empty());
    late.sort();
    // The median, so that a busy machine does not decide.
    assert!(late[late.len() / 2] < Duration::from_millis(5), "{late:?}");

    let past = Instant::now();
    worker.io.wait(Some(past), &mut completions).unwrap();
    assert!(past.elapsed() < Duration::from_millis(50));
}

fn datagrams_keep_stride_ecn_and_addresses(mut worker: Driver<impl Io>) {
    // To itself, so that both directions are its own.
    let to = worker.udp_address;
    let batches = [
        (1, 1),
        (1200, 1200),
        (1452 * 2, 1452),
        (1452 * 44 + 17, 1452),
        (1200 * 54, 1200),
    ];
    for (size, stride) in batches {
        let data = pattern(size);
        for ecn in [None, Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ce)] {
            let transmit = Transmit {
                ecn,
                segment_size: Some(stride),
                src_ip: Some(Ipv4Addr::LOCALHOST.into()),
                ..plain(to)
            };
            worker.send_datagrams(&data, &transmit);
            let mut received = Vec::new();
            while received.len() < size {
                let batch = worker.datagrams();
                assert_eq!(batch.remote, to);
                assert_eq!(batch.local_ip, Some(Ipv4Addr::LOCALHOST.into()));
                assert_eq!(batch.ecn, ecn);
                assert_eq!(batch.stride, stride.min(batch.data.len()));
                received.extend_from_slice(&batch.data);
            }
            assert!(received == data);
        }
    }

    // From and to a stranger, who also says nothing once.
    let stranger = UdpSocket::bind(local()).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    worker.send_datagrams(b"question", &plain(stranger.local_addr().unwrap()));
    worker.turn();
    let mut buffer = [0; 100];
    let (len, from) = stranger.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"question"[..], to));
    stranger.send_to(b"", to).unwrap();
    stranger.send_to(b"answer", to).unwrap();
    let answer = worker.until(
        "datagram that says something",
        |completion| match completion {
            Completion::Datagrams(batch) if !batch.data.is_empty() => {
                Some((batch.data.to_vec(), batch.remote))
            }
            _ => None,
        },
    );
    assert_eq!(answer, (b"answer".to_vec(), stranger.local_addr().unwrap()));
}

fn large_datagrams_pass(mut worker: Driver<impl Io>) {
    for round in 0..100 {
        let data = pattern(DATAGRAMS_SIZE - round);
        worker.send_datagrams(&data, &plain(worker.udp_address));
        let batch = worker.datagrams();
        assert_eq!(batch.stride, data.len());
        assert!(batch.data == data);
    }
}

fn many_datagrams_arrive_in_order(mut worker: Driver<impl Io>) {
    // More than all receive buffers there are while the worker does not look, and within what the kernel holds.
    const DATAGRAMS: u32 = 200;
    let stranger = UdpSocket::bind(local()).unwrap();
    for _ in 0..10 {
        for n in 0..DATAGRAMS {
            stranger
                .send_to(&n.to_be_bytes(), worker.udp_address)
                .unwrap();
        }
        for n in 0..DATAGRAMS {
            assert_eq!(worker.datagrams().data, n.to_be_bytes()[..]);
        }
    }
}

fn datagrams_are_received_without_a_copy(mut worker: Driver<impl Io>) {
    const STRIDE: usize = 1452;
    let data = pattern(STRIDE * 44);
    let transmit = Transmit {
        segment_size: Some(STRIDE),
        ..plain(worker.udp_address)
    };
    let mut bytes = 0;
    for _ in 0..200 {
        worker.send_datagrams(&data, &transmit);
        let batch = worker.datagrams();
        assert!(batch.data == data);
        bytes += batch.data.len() as u64;
    }
    let copied = worker.io.counters().bytes_copied;
    assert!(copied < bytes / 100, "{copied} of {bytes} bytes");
}

fn the_largest_datagram_of_ipv6_passes(mut worker: Driver<impl Io>) {
    // IPv6 does not count its header: 20 bytes more than IPv4 carries.
    const LARGEST: usize = 65_527;
    let stranger = UdpSocket::bind(local_v6()).unwrap();
    let data = pattern(LARGEST);
    for _ in 0..10 {
        stranger.send_to(&data, worker.udp_address).unwrap();
        let batch = worker.datagrams();
        assert_eq!(batch.remote, stranger.local_addr().unwrap());
        assert_eq!(batch.stride, LARGEST);
        assert!(batch.data == data);
    }
}

fn transmit_buffers_run_out_and_come_back(mut worker: Driver<impl Io>) {
    let mut buffers = Vec::new();
    while let Some(buffer) = worker.io.datagram_buffer() {
        assert!(buffer.data.is_empty());
        assert!(buffer.data.capacity() >= DATAGRAMS_SIZE);
        buffers.push(buffer);
        assert!(buffers.len() <= 1024);
    }
    let count = buffers.len();
    assert!(count >= 8);
    worker.quiet();
    for (n, mut buffer) in buffers.into_iter().enumerate() {
        buffer.data.extend_from_slice(&[1; 1200]);
        if n % 2 == 0 {
            worker.io.send_datagrams(buffer, &plain(worker.udp_address));
        } else {
            worker.io.return_buffer(buffer);
        }
    }
    worker.until("word that a buffer is free", |completion| {
        matches!(completion, Completion::BufferFree).then_some(())
    });
    for _ in 0..count.div_ceil(2) {
        assert_eq!(worker.datagrams().data, [1; 1200][..]);
    }
    worker.quiet();
    let again: Vec<_> = (0..count)
        .filter_map(|_| worker.io.datagram_buffer())
        .collect();
    assert_eq!(again.len(), count);
    assert_eq!(worker.io.counters().datagram_send_errors, 0);
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
