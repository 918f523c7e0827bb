//! Puts one wrong bit into what passes, for `--spoil`: a forwarder in front of the service that
//! shows that `--once` notices.
//!
//! Only the way through the relay leads over it. Everything else of the demo is as without it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use clap::ValueEnum;

/// Where the wrong bit goes, counted in each flow: within the body of its second request, behind
/// the one that warms up.
const SPOILED_AT: u64 = 48 << 20;
/// Bytes of one read.
const READ_SIZE: usize = 256 * 1024;

/// The direction that gets the wrong bit.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the endpoint.
    ToApplication,
    /// From the application.
    ToEndpoint,
}

/// Forwards from a free port of loopback to `service`, until the process ends.
pub(super) fn start(service: SocketAddr, way: Way) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for agent in listener.incoming().flatten() {
            // Where the service does not answer, dropping the agent's connection says so.
            let _ = forward(agent, service, way);
        }
    });
    Ok(address)
}

fn forward(agent: TcpStream, service: SocketAddr, way: Way) -> io::Result<()> {
    let service = TcpStream::connect(service)?;
    let (from_agent, from_service) = (agent.try_clone()?, service.try_clone()?);
    thread::spawn(move || copy(from_agent, service, way == Way::ToEndpoint));
    thread::spawn(move || copy(from_service, agent, way == Way::ToApplication));
    Ok(())
}

/// An end in one direction is passed on, an error ends both.
fn copy(mut from: TcpStream, mut to: TcpStream, spoil: bool) {
    let mut copy = || -> io::Result<()> {
        let (mut chunk, mut at) = (vec![0; READ_SIZE], 0);
        loop {
            let len = from.read(&mut chunk)?;
            if len == 0 {
                return to.shutdown(Shutdown::Write);
            }
            if spoil {
                spoil_within(&mut chunk[..len], at);
            }
            at += len as u64;
            to.write_all(&chunk[..len])?;
        }
    };
    if copy().is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Turns one bit over if its place is in the chunk that begins at position `at`.
fn spoil_within(chunk: &mut [u8], at: u64) {
    let place = SPOILED_AT.checked_sub(at).map(usize::try_from);
    if let Some(Ok(place)) = place
        && let Some(byte) = chunk.get_mut(place)
    {
        *byte ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{SPOILED_AT, spoil_within};

    #[test]
    fn one_bit_is_wrong_in_one_chunk() {
        for (at, wrong) in [
            (0, None),
            (SPOILED_AT - 4, None),
            (SPOILED_AT - 3, Some(3)),
            (SPOILED_AT, Some(0)),
            (SPOILED_AT + 1, None),
        ] {
            let mut chunk = [0; 4];
            spoil_within(&mut chunk, at);
            assert_eq!(chunk.iter().position(|byte| *byte == 1), wrong, "at {at}");
        }
    }
}
