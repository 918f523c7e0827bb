//! No space, a broken disk or a crash at each step of each edit: afterwards either the old or the
//! new is there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use underpass::files::keys;
use underpass::store::{Code, Condition, Put, Refusal, Store};
use underpass_proto::Rule;
use underpass_proto::key::Which;

use crate::failing::{Failing, WAYS, Way};
use crate::{Place, definition, name};

const DEFINITION: &str = "connections/payroll-sql.toml";
const KEYS: &str = "keys/payroll-sql.toml";

/// More steps than any edit has: a creation has ten.
const STEPS_MAX: usize = 50;

#[test]
fn a_creation_leaves_all_or_nothing_that_hurts() {
    at_each_step(
        |_| {},
        |store| {
            store
                .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
                .map(drop)
        },
        |before, after| {
            assert_eq!(before.definition, None);
            assert!(
                after.definition.is_none()
                    || after.definition.as_deref() == Some("host = \"sql01\"\nport = 1433\n"),
                "{after:?}"
            );
            assert!(
                after.definition.is_none() || after.keys.is_some(),
                "never a definition without its keys: {after:?}"
            );
        },
    );
}

#[test]
fn a_change_leaves_the_old_definition_or_the_new() {
    at_each_step(
        existing,
        |store| {
            store
                .change(&name("payroll-sql"), |definition| {
                    definition.endpoint.host = "sql02".parse().unwrap();
                })
                .map(drop)
        },
        |before, after| {
            let new = before
                .definition
                .as_ref()
                .map(|text| text.replace("sql01", "sql02"));
            assert!(
                after.definition == before.definition || after.definition == new,
                "{after:?}"
            );
            assert_eq!(after.keys, before.keys);
        },
    );
}

#[test]
fn a_regenerated_key_leaves_the_old_keys_or_the_new() {
    at_each_step(
        existing,
        |store| store.regenerate(&name("payroll-sql"), Rule::Listen, Which::Primary),
        |before, after| {
            assert_eq!(after.definition, before.definition);
            let lines = |keys: &Option<String>| {
                keys.as_ref()
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let differing = lines(&before.keys)
                .iter()
                .zip(lines(&after.keys))
                .filter(|(old, new)| **old != *new)
                .count();
            assert!(differing <= 1, "one key at most");
        },
    );
}

#[test]
fn keys_of_a_deletion_that_was_cut_short_never_work_again() {
    for way in [Way::Crash, Way::CrashLosingNames] {
        let mut begun = 0;
        for step in 0..STEPS_MAX {
            let place = Place::new();
            existing(&place);
            let before = state(&place);
            let failing = Arc::new(Failing::new(step, way));
            let store = Store::on(place.directory.clone(), failing.clone());
            let deleted = store.delete(&name("payroll-sql"), &Condition::Any);
            failing.reboot();
            key_files_are_as_late_as_they_were(&place);
            // As at the next start of control, or by the next edit.
            place.store.finish_deletions().unwrap();
            let after = state(&place);
            let (put, _) = place
                .store
                .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
                .unwrap();
            let keys = state(&place).keys;
            match put {
                Put::Created => {
                    begun += 1;
                    assert_eq!((after.definition, after.keys), (None, None));
                    assert_ne!(keys, before.keys, "{way:?} at {step}");
                }
                Put::Replaced => {
                    assert_eq!(after, before);
                    assert_eq!(keys, before.keys, "{way:?} at {step}");
                }
            }
            if deleted.is_ok() {
                break;
            }
        }
        assert!(begun > 2, "{way:?}: {begun}");
    }
}

#[test]
fn a_definition_that_is_put_back_after_a_deletion_was_killed_stays() {
    let place = Place::new();
    existing(&place);
    let (definition, kept) = (place.path(DEFINITION), place.path("kept.toml"));
    let marked = place.path("keys/.payroll-sql.toml.underpass-deleted");
    fs::rename(place.path(KEYS), &marked).unwrap();
    fs::rename(&definition, &kept).unwrap();
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    // Put back with its old content and time: only the change of its name is new. Clocks of file
    // systems are coarse.
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        fs::rename(&kept, &definition).unwrap();
        if changed(&definition) > changed(&marked) {
            break;
        }
        assert!(Instant::now() < give_up, "the clock stands still");
        fs::rename(&definition, &kept).unwrap();
    }
    place.store.finish_deletions().unwrap();
    assert!(definition.exists() && !marked.exists());
    assert_eq!(state(&place).keys, None, "the old keys never work again");
}

#[test]
fn a_deletion_leaves_a_definition_with_keys_or_no_keys() {
    at_each_step(
        existing,
        |store| store.delete(&name("payroll-sql"), &Condition::Any),
        |before, after| {
            assert!(after.definition == before.definition || after.definition.is_none());
            assert!(after.keys == before.keys || after.keys.is_none());
            assert!(after.keys.is_none() || after.definition.is_some());
        },
    );
}

/// A definition that a crash brings back has its old time; by [`Failing`] it has a new one.
fn key_files_are_as_late_as_they_were(place: &Place) {
    for entry in fs::read_dir(place.path("keys")).unwrap() {
        let path = entry.unwrap().path();
        let permissions = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, permissions).unwrap();
    }
}

/// What the two files hold.
#[derive(PartialEq, Eq, Debug)]
struct State {
    definition: Option<String>,
    keys: Option<String>,
}

/// Does `edit` with a failure at its first step, then at its second, and so on until it comes to
/// its end.
fn at_each_step(
    prepare: impl Fn(&Place),
    edit: impl Fn(&Store) -> Result<(), Refusal>,
    judge: impl Fn(&State, &State),
) {
    for way in WAYS {
        let steps = (0..STEPS_MAX).find(|step| {
            let place = Place::new();
            prepare(&place);
            let before = state(&place);
            let failing = Arc::new(Failing::new(*step, way));
            let result = edit(&Store::on(place.directory.clone(), failing.clone()));
            failing.reboot();
            let after = state(&place);
            judge(&before, &after);
            sound(&place, &after);
            match result {
                // A deletion needs no room, and so has come to its end all the same.
                Ok(()) => !failing.has_failed(),
                Err(refusal) => {
                    assert_eq!(refusal.code, Code::Storage, "{way:?} at {step}: {refusal}");
                    assert!(refusal.hint.is_some());
                    again(&place, &edit);
                    false
                }
            }
        });
        assert!(steps.is_some_and(|steps| steps > 2), "{way:?}: {steps:?}");
    }
}

/// Both files can be read, or are not there.
fn sound(place: &Place, state: &State) {
    if let Some(text) = &state.definition {
        underpass::files::definition::Definition::parse(name("payroll-sql"), "", text).unwrap();
    }
    if state.keys.is_some() {
        keys::load("keys", &place.path(KEYS)).unwrap();
    }
}

/// On a disk that works again the edit can be made, or was made.
fn again(place: &Place, edit: &impl Fn(&Store) -> Result<(), Refusal>) {
    match edit(&place.store) {
        Ok(()) => {}
        Err(refusal) => assert_eq!(refusal.code, Code::UnknownName, "{refusal}"),
    }
    sound(place, &state(place));
}

fn existing(place: &Place) {
    place
        .store
        .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
        .unwrap();
}

fn state(place: &Place) -> State {
    let read = |path| fs::read_to_string(place.path(path)).ok();
    State {
        definition: read(DEFINITION),
        keys: read(KEYS),
    }
}
