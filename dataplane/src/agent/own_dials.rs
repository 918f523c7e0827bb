//! Notices a flow that this agent itself began: its endpoint led back to a binding of a relay or of a sender, whose application is then the
//! agent's own connection. One table for all workers, touched once per flow; holds recent connections only, and knows no sockets.
//!
//! A chain of hybrid connections is allowed as long as none comes twice. What a NAT changes on the way is not recognised here.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use underpass_proto::{Endpoint, FlowCode, HycoName};

/// How long a connection is remembered: from the dial to the Open that it causes are a round trip to the relay and the relay's own work.
/// A session that has been silent for longer than 1.75 s gets no flows.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// Connections that are remembered: the newest, some 2 MB. A loop that is missed once is found at its next turn.
const KEPT_MAX: usize = 16_384;

/// The longest chain of hybrid connections through one agent.
pub(crate) const HOPS_MAX: usize = 8;

/// The hybrid connections that a connection came through, the last one at the end.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Hops {
    ids: [u64; HOPS_MAX],
    count: usize,
}

/// Recent connections of this agent, by their own address.
#[derive(Debug, Default)]
pub(crate) struct OwnDials {
    recent: Mutex<Recent>,
    /// Relay and name as one number. Keyed by chance, so that no relay can choose a name that equals another.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Recent {
    by_address: FxHashMap<SocketAddr, (Instant, Hops)>,
    /// In the order of their times.
    order: VecDeque<(Instant, SocketAddr)>,
}

impl OwnDials {
    /// The chain of a connection that is to be made for this hybrid connection of this relay. `application` is who the relay says has connected;
    /// a probe has none.
    ///
    /// # Errors
    /// [`FlowCode::Loop`]: the application is a connection of this agent, for the same hybrid connection or through too many others.
    pub(crate) fn hops(
        &self,
        relay: &Endpoint,
        hyco: &HycoName,
        application: Option<SocketAddr>,
    ) -> Result<Hops, FlowCode> {
        let id = self.hasher.hash_one((relay, hyco));
        let before = application.and_then(|application| self.of(application));
        before.unwrap_or_default().and(id).ok_or(FlowCode::Loop)
    }

    /// A connection was made from this address.
    pub(crate) fn made(&self, now: Instant, local: SocketAddr, hops: Hops) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let Recent { by_address, order } = &mut *recent;
        while let Some(&(at, address)) = order.front()
            && (order.len() >= KEPT_MAX || now.saturating_duration_since(at) > KEPT_FOR)
        {
            order.pop_front();
            // The address may have come again since.
            if by_address
                .get(&address)
                .is_some_and(|(made, _)| *made == at)
            {
                by_address.remove(&address);
            }
        }
        let local = canonical(local);
        by_address.insert(local, (now, hops));
        order.push_back((now, local));
    }

    fn of(&self, application: SocketAddr) -> Option<Hops> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, hops) = recent.by_address.get(&canonical(application))?;
        Some(*hops)
    }
}

impl Hops {
    /// With one more; `None`: it is there already, or there is no room.
    fn and(mut self, id: u64) -> Option<Self> {
        if self.ids[..self.count].contains(&id) {
            return None;
        }
        *self.ids.get_mut(self.count)? = id;
        self.count += 1;
        Some(self)
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        dials: OwnDials,
        now: Instant,
        next_port: u16,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                dials: OwnDials::default(),
                now: Instant::now(),
                next_port: 1,
            }
        }

        /// A flow of an application becomes a connection of the agent: its own address.
        fn flow(
            &mut self,
            relay: &str,
            hyco: &str,
            application: SocketAddr,
        ) -> Result<SocketAddr, FlowCode> {
            let relay = relay.parse().expect("an endpoint");
            let hyco = hyco.parse().expect("a name");
            let hops = self.dials.hops(&relay, &hyco, Some(application))?;
            self.next_port += 1;
            let local = SocketAddr::from(([127, 0, 0, 1], self.next_port));
            self.dials.made(self.now, local, hops);
            Ok(local)
        }
    }

    fn application() -> SocketAddr {
        "192.0.2.7:4711".parse().expect("an address")
    }

    #[test]
    fn an_endpoint_that_is_its_own_binding_is_found_at_the_second_flow() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        let again = scene.flow("relay:1", "payroll-sql", local);
        assert_eq!(again, Err(FlowCode::Loop));
        let mapped = "[::ffff:127.0.0.1]:2".parse().expect("an address");
        let again = scene.flow("relay:1", "Payroll-SQL", mapped);
        assert_eq!(again, Err(FlowCode::Loop));
    }

    #[test]
    fn a_chain_goes_on_until_one_comes_twice() {
        let mut scene = Scene::new();
        let mut local = application();
        for (relay, hyco) in [
            ("relay:1", "payroll-sql"),
            ("relay:1", "payroll-web"),
            ("other:1", "payroll-sql"),
        ] {
            local = scene.flow(relay, hyco, local).expect("a chain");
        }
        let back = scene.flow("relay:1", "payroll-web", local);
        assert_eq!(back, Err(FlowCode::Loop));
        for nth in 3..HOPS_MAX {
            let name = format!("payroll-{nth}");
            local = scene.flow("relay:1", &name, local).expect("a chain");
        }
        let beyond = scene.flow("relay:1", "one-more", local);
        assert_eq!(beyond, Err(FlowCode::Loop));
    }

    #[test]
    fn an_address_is_forgotten_and_the_table_has_an_end() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        scene.now += KEPT_FOR + Duration::from_millis(1);
        let other = scene.flow("relay:1", "payroll-sql", application());
        other.expect("an application's");
        let reused = scene.flow("relay:1", "payroll-sql", local);
        reused.expect("another's by now");
        for port in 0..=u16::MAX {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            scene.dials.made(scene.now, address, Hops::default());
        }
        let recent = scene.dials.recent.lock().expect("no panic");
        assert_eq!(
            (recent.by_address.len(), recent.order.len()),
            (KEPT_MAX, KEPT_MAX)
        );
    }
}
