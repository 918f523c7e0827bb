//! Other systems: `quinn-udp` receives and sends, datagrams are not steered, and the interface's
//! MTU is not asked for.

use std::io::IoSliceMut;

use quinn_udp::RecvMeta;

use super::*;

impl Udp {
    /// Receives one batch into an empty buffer of at least `BATCH_SIZE` bytes.
    pub(in crate::io) fn receive(
        &self,
        mut data: BytesMut,
    ) -> Result<Datagrams, (BytesMut, io::Error)> {
        data.resize(data.capacity(), 0);
        let mut meta = [RecvMeta::default()];
        let received = self.state.recv(
            (&self.socket).into(),
            &mut [IoSliceMut::new(&mut data)],
            &mut meta,
        );
        let meta = &meta[0];
        data.truncate(if received.is_ok() { meta.len } else { 0 });
        if let Err(error) = received {
            return Err((data, error));
        }
        Ok(Datagrams {
            remote: SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()),
            local_ip: meta.dst_ip.map(|ip| ip.to_canonical()),
            ecn: meta
                .ecn
                .and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8)),
            stride: meta.stride.max(1),
            data,
        })
    }

    /// Sends a batch now.
    pub(in crate::io) fn send(&self, payload: &[u8], transmit: &Transmit) -> io::Result<()> {
        let destination = match transmit.destination {
            SocketAddr::V4(v4) if self.address.is_ipv6() => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            other => other,
        };
        let transmit = quinn_udp::Transmit {
            destination,
            ecn: transmit
                .ecn
                .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: payload,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }
}

pub(super) fn attach_program(_: &Udp, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn interface_mtu(_: SocketAddr) -> Option<u32> {
    None
}
