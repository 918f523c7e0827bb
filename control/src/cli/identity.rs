//! Who this agent or sender is to its relays, kept over restarts where something can be kept.

use tracing::warn;
use underpass_proto::{AgentId, Role};

use super::source::Source;
use crate::files::identity;

/// The identity of a process that serves. A check has none: it writes nothing.
pub(super) fn keep(role: Role, source: &Source) -> AgentId {
    let beside = match source {
        Source::Config(path) => Some(path.as_path()),
        Source::File(_) | Source::Text(_) => None,
    };
    let places = identity::places(beside, |name| std::env::var_os(name));
    let random = AgentId(rand::random());
    let kept = identity::load_or_make(role, &source.identity(), &places, random);
    if let Some(why) = kept.lost {
        warn!(%why, "the identity cannot be kept: after a restart the relay counts the process before for up to 15 s; \
            StateDirectory= of the unit, or XDG_STATE_HOME, names a folder for it");
    }
    kept.agent_id
}
