//! Sockets made, shared and steered, over loopback.

use std::net::{IpAddr, Ipv4Addr};

use quinn_proto::EcnCodepoint;

use super::*;

const LOCAL: &str = "127.0.0.1:0";
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn buffers_are_large_and_read_back() -> io::Result<()> {
    let udp = bind(local(), false)?;
    assert!(udp.receive_buffer() >= 208 * 1024 / 2);
    assert!(udp.send_buffer() >= 208 * 1024 / 2);
    let granted = SockRef::from(udp.socket()).recv_buffer_size()?;
    assert!(granted >= udp.receive_buffer());
    Ok(())
}

#[test]
fn workers_share_one_port_and_a_stranger_is_noticed() -> io::Result<()> {
    let workers = bind_workers(local(), 3)?;
    let address = workers[0].address();
    assert!(workers.iter().all(|udp| udp.address() == address));
    let began = Instant::now();
    let error = bind_workers(address, 3).expect_err("the port is in use");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(began.elapsed() >= BIND_PATIENCE);
    let error = bind(address, true).expect_err("the port is in use");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    Ok(())
}

#[test]
fn a_batch_arrives_with_stride_ecn_and_local_address() -> io::Result<()> {
    let (from, to) = (bind(local(), false)?, bind(local(), false)?);
    let payload: Vec<u8> = (0..1452 * 9 + 7).map(|n| (n % 251) as u8).collect();
    let transmit = Transmit {
        destination: to.address(),
        ecn: Some(EcnCodepoint::Ect0),
        segment_size: Some(1452),
        src_ip: Some(Ipv4Addr::LOCALHOST.into()),
    };
    from.send(&payload, &transmit)?;
    let batch = receive(&to)?;
    assert_eq!(batch.stride, 1452);
    assert_eq!(batch.ecn, Some(EcnCodepoint::Ect0));
    assert_eq!(batch.local_ip, Some(IpAddr::from(Ipv4Addr::LOCALHOST)));
    assert_eq!(batch.remote, from.address());
    assert_eq!(batch.data, payload);
    Ok(())
}

#[test]
fn a_dual_stack_socket_speaks_ipv4_unmapped() -> io::Result<()> {
    let Ok(dual) = bind("[::]:0".parse().expect("an address"), false) else {
        return Ok(()); // A machine without IPv6.
    };
    let four = bind(local(), false)?;
    let to_dual = SocketAddr::from((Ipv4Addr::LOCALHOST, dual.address().port()));
    let transmit = |destination, src_ip| Transmit {
        destination,
        ecn: Some(EcnCodepoint::Ce),
        segment_size: None,
        src_ip,
    };
    four.send(b"there", &transmit(to_dual, None))?;
    let there = receive(&dual)?;
    assert_eq!(there.remote, four.address());
    assert_eq!(there.local_ip, Some(IpAddr::from(Ipv4Addr::LOCALHOST)));
    assert_eq!(there.ecn, Some(EcnCodepoint::Ce));
    assert_eq!(there.stride, 5);
    dual.send(b"back", &transmit(there.remote, there.local_ip))?;
    let back = receive(&four)?;
    assert_eq!((back.remote, &back.data[..]), (to_dual, &b"back"[..]));
    assert_eq!(back.ecn, Some(EcnCodepoint::Ce));
    Ok(())
}

#[test]
fn the_first_byte_of_a_connection_id_names_the_worker() -> io::Result<()> {
    const WORKERS: usize = 3;
    let workers = bind_workers(local(), WORKERS)?;
    steer(&workers)?;
    let from = bind(local(), false)?;
    let transmit = Transmit {
        destination: workers[0].address(),
        ecn: None,
        segment_size: None,
        src_ip: None,
    };
    for id in 0..200_u8 {
        let long = [0xc0, 0, 0, 0, 1, 8, id, 9, 9];
        let short = [0x40, id, 9, 9, 9, 9, 9, 9, 9];
        for packet in [long, short] {
            from.send(&packet, &transmit)?;
            let batch = receive(&workers[usize::from(id) % WORKERS])?;
            assert_eq!(batch.data, packet[..], "connection ID {id}");
        }
    }
    Ok(())
}

#[test]
fn the_path_mtu_is_the_interfaces_less_headers() {
    // Loopback: 65536 by default, over what IPv4 can carry.
    assert_eq!(
        path_mtu("127.0.0.1:4433".parse().expect("an address")),
        65_507
    );
    assert!(path_mtu("192.0.2.1:4433".parse().expect("an address")) >= PATH_MTU_MIN);
}

fn local() -> SocketAddr {
    LOCAL.parse().expect("an address")
}

/// Waits for one batch.
fn receive(udp: &Udp) -> io::Result<Datagrams> {
    udp.socket().set_nonblocking(false)?;
    udp.socket().set_read_timeout(Some(PATIENCE))?;
    udp.receive(BytesMut::with_capacity(DATAGRAMS_SIZE))
        .map_err(|(_, error)| error)
}
