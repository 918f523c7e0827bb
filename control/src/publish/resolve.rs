//! Which definitions hold when files contradict each other. Knows no files: definitions in,
//! definitions out.
//!
//! Who holds a name or a binding keeps it; a newcomer is the one at fault.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use underpass_proto::HycoName;

use super::bindings::Bindings;
use crate::files::Fault;
use crate::files::definition::Definition;

/// One file's say.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// The file, as people name it.
    pub(super) file: String,
    /// What it says now, where that is good.
    pub(super) present: Option<Definition>,
    /// Its last good content.
    pub(super) last_good: Option<Definition>,
}

/// What holds now.
#[derive(Default, Debug)]
pub(super) struct Resolved {
    /// The definitions that hold, with their files.
    pub(super) by_name: BTreeMap<HycoName, (String, Definition)>,
    /// Contradictions.
    pub(super) faults: Vec<Fault>,
}

impl Resolved {
    /// The definition that holds for `name` by this file.
    pub(super) fn by_file(&self, name: &HycoName, file: &str) -> Option<&Definition> {
        let (its_file, definition) = self.by_name.get(name)?;
        (its_file == file).then_some(definition)
    }
}

/// Decides, given what held until now. `candidates` are in the order of file names.
pub(super) fn resolve(candidates: Vec<Candidate>, before: &Resolved) -> Resolved {
    let mut faults = Vec::new();
    let mut chosen: BTreeMap<HycoName, Choice> = BTreeMap::new();
    for (name, candidate) in one_per_name(candidates, before, &mut faults) {
        let choice = Choice::new(candidate);
        chosen.insert(name, choice);
    }
    // Each round demotes one choice, from the present to the last good to none: it ends.
    while let Some((loser, winner)) = take_bindings(&mut chosen, before, &mut faults) {
        if let Some(choice) = chosen.get_mut(&loser) {
            faults.extend(choice.give_way(&loser, &winner));
        }
    }
    let by_name = chosen
        .into_iter()
        .filter_map(|(name, choice)| Some((name, (choice.candidate.file, choice.current?))))
        .collect();
    Resolved { by_name, faults }
}

/// A candidate and what is taken of it just now.
struct Choice {
    candidate: Candidate,
    current: Option<Definition>,
}

impl Choice {
    fn new(candidate: Candidate) -> Self {
        let current = candidate
            .present
            .clone()
            .or_else(|| candidate.last_good.clone());
        Self { candidate, current }
    }

    fn bind(&self) -> Option<SocketAddr> {
        self.current.as_ref()?.bind
    }

    /// Falls back to what is next best; tells of what was not to be.
    fn give_way(&mut self, name: &HycoName, winner: &Winner) -> Option<Fault> {
        let fallen = self.current.take()?;
        let last_good = self.candidate.last_good.take();
        self.current = last_good.filter(|last_good| fallen.bind != last_good.bind);
        let bind = fallen
            .bind
            .map_or_else(String::new, |bind| bind.to_string());
        let what = format!(
            "bind = \"{bind}\" is taken by {} (\"{}\" in {}); write another address or port",
            winner.name, winner.bind, winner.file
        );
        Some(Fault {
            file: self.candidate.file.clone(),
            line: fallen.bind_line,
            hyco: Some(name.clone()),
            what,
        })
    }
}

/// Who has a binding.
#[derive(Clone, Copy)]
struct Holder<'c> {
    name: &'c HycoName,
    file: &'c str,
    bind: SocketAddr,
}

impl Holder<'_> {
    /// Whether it had it before.
    fn had_it(&self, before: &Resolved) -> bool {
        let held = before.by_name.get(self.name);
        held.is_some_and(|(_, definition)| definition.bind == Some(self.bind))
    }

    fn won(&self) -> Winner {
        Winner {
            name: self.name.clone(),
            file: self.file.to_owned(),
            bind: self.bind,
        }
    }
}

struct Winner {
    name: HycoName,
    file: String,
    bind: SocketAddr,
}

/// Of several files whose names differ in case alone, the one that held the name, else the first.
fn one_per_name(
    candidates: Vec<Candidate>,
    before: &Resolved,
    faults: &mut Vec<Fault>,
) -> BTreeMap<HycoName, Candidate> {
    let mut by_name: BTreeMap<HycoName, Candidate> = BTreeMap::new();
    for candidate in candidates {
        let Some(name) = candidate
            .present
            .as_ref()
            .or(candidate.last_good.as_ref())
            .map(|definition| definition.name.clone())
        else {
            continue;
        };
        let Some(other) = by_name.remove(&name) else {
            by_name.insert(name, candidate);
            continue;
        };
        let holds = before
            .by_name
            .get(&name)
            .is_some_and(|(file, _)| *file == candidate.file);
        let (winner, loser) = if holds {
            (candidate, other)
        } else {
            (other, candidate)
        };
        let what = format!(
            "its name is equal to that of {} but for case, and that one is used; delete one of the two, or rename it",
            winner.file
        );
        faults.push(Fault::whole(loser.file, what).of(&name));
        by_name.insert(name, winner);
    }
    by_name
}

/// Assigns bindings in the order of names; a hybrid connection whose binding is taken falls back to
/// its next best definition. Ends early when an assigned binding must go back to the hybrid
/// connection that had it before: returns the one that loses it and the one that gets it.
fn take_bindings(
    chosen: &mut BTreeMap<HycoName, Choice>,
    before: &Resolved,
    faults: &mut Vec<Fault>,
) -> Option<(HycoName, Winner)> {
    let mut taken: Bindings<Holder<'_>> = Bindings::new();
    for (name, choice) in chosen {
        let bind = loop {
            let Some(bind) = choice.bind() else {
                break None;
            };
            let Some(other) = taken.overlapped(bind) else {
                break Some(bind);
            };
            let file = &choice.candidate.file;
            let own = Holder { name, file, bind };
            if own.had_it(before) && !other.had_it(before) {
                return Some((other.name.clone(), own.won()));
            }
            faults.extend(choice.give_way(name, &other.won()));
        };
        if let Some(bind) = bind {
            let file = &choice.candidate.file;
            taken.take(bind, Holder { name, file, bind });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::definition::overlap;

    #[test]
    fn of_two_that_want_one_binding_the_holder_keeps_it() {
        let before = resolve(
            vec![candidate("payroll-sql", Some("127.0.0.1:5000"))],
            &Resolved::default(),
        );
        let both = vec![
            candidate("archive-sql", Some("127.0.0.1:5000")),
            candidate("payroll-sql", Some("127.0.0.1:5000")),
        ];
        let after = resolve(both, &before);
        assert_eq!(names(&after), ["payroll-sql"]);
        let told = after.faults[0].to_string();
        assert_eq!(
            told,
            "connections/archive-sql.toml:3: bind = \"127.0.0.1:5000\" is taken by payroll-sql (\"127.0.0.1:5000\" in connections/payroll-sql.toml); write another address or port"
        );
    }

    #[test]
    fn without_a_holder_the_first_by_name_has_it() {
        let both = vec![
            candidate("archive-sql", Some("0.0.0.0:5000")),
            candidate("payroll-sql", Some("127.0.0.1:5000")),
        ];
        assert_eq!(names(&resolve(both, &Resolved::default())), ["archive-sql"]);
    }

    #[test]
    fn one_that_reaches_for_a_taken_binding_keeps_its_own() {
        let old = vec![
            candidate("archive-sql", Some("127.0.0.1:1")),
            candidate("payroll-sql", Some("127.0.0.1:2")),
        ];
        let before = resolve(old.clone(), &Resolved::default());
        let mut new = old;
        new[0].last_good = new[0].present.clone();
        new[0].present = candidate("archive-sql", Some("127.0.0.1:2")).present;
        let after = resolve(new, &before);
        assert_eq!(
            after.by_name[&"archive-sql".parse().unwrap()]
                .1
                .bind
                .unwrap()
                .to_string(),
            "127.0.0.1:1"
        );
        assert_eq!(after.faults.len(), 1);
    }

    #[test]
    fn bindings_can_be_swapped_and_port_zero_is_never_taken() {
        let before = resolve(
            vec![
                candidate("archive-sql", Some("127.0.0.1:1")),
                candidate("payroll-sql", Some("127.0.0.1:2")),
            ],
            &Resolved::default(),
        );
        let swapped = resolve(
            vec![
                candidate("archive-sql", Some("127.0.0.1:2")),
                candidate("payroll-sql", Some("127.0.0.1:1")),
            ],
            &before,
        );
        assert_eq!((names(&swapped).len(), swapped.faults.len()), (2, 0));
        let zero = resolve(
            vec![
                candidate("archive-sql", Some("127.0.0.1:0")),
                candidate("payroll-sql", Some("127.0.0.1:0")),
            ],
            &Resolved::default(),
        );
        assert_eq!(zero.faults, []);
    }

    #[test]
    fn a_newcomer_that_wants_all_addresses_gives_way_to_the_one_that_had_its_own() {
        let old = [
            candidate("payroll-sql", Some("10.0.0.1:5000")),
            candidate("tax-sql", Some("10.0.0.2:5000")),
        ];
        let before = resolve(old.to_vec(), &Resolved::default());
        let mut all = old.to_vec();
        all.insert(0, candidate("archive-sql", Some("0.0.0.0:5000")));
        let after = resolve(all, &before);
        assert_eq!(names(&after), ["payroll-sql", "tax-sql"]);
        let told = after.faults[0].to_string();
        assert!(
            told.starts_with("connections/archive-sql.toml:3:") && after.faults.len() == 1,
            "{:?}",
            after.faults
        );
    }

    #[test]
    fn wide_addresses_cover_narrow_ones() {
        let overlaps =
            |one: &str, other: &str| overlap(one.parse().unwrap(), other.parse().unwrap());
        assert!(
            overlaps("0.0.0.0:1", "10.0.0.1:1")
                && overlaps("10.0.0.1:1", "[::]:1")
                && overlaps("[::]:1", "0.0.0.0:1")
        );
        assert!(
            !overlaps("0.0.0.0:1", "[::1]:1")
                && !overlaps("10.0.0.1:1", "10.0.0.2:1")
                && !overlaps("0.0.0.0:1", "0.0.0.0:2")
        );
    }

    #[test]
    fn names_equal_but_for_case_are_one() {
        let before = resolve(vec![candidate("payroll-sql", None)], &Resolved::default());
        let after = resolve(
            vec![
                candidate("PAYROLL-sql", None),
                candidate("payroll-sql", None),
            ],
            &before,
        );
        assert_eq!(names(&after), ["payroll-sql"]);
        assert!(after.faults[0].to_string().starts_with("connections/PAYROLL-sql.toml: its name is equal to that of connections/payroll-sql.toml but for case"));
    }

    fn candidate(name: &str, bind: Option<&str>) -> Candidate {
        let bind = bind.map_or_else(String::new, |bind| {
            format!("bind = \"{bind}\"\nallow_from = [\"10.0.0.0/8\"]")
        });
        let file = format!("connections/{name}.toml");
        let definition = Definition::parse(
            name.parse().unwrap(),
            &file,
            &format!("host = \"a\"\nport = 1\n{bind}"),
        )
        .unwrap();
        Candidate {
            file,
            present: Some(definition),
            last_good: None,
        }
    }

    fn names(resolved: &Resolved) -> Vec<String> {
        resolved
            .by_name
            .values()
            .map(|(_, definition)| definition.name.to_string())
            .collect()
    }
}
