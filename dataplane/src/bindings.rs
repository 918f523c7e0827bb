//! Which addresses applications connect to, and whether they could be opened. Opens them; the
//! workers accept.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};

use tracing::{info, warn};
use underpass_proto::{Fault, HycoName};

use crate::io::socket;
use crate::listening::Change;
use crate::worker::Running;

/// All bindings of a relay or a sender.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    open: HashMap<HycoName, Open>,
    failed: HashMap<HycoName, (SocketAddr, std::io::Error)>,
    next_number: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    wanted: SocketAddr,
    bound: SocketAddr,
}

/// What the workers have to do.
#[derive(Debug)]
pub(crate) enum Step {
    /// Accept here: a listener for each worker.
    Bind {
        /// Names the binding.
        number: u64,
        /// Whose.
        hyco: HycoName,
        /// One per worker.
        listeners: Vec<TcpListener>,
    },
    /// Accept no more.
    Unbind(u64),
}

/// Tells every worker its part; `message` makes what is said of it.
pub(crate) fn tell<M>(
    steps: impl IntoIterator<Item = Step>,
    workers: &[Running<M>],
    message: impl Fn(Change) -> M,
) {
    for step in steps {
        match step {
            Step::Unbind(number) => {
                for worker in workers {
                    // One that ended is noticed by its supervisor.
                    let _ = worker.handle.send(message(Change::Unbind(number)));
                }
            }
            Step::Bind {
                number,
                hyco,
                listeners,
            } => {
                for (worker, listener) in workers.iter().zip(listeners) {
                    let bind = Change::Bind {
                        number,
                        hyco: hyco.clone(),
                        listener: listener.into(),
                    };
                    if !worker.handle.send(message(bind)) {
                        warn!(%hyco, "a worker does not take its binding");
                    }
                }
            }
        }
    }
}

impl Bindings {
    /// Compares what is open with what is wanted; what could not be opened is a fault, and tried
    /// again at the next call.
    pub(crate) fn apply<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a HycoName, SocketAddr)>,
        workers: usize,
    ) -> Vec<Step> {
        let wanted: HashMap<&HycoName, SocketAddr> = wanted.collect();
        let mut steps = Vec::new();
        self.open.retain(|name, open| {
            let stays = wanted.get(name) == Some(&open.wanted);
            if !stays {
                info!(hyco = %name, binding = %open.bound, "binding closed");
                steps.push(Step::Unbind(open.number));
            }
            stays
        });
        self.failed.clear();
        for (name, wanted) in wanted {
            if !self.open.contains_key(name) {
                steps.extend(self.bind(name, wanted, workers));
            }
        }
        steps
    }

    fn bind(&mut self, name: &HycoName, wanted: SocketAddr, workers: usize) -> Option<Step> {
        let opened = socket::listeners(wanted, workers).and_then(|listeners| {
            Ok((
                listeners.first().map(TcpListener::local_addr).transpose()?,
                listeners,
            ))
        });
        match opened {
            Ok((bound, listeners)) => {
                self.next_number += 1;
                let (number, bound) = (self.next_number, bound.unwrap_or(wanted));
                info!(hyco = %name, binding = %bound, "binding open");
                self.open.insert(
                    name.clone(),
                    Open {
                        number,
                        wanted,
                        bound,
                    },
                );
                Some(Step::Bind {
                    number,
                    hyco: name.clone(),
                    listeners,
                })
            }
            Err(error) => {
                self.failed.insert(name.clone(), (wanted, error));
                None
            }
        }
    }

    /// What could not be opened, and what to do about it.
    #[must_use]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let fault = |(name, (wanted, error)): (&HycoName, &(SocketAddr, std::io::Error))| Fault {
            hyco: Some(name.clone()),
            what: format!(
                "cannot open bind = \"{wanted}\": {error}; write another address, or end what holds this one"
            ),
        };
        self.failed.iter().map(fault).collect()
    }

    /// Why this one could not be opened, if so.
    #[must_use]
    pub(crate) fn error(&self, name: &HycoName) -> Option<&std::io::Error> {
        self.failed.get(name).map(|(_, error)| error)
    }

    /// The real address of a binding; port 0 is resolved.
    #[must_use]
    pub(crate) fn bound(&self, name: &HycoName) -> Option<SocketAddr> {
        self.open.get(name).map(|open| open.bound)
    }
}
