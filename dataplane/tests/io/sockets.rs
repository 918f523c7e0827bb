//! Sockets come and go: connected, accepted, many at once, at the limit of descriptors, from one
//! worker to another.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use underpass_dataplane::io::{Close, Completion, Io, READ_SIZE, socket};

use crate::driver::{
    Driver, connect, in_a_child, limit_descriptors, local, pattern, read_to_error,
};

on_every_backend! {
    local:
    connecting_tells_success_and_refusal,
    a_connection_that_lasts_has_what_an_accepted_one_has,
    both_ends_in_one_worker,
    closing_a_listener_ends_it,
    a_thousand_sockets_at_once,
    more_receives_than_buffers,
    accepting_recovers_from_the_descriptor_limit,
    a_socket_moves_to_another_worker;
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

fn a_connection_that_lasts_has_what_an_accepted_one_has(mut worker: Driver<impl Io>) {
    let endpoint = socket::listener(local(), false).unwrap();
    let settled = [false, true].map(|settles| {
        let socket = worker.io.connect(endpoint.local_addr().unwrap()).unwrap();
        worker.connected(socket).unwrap();
        if settles {
            worker.io.settle(socket);
        }
        options(worker.io.release(socket).expect("an unused socket"))
    });
    endpoint.set_nonblocking(false).unwrap();
    let accepted = options(socket::Stream::System(endpoint.accept().unwrap().0));
    assert_eq!(settled[1], accepted);
    // From its first byte: no delay, linger zero, urgent bytes in line.
    assert_eq!(settled[0][..3], accepted[..3]);
    assert_ne!(settled[0][3], accepted[3], "keep-alive");
}

fn options(stream: socket::Stream) -> Vec<String> {
    let stream = stream.system().unwrap();
    let socket = SockRef::from(&stream);
    let mut options = vec![
        format!("no delay {:?}", socket.tcp_nodelay().unwrap()),
        format!("linger {:?}", socket.linger().unwrap()),
        format!("in line {:?}", socket.out_of_band_inline().unwrap()),
        format!("keep-alive {:?}", socket.keepalive().unwrap()),
        format!("after {:?}", socket.tcp_keepalive_time().unwrap()),
        format!("every {:?}", socket.tcp_keepalive_interval().unwrap()),
        format!("times {:?}", socket.tcp_keepalive_retries().unwrap()),
    ];
    #[cfg(target_os = "linux")]
    options.push(format!("unsent {:?}", socket.tcp_notsent_lowat().unwrap()));
    options
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
    // All become readable at once, far more than any pool of 64 KiB buffers holds, and each fills
    // one.
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
    // The limit is the process's, and other tests must not run into it: this one goes on in a
    // process of its own.
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
