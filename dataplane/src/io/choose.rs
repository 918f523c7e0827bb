//! Which backend to take: asked for, or found out by trying io_uring for real once.

use super::Choice;

/// A backend that works here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// io_uring.
    #[cfg(target_os = "linux")]
    Ring,
    /// Readiness by mio.
    Poll,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            #[cfg(target_os = "linux")]
            Self::Ring => "ring",
            Self::Poll => "poll",
        })
    }
}

/// The backend that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("io_uring cannot be used here: {why}; run with `--io auto` or `--io poll`")]
pub struct ChooseError {
    /// What the kernel said.
    pub why: String,
}

/// Takes the backend that was asked for, and says why, for the log. Tries io_uring unless `poll`
/// was asked for: a ring is set up and a datagram goes through it, because a kernel may know
/// io_uring and forbid it (a container's filter, a system setting), or lack an operation.
///
/// # Errors
/// Only for [`Choice::Ring`], where the kernel does not permit it.
pub fn choose(choice: Choice) -> Result<(Kind, String), ChooseError> {
    if choice == Choice::Poll {
        return Ok((Kind::Poll, "asked for".into()));
    }
    match (probe(), choice) {
        (Ok(kind), Choice::Ring) => Ok((kind, "asked for".into())),
        (Ok(kind), _) => Ok((kind, "io_uring works here".into())),
        (Err(why), Choice::Ring) => Err(ChooseError { why }),
        (Err(why), _) => Ok((Kind::Poll, format!("io_uring cannot be used here: {why}"))),
    }
}

#[cfg(not(target_os = "linux"))]
fn probe() -> Result<Kind, String> {
    Err("it is of Linux only".into())
}

#[cfg(target_os = "linux")]
fn probe() -> Result<Kind, String> {
    linux::probe().map(|()| Kind::Ring)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::time::{Duration, Instant};

    use crate::io::{Completion, Io, Ring, Transmit, udp};

    /// How long the datagram may take; it takes microseconds.
    const PATIENCE: Duration = Duration::from_secs(1);

    const WORD: &[u8] = b"underpass";

    pub(super) fn probe() -> Result<(), String> {
        let loopback = |ip: std::net::IpAddr| udp::bind(SocketAddr::from((ip, 0)), false);
        let udp = loopback(Ipv4Addr::LOCALHOST.into())
            .or_else(|_| loopback(Ipv6Addr::LOCALHOST.into()))
            .map_err(|error| format!("no loopback to try it on: {error}"))?;
        let address = udp.address();
        let ring = Ring::new(udp).map_err(|error| explain(&error))?;
        round_trip(ring, address).map_err(|error| explain(&error))
    }

    fn round_trip(mut ring: Ring, address: SocketAddr) -> io::Result<()> {
        let mut buffer = ring.datagram_buffer().ok_or(io::ErrorKind::OutOfMemory)?;
        buffer.data.extend_from_slice(WORD);
        let transmit = Transmit {
            destination: address,
            ecn: None,
            segment_size: None,
            src_ip: None,
        };
        ring.send_datagrams(buffer, &transmit);
        let give_up = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while Instant::now() < give_up {
            ring.wait(Some(give_up), &mut completions)?;
            let came = |completion: &Completion| matches!(completion, Completion::Datagrams(batch) if batch.data == WORD);
            if completions.drain(..).any(|completion| came(&completion)) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn explain(error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                format!("forbidden by a filter or a system setting ({error})")
            }
            Some(libc::ENOSYS) => format!("the kernel lacks it, or a filter hides it ({error})"),
            Some(libc::EINVAL) => format!("the kernel is older than 6.1 ({error})"),
            _ => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_can_always_be_had() {
        let (kind, why) = choose(Choice::Poll).expect("poll is everywhere");
        assert_eq!((kind, &why[..]), (Kind::Poll, "asked for"));
    }

    #[test]
    fn auto_says_what_it_took_and_why() {
        let (kind, why) = choose(Choice::Auto).expect("auto never fails");
        if kind == Kind::Poll {
            assert!(why.starts_with("io_uring cannot be used here: "), "{why}");
        } else {
            assert_eq!(why, "io_uring works here");
        }
        assert_eq!(choose(Choice::Ring).is_err(), kind == Kind::Poll);
    }
}
