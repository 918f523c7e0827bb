//! A scene in which a bad network lies between agents and relay.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::scene::Scene;
use super::trial::Trial;
use crate::impair::{Link, Proxy};
use crate::stand::installation::Setup;
use crate::stand::process::free_udp_port;

/// A scene whose agents reach the relay through a bad network.
pub(super) struct Apart {
    pub(super) scene: Scene,
    pub(super) proxy: Proxy,
    lost: usize,
}

impl Apart {
    /// Starts all of it, with so many agents.
    pub(super) fn open(trial: &mut Trial<'_>, agents: usize) -> Result<Apart> {
        let public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp_port()));
        let setup = Setup {
            public: Some(public),
            ..trial.setup()
        };
        // The network is between two addresses, and the relay's is known by now.
        let scene = Scene::prepare(trial, setup)?;
        let seed = trial.chance(u64::MAX);
        let proxy = Proxy::start(public, scene.installation.listen(), Link::CLEAN, seed)?;
        Ok(Apart {
            scene: scene.with_agents(agents)?,
            proxy,
            lost: 0,
        })
    }

    /// Sessions that the relay has lost since the last call.
    pub(super) fn sessions_lost(&mut self) -> u64 {
        let now = self.scene.relay_lines("session lost");
        let before = std::mem::replace(&mut self.lost, now);
        (now - before) as u64
    }
}
