//! Which keys were proven, and when each was last of use: an operator sees when an old one can go.
//! Knows identifiers alone, never a key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use underpass_proto::snapshot::KeyUse;
use underpass_proto::{HycoName, KeyId, Rule};

use super::plan::Plan;

/// Keys that are remembered of one hybrid connection: the four of today and a few rotations. The
/// one that was not used for longest goes first.
const KEYS_MAX: usize = 16;

/// All that were proven since the relay started. Touched once per registration.
#[derive(Debug, Default)]
pub(crate) struct KeyBook(Mutex<HashMap<HycoName, Vec<Used>>>);

#[derive(Clone, Copy, Debug)]
struct Used {
    rule: Rule,
    key_id: KeyId,
    last_unix_ms: u64,
}

impl KeyBook {
    /// A registration was granted on this key.
    pub(crate) fn proven(&self, name: &HycoName, rule: Rule, key_id: KeyId, unix_ms: u64) {
        let mut by_name = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match by_name.get_mut(name) {
            Some(keys) => touch(keys, rule, key_id, unix_ms),
            None => touch(
                by_name.entry(name.clone()).or_default(),
                rule,
                key_id,
                unix_ms,
            ),
        }
    }

    /// The keys of a hybrid connection, with the registrations that stand on them now, which is a
    /// use of them.
    #[must_use]
    pub(crate) fn report(
        &self,
        name: &HycoName,
        standing: &[(Rule, KeyId)],
        unix_ms: u64,
    ) -> Vec<KeyUse> {
        let mut by_name = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = by_name.get_mut(name) else {
            return Vec::new();
        };
        for (rule, key_id) in standing {
            touch(keys, *rule, *key_id, unix_ms);
        }
        let registrations = |used: &Used| {
            let on_it = standing
                .iter()
                .filter(|on| **on == (used.rule, used.key_id));
            u32::try_from(on_it.count()).unwrap_or(u32::MAX)
        };
        keys.iter()
            .map(|used| KeyUse {
                rule: used.rule,
                key_id: used.key_id,
                registrations: registrations(used),
                last_used_unix_ms: used.last_unix_ms,
            })
            .collect()
    }

    /// Forgets what is no longer defined.
    pub(crate) fn define(&self, plan: &Plan) {
        let mut by_name = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.retain(|name, _| plan.hyco(name).is_some());
    }
}

fn touch(keys: &mut Vec<Used>, rule: Rule, key_id: KeyId, unix_ms: u64) {
    let known = keys
        .iter_mut()
        .find(|used| used.rule == rule && used.key_id == key_id);
    if let Some(used) = known {
        used.last_unix_ms = used.last_unix_ms.max(unix_ms);
        return;
    }
    if keys.len() >= KEYS_MAX
        && let Some(oldest) = (0..keys.len()).min_by_key(|&at| keys[at].last_unix_ms)
    {
        keys.remove(oldest);
    }
    keys.push(Used {
        rule,
        key_id,
        last_unix_ms: unix_ms,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> HycoName {
        "payroll-sql".parse().expect("a name")
    }

    fn id(number: u8) -> KeyId {
        KeyId([number; 8])
    }

    #[test]
    fn a_key_is_in_use_while_a_registration_stands_on_it() {
        let book = KeyBook::default();
        book.proven(&name(), Rule::Listen, id(1), 10);
        book.proven(&name(), Rule::Send, id(1), 20);
        let standing = [(Rule::Listen, id(1)), (Rule::Listen, id(1))];
        let keys = book.report(&name(), &standing, 99);
        let told: Vec<_> = keys
            .iter()
            .map(|key| (key.rule, key.registrations, key.last_used_unix_ms))
            .collect();
        assert_eq!(told, [(Rule::Listen, 2, 99), (Rule::Send, 0, 20)]);
    }

    #[test]
    fn of_too_many_keys_the_one_that_was_not_used_for_longest_goes() {
        let book = KeyBook::default();
        for number in 0..=16 {
            book.proven(&name(), Rule::Listen, id(number), u64::from(number) + 1);
        }
        book.proven(&name(), Rule::Listen, id(1), 100);
        book.proven(&name(), Rule::Listen, id(17), 101);
        let keys = book.report(&name(), &[], 102);
        assert_eq!(keys.len(), KEYS_MAX);
        let has = |number| keys.iter().any(|key| key.key_id == id(number));
        assert!(!has(0) && has(1) && !has(2) && has(17));
    }
}
