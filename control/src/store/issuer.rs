//! Connection strings of one hybrid connection, made of what was read once: its definition, its
//! keys, and where the relay is.

use underpass_proto::key::Which;
use underpass_proto::{ConnectionString, HycoKeys, Key, Rule};

use crate::files::definition::Definition;
use crate::files::namespace::Namespace;
use crate::files::tls::Identity;

/// Knows the keys, and can make every connection string.
pub struct Issuer {
    pub(super) definition: Definition,
    pub(super) namespace: Namespace,
    pub(super) identity: Identity,
    pub(super) keys: HycoKeys,
}

impl Issuer {
    /// One of the four keys; there may be no secondary one.
    #[must_use]
    pub fn key(&self, rule: Rule, which: Which) -> Option<&Key> {
        self.keys.rule(rule)?.which(which)
    }

    /// The string with that key. Its target is what an agent may dial, and what a sender may take
    /// on its machine, unless a file there says more.
    #[must_use]
    pub fn string(&self, rule: Rule, which: Which) -> Option<ConnectionString> {
        let Self {
            definition,
            namespace,
            ..
        } = self;
        Some(ConnectionString {
            relay_host: namespace.public_address.host.clone(),
            relay_port: namespace.public_address.port.get(),
            key: self.key(rule, which)?.clone(),
            rule,
            pins: vec![self.identity.pin],
            target: Some(definition.endpoint.clone()),
            name: definition.name.clone(),
        })
    }
}
