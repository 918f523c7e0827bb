//! The store on a real directory: what becomes of the files, who wins, and what a failing disk
//! leaves.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod crash;
mod failing;

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use underpass::files::definition::Definition;
use underpass::files::{Directory, Lock};
use underpass::store::{Code, Condition, Described, Put, Store};
use underpass_proto::key::Which;
use underpass_proto::{HycoName, Rule};

#[test]
fn a_definition_is_made_with_keys_listed_changed_in_place_and_deleted() {
    let place = Place::new();
    let (put, stored) = place
        .store
        .put(&definition("payroll-sql", "sql01", ""), &Condition::Absent)
        .unwrap();
    assert_eq!(put, Put::Created);
    assert_eq!(
        place.text("connections/payroll-sql.toml"),
        "host = \"sql01\"\nport = 1433\n"
    );
    let keys = place.store.keys(&name("payroll-sql")).unwrap();
    assert!(keys.listen.unwrap().secondary.is_some() && keys.send.unwrap().secondary.is_some());

    fs::write(
        place.path("connections/payroll-sql.toml"),
        "# ask Ann\nhost = 'sql01' # old\nport = 1433\n",
    )
    .unwrap();
    let changed = place
        .store
        .change(&name("PAYROLL-SQL"), |definition| {
            definition.endpoint.host = "sql02".parse().unwrap();
        })
        .unwrap();
    assert_eq!(
        place.text("connections/payroll-sql.toml"),
        "# ask Ann\nhost = \"sql02\" # old\nport = 1433\n"
    );
    assert_ne!(changed.etag(), stored.etag());

    place
        .store
        .put(&definition("archive-sql", "sql03", ""), &Condition::Any)
        .unwrap();
    let all: Vec<String> = place
        .store
        .list()
        .unwrap()
        .iter()
        .map(|stored| Described::of(stored).endpoint.unwrap())
        .collect();
    assert_eq!(all, ["sql03:1433", "sql02:1433"]);

    place
        .store
        .delete(&name("payroll-sql"), &Condition::Any)
        .unwrap();
    assert!(
        !place.path("connections/payroll-sql.toml").exists()
            && !place.path("keys/payroll-sql.toml").exists()
    );
    assert_eq!(
        place.store.find(&name("payroll-sql")).unwrap_err().code,
        Code::UnknownName
    );
}

#[test]
fn keys_are_made_by_an_order_and_not_by_a_look() {
    let place = Place::new();
    fs::write(
        place.path("connections/payroll-sql.toml"),
        "host = \"sql01\"\nport = 1433\n",
    )
    .unwrap();
    let names = [name("payroll-sql"), name("archive-sql")];
    let refusal = place.store.keys(&names[0]).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "keys/payroll-sql.toml: is not there; check the path"
    );
    assert_eq!(fs::read_dir(place.path("keys")).unwrap().count(), 0);

    // Somebody edits: nothing is made beside that.
    let lock = Lock::take(&place.path("run/edit.lock")).unwrap();
    let refusal = place
        .store
        .make_missing_keys(&names, Duration::ZERO)
        .unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    drop(lock);
    place
        .store
        .make_missing_keys(&names, Duration::ZERO)
        .unwrap();
    assert!(place.store.keys(&names[0]).is_ok());
    assert!(
        !place.path("keys/archive-sql.toml").exists(),
        "not without a definition"
    );
}

#[test]
fn the_namespaces_own_keys_are_made_under_the_lock_of_edits() {
    let place = Place::new();
    let files = [
        place.path("keys/_manage.toml"),
        place.path("keys/_relay.toml"),
    ];
    let are_there = || files.iter().map(|file| file.exists()).collect::<Vec<_>>();
    let lock = Lock::take(&place.path("run/edit.lock")).unwrap();
    let refusal = place.store.make_namespace_keys(Duration::ZERO);
    assert_eq!(refusal.unwrap_err().code, Code::Busy);
    assert_eq!(are_there(), [false, false]);
    drop(lock);
    place.store.make_namespace_keys(Duration::ZERO).unwrap();
    assert_eq!(are_there(), [true, true]);
}

#[test]
fn a_name_typed_differently_is_told_what_was_meant() {
    let place = Place::new();
    place
        .store
        .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
        .unwrap();
    let refusal = place.store.find(&name("payrol-sql")).unwrap_err();
    assert_eq!(
        refusal.hint.unwrap(),
        "did you mean `payroll-sql`? `underpass connection list` shows all"
    );
}

#[test]
fn one_key_is_made_anew_and_the_three_others_stay() {
    let place = Place::new();
    place
        .store
        .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
        .unwrap();
    let name = name("payroll-sql");
    for (rule, which) in [
        (Rule::Listen, Which::Primary),
        (Rule::Listen, Which::Secondary),
        (Rule::Send, Which::Primary),
        (Rule::Send, Which::Secondary),
    ] {
        let before = place.store.keys(&name).unwrap();
        place.store.regenerate(&name, rule, which).unwrap();
        let after = place.store.keys(&name).unwrap();
        for (other_rule, other) in [
            (Rule::Listen, Which::Primary),
            (Rule::Listen, Which::Secondary),
            (Rule::Send, Which::Primary),
            (Rule::Send, Which::Secondary),
        ] {
            let key = |keys: &underpass_proto::HycoKeys| {
                keys.rule(other_rule)
                    .unwrap()
                    .which(other)
                    .cloned()
                    .unwrap()
            };
            assert_eq!(
                key(&before) == key(&after),
                (rule, which) != (other_rule, other)
            );
        }
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(place.path("keys/payroll-sql.toml"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn of_many_writers_with_one_etag_one_wins() {
    const WRITERS: u16 = 16;
    let place = Place::new();
    let (_, stored) = place
        .store
        .put(&definition("payroll-sql", "sql01", ""), &Condition::Any)
        .unwrap();
    let seen = Condition::Is(vec![stored.etag()]);
    let barrier = Barrier::new(WRITERS.into());
    let won: Vec<bool> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (place, seen, barrier) = (&place, &seen, &barrier);
                scope.spawn(move || {
                    // Each a process of its own, as far as locks go.
                    let store = Store::new(place.directory.clone());
                    barrier.wait();
                    match store.put(
                        &definition("payroll-sql", &format!("sql{writer}"), ""),
                        seen,
                    ) {
                        Ok(_) => true,
                        Err(refusal) => {
                            assert_eq!(refusal.code, Code::Changed);
                            false
                        }
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    });
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    let winner = won.iter().position(|won| *won).unwrap();
    assert_eq!(
        place.text("connections/payroll-sql.toml"),
        format!("host = \"sql{winner}\"\nport = 1433\n")
    );
}

#[test]
fn conditions_are_kept() {
    let place = Place::new();
    let payroll = definition("payroll-sql", "sql01", "");
    let (_, stored) = place.store.put(&payroll, &Condition::Any).unwrap();
    let old = Condition::Is(vec![underpass::store::ETag::of("something else")]);
    let code = |result: Result<(Put, underpass::store::Stored), underpass::store::Refusal>| {
        result.unwrap_err().code
    };
    assert_eq!(
        code(place.store.put(&payroll, &Condition::Absent)),
        Code::Exists
    );
    assert_eq!(code(place.store.put(&payroll, &old)), Code::Changed);
    assert_eq!(
        code(
            place
                .store
                .put(&definition("archive-sql", "a", ""), &Condition::Present)
        ),
        Code::Changed
    );
    assert_eq!(
        place.store.delete(&payroll.name, &old).unwrap_err().code,
        Code::Changed
    );
    place
        .store
        .delete(&payroll.name, &Condition::Is(vec![stored.etag()]))
        .unwrap();
}

#[test]
fn what_would_be_a_fault_is_refused_with_its_reason() {
    let place = Place::new();
    place
        .store
        .put(
            &definition("payroll-sql", "a", "bind = \"127.0.0.1:5000\"\n"),
            &Condition::Any,
        )
        .unwrap();
    let taken = place
        .store
        .put(
            &definition(
                "archive-sql",
                "a",
                "bind = \"0.0.0.0:5000\"\nallow_from = [\"10.0.0.0/8\"]\n",
            ),
            &Condition::Any,
        )
        .unwrap_err();
    assert_eq!(
        (taken.code, taken.to_string().as_str()),
        (
            Code::BindingTaken,
            "the binding 0.0.0.0:5000 is taken by payroll-sql (it has 127.0.0.1:5000)"
        )
    );
    assert!(
        !place.path("connections/archive-sql.toml").exists()
            && !place.path("keys/archive-sql.toml").exists(),
        "nothing is left behind"
    );
    let open = place
        .store
        .change(&name("payroll-sql"), |definition| {
            definition.bind = "0.0.0.0:5000".parse().ok();
        })
        .unwrap_err();
    assert_eq!(open.code, Code::Invalid);
    assert!(
        open.to_string().contains("is open to other machines"),
        "{open}"
    );
}

#[test]
fn a_file_with_a_fault_is_not_overwritten() {
    let place = Place::new();
    let text = "host = \"sql01\"\nprot = 1433\n";
    fs::write(place.path("connections/payroll-sql.toml"), text).unwrap();
    let refusal = place
        .store
        .put(&definition("payroll-sql", "sql02", ""), &Condition::Any)
        .unwrap_err();
    assert_eq!(refusal.code, Code::FaultyFile);
    assert_eq!(
        refusal.errors[1],
        "connections/payroll-sql.toml:2: unknown field \"prot\"; did you mean `port`?"
    );
    assert_eq!(place.text("connections/payroll-sql.toml"), text);
    place
        .store
        .delete(&name("payroll-sql"), &Condition::Any)
        .unwrap();
}

#[test]
fn creation_beyond_the_edition_is_refused() {
    let place = Place::new();
    fs::write(place.path("namespace.toml"), "edition = \"free\"\n").unwrap();
    for number in 1..=5 {
        place
            .store
            .put(
                &definition(&format!("payroll-{number}"), "a", ""),
                &Condition::Any,
            )
            .unwrap();
    }
    let sixth = definition("payroll-6", "a", "");
    let refusal = place.store.put(&sixth, &Condition::Any).unwrap_err();
    assert_eq!(refusal.code, Code::EditionLimit);
    assert_eq!(
        refusal.to_string(),
        "the limit of 5 hybrid connections (edition free) is reached: there are 5"
    );
    place
        .store
        .put(&definition("payroll-5", "b", ""), &Condition::Any)
        .unwrap();
    place
        .store
        .delete(&name("payroll-1"), &Condition::Any)
        .unwrap();
    place.store.put(&sixth, &Condition::Any).unwrap();
}

/// A fresh directory and its store.
struct Place {
    _folder: tempfile::TempDir,
    directory: Directory,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        Self {
            _folder: folder,
            store: Store::new(directory.clone()),
            directory,
        }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.directory.root().join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }
}

fn definition(of: &str, host: &str, more: &str) -> Definition {
    Definition::parse(
        name(of),
        "",
        &format!("host = \"{host}\"\nport = 1433\n{more}"),
    )
    .unwrap()
}

fn name(text: &str) -> HycoName {
    text.parse().unwrap()
}
