//! Where a tunnel's two sides run: both on this machine's loopback, or in two network namespaces joined by a cable of 1,500 bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use underpass_tests::network::Machine;

/// Addresses of the two namespaces.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 2);

/// The near side has clients and relay, the far side agent and server.
#[derive(Debug)]
pub struct Site {
    apart: Option<Sides>,
}

#[derive(Debug)]
struct Sides {
    near: Machine,
    far: Machine,
}

impl Site {
    /// Both sides on loopback.
    #[must_use]
    pub fn loopback() -> Site {
        Site { apart: None }
    }

    /// Each side in a network namespace.
    ///
    /// # Errors
    /// When namespaces cannot be had; see [`Machine::unavailable`].
    pub fn apart() -> Result<Site> {
        let near = Machine::new("near", &[])?;
        let far = Machine::new("far", &[])?;
        near.join(NEAR, &far, FAR)?;
        Ok(Site {
            apart: Some(Sides { near, far }),
        })
    }

    /// Where the far side reaches the near one.
    #[must_use]
    pub fn relay_ip(&self) -> Ipv4Addr {
        self.apart.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| NEAR)
    }

    /// Where both sides reach a server.
    #[must_use]
    pub fn server_ip(&self) -> IpAddr {
        self.apart
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST, |_| FAR)
            .into()
    }

    /// A command beside clients and relay.
    #[must_use]
    pub fn near(&self, program: impl AsRef<OsStr>) -> Command {
        command(self.apart.as_ref().map(|sides| &sides.near), program)
    }

    /// A command beside agent and server.
    #[must_use]
    pub fn far(&self, program: impl AsRef<OsStr>) -> Command {
        command(self.apart.as_ref().map(|sides| &sides.far), program)
    }

    /// Runs a part of this program beside clients and relay.
    ///
    /// # Errors
    /// Those of `part`, and when the namespace cannot be entered.
    pub fn in_near<T: Send>(&self, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.apart.as_ref().map(|sides| &sides.near), part)
    }

    /// Runs a part of this program beside agent and server.
    ///
    /// # Errors
    /// As [`Self::in_near`].
    pub fn in_far<T: Send>(&self, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.apart.as_ref().map(|sides| &sides.far), part)
    }
}

fn command(machine: Option<&Machine>, program: impl AsRef<OsStr>) -> Command {
    match machine {
        // It becomes the program, so the process id is the program's.
        Some(machine) => machine.command(program),
        None => Command::new(program),
    }
}

/// A namespace is a matter of the thread, and threads that it starts are where it is.
fn enter<T: Send>(machine: Option<&Machine>, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(machine) = machine else {
        return part();
    };
    let network = machine.network();
    let entered = || {
        let file = File::open(&network)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", network.display()))?;
        part()
    };
    thread::scope(|scope| {
        scope
            .spawn(entered)
            .join()
            .expect("no panic in a namespace")
    })
}
