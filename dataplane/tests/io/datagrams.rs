//! Datagrams keep their size, order, marks and addresses; buffers run out and come back.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use underpass_dataplane::io::{Completion, DATAGRAMS_SIZE, EcnCodepoint, Io, Transmit};

use crate::driver::{Driver, PATIENCE, local, local_v6, pattern, plain};

on_every_backend! {
    local:
    datagrams_keep_stride_ecn_and_addresses,
    large_datagrams_pass,
    many_datagrams_arrive_in_order,
    datagrams_are_received_without_a_copy,
    transmit_buffers_run_out_and_come_back,
    a_buffer_that_is_wanted_comes_back_without_a_sign_from_elsewhere;
    local_v6:
    the_largest_datagram_of_ipv6_passes;
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
    // More than all receive buffers there are while the worker does not look, and within what the
    // kernel holds.
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

fn a_buffer_that_is_wanted_comes_back_without_a_sign_from_elsewhere(mut worker: Driver<impl Io>) {
    let silent = UdpSocket::bind(local()).unwrap();
    let to = plain(silent.local_addr().unwrap());
    let mut buffers: Vec<_> = std::iter::from_fn(|| worker.io.datagram_buffer()).collect();
    for mut buffer in buffers.drain(..) {
        buffer.data.extend_from_slice(&[1; 1200]);
        worker.io.send_datagrams(buffer, &to);
    }
    let began = Instant::now();
    worker.until("word that a buffer is free", |completion| {
        matches!(completion, Completion::BufferFree).then_some(())
    });
    assert!(began.elapsed() < PATIENCE / 10);
    assert!(worker.io.datagram_buffer().is_some());
}
