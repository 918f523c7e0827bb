//! A line alone, in a time of the test's own.

use std::sync::Arc;

use super::queues::QUESTIONS_MAX;
use super::*;
use crate::resolve::Found;

const BOUNDS: Bounds = Bounds {
    threads_max: 16,
    found_for: Duration::from_secs(3),
    failed_for: Duration::from_secs(1),
};

/// From a question to when its asker gives up.
const PATIENCE: Duration = Duration::from_secs(10);

struct Scene {
    line: Line<u32>,
    now: Instant,
}

#[test]
fn equal_questions_are_one_and_all_who_asked_are_answered() {
    let mut scene = Scene::open();
    for number in 0..20 {
        let relay = ["a", "b"][number as usize % 2];
        scene.ask(relay, "payroll-sql", "db.corp", number);
    }
    assert_eq!(scene.next().as_deref(), Some("db.corp"));
    scene.ask("a", "payroll-sql", "db.corp", 20);
    assert_eq!(scene.next(), None, "it is being asked for");
    let mut answered = scene.answer("db.corp", &found());
    answered.sort_unstable();
    assert_eq!(answered, (0..=20).collect::<Vec<_>>());
}

#[test]
fn an_answer_is_given_again_for_a_moment_and_not_for_longer() {
    for (answer, keep) in [
        (found(), BOUNDS.found_for),
        (Err(Failure::NotFound), BOUNDS.failed_for),
    ] {
        let mut scene = Scene::open();
        scene.ask("a", "payroll-sql", "db.corp", 1);
        scene.next();
        scene.answer("db.corp", &answer);
        scene.now += keep - Duration::from_millis(1);
        let known = scene.ask("b", "other-thing", "db.corp", 2);
        assert_eq!(known, Place::Known(answer.clone()));
        scene.now += Duration::from_millis(1);
        assert_eq!(
            scene.ask("b", "other-thing", "db.corp", 3),
            Place::Waits,
            "{answer:?}"
        );
    }
}

#[test]
fn an_answer_that_led_nowhere_is_asked_for_again() {
    let mut scene = Scene::open();
    scene.ask("a", "payroll-sql", "db.corp", 1);
    scene.next();
    scene.answer("db.corp", &found());
    scene.line.forget(scene.now, &name("db.corp"));
    assert_eq!(scene.ask("a", "payroll-sql", "db.corp", 2), Place::Waits);
    assert_eq!(scene.next().as_deref(), Some("db.corp"));
}

#[test]
fn a_machine_that_is_out_of_descriptors_is_no_answer() {
    let mut scene = Scene::open();
    scene.ask("a", "payroll-sql", "db.corp", 1);
    scene.next();
    assert_eq!(scene.answer("db.corp", &Err(Failure::Exhausted)), [1]);
    assert_eq!(scene.ask("a", "payroll-sql", "db.corp", 2), Place::Waits);
}

#[test]
fn silent_names_of_one_relay_leave_threads_to_every_other() {
    let mut scene = Scene::open();
    for number in 0..200 {
        let (hyco, host) = (format!("silent-{}", number % 50), format!("s{number}.a"));
        scene.ask("a", &hyco, &host, number);
    }
    assert_eq!(scene.start_all(), BOUNDS.threads_max / 2);
    // Others that do the same have less each, and none has nothing.
    for (relay, share) in [("b", 4), ("c", 2), ("d", 1)] {
        for number in 0..50 {
            let (hyco, host) = (format!("silent-{number}"), format!("s{number}.{relay}"));
            scene.ask(relay, &hyco, &host, number);
        }
        assert_eq!(scene.start_all(), share, "{relay}");
    }
    scene.ask("e", "payroll-sql", "db.corp", 1_000);
    assert_eq!(scene.next().as_deref(), Some("db.corp"));
}

#[test]
fn one_hybrid_connection_holds_a_few_threads_and_its_neighbours_have_theirs() {
    let mut scene = Scene::open();
    for number in 0..50 {
        scene.ask("a", "changes-often", &format!("s{number}.corp"), number);
    }
    assert_eq!(scene.start_all(), HYCO_THREADS_MAX);
    scene.ask("a", "payroll-sql", "db.corp", 50);
    assert_eq!(scene.next().as_deref(), Some("db.corp"));
}

#[test]
fn slow_names_leave_threads_to_quick_names_and_to_slow_names_of_other_relays() {
    let mut scene = Scene::open();
    let slow: Vec<_> = (0..6)
        .map(|number| (format!("hyco-slow-{number}"), format!("s{number}.dead")))
        .collect();
    for (hyco, host) in &slow {
        scene.ask("a", hyco, host, 0);
    }
    assert_eq!(scene.start_all(), slow.len(), "nobody knows yet");
    scene.now += Duration::from_secs(10);
    scene.ask("b", "payroll-sql", "once-slow.corp", 0);
    scene.next();
    for host in slow
        .iter()
        .map(|(_, host)| host.as_str())
        .chain(["once-slow.corp"])
    {
        let began = scene.now - Duration::from_secs(10);
        let silent = Err(Failure::Silent);
        scene.line.answered(scene.now, began, &name(host), &silent);
    }
    scene.now += BOUNDS.failed_for;
    for (hyco, host) in &slow {
        scene.ask("a", hyco, host, 0);
    }
    assert_eq!(scene.start_all(), BOUNDS.threads_max / SLOW_SHARE / 2);
    scene.ask("b", "payroll-sql", "once-slow.corp", 0);
    assert_eq!(scene.next().as_deref(), Some("once-slow.corp"));
    scene.ask("a", "payroll-sql", "db.corp", 1);
    assert_eq!(scene.next().as_deref(), Some("db.corp"));
}

#[test]
fn a_question_that_nobody_waits_for_any_more_takes_no_thread() {
    let mut scene = Scene::open();
    scene.ask("a", "payroll-sql", "late.corp", 1);
    scene.now += Duration::from_secs(1);
    scene.ask("a", "payroll-sql", "late.corp", 2);
    scene.ask("a", "payroll-sql", "other.corp", 3);
    scene.now += PATIENCE - Duration::from_secs(1);
    assert_eq!(scene.line.expired(scene.now), [1]);
    scene.now += Duration::from_secs(1);
    let mut expired = scene.line.expired(scene.now);
    expired.sort_unstable();
    assert_eq!((expired, scene.next()), (vec![2, 3], None));
    assert_eq!(
        (scene.line.waiters, scene.line.waiters_by_relay.len()),
        (0, 0)
    );
    assert!(scene.line.queues.is_empty() && scene.line.questions.is_empty());
}

#[test]
fn a_look_up_that_hangs_keeps_no_place_for_longer_than_its_askers_wait() {
    let mut scene = Scene::open();
    scene.ask("a", "payroll-sql", "hangs.corp", 0);
    assert_eq!(scene.next().as_deref(), Some("hangs.corp"));
    while scene.ask("a", "payroll-sql", "hangs.corp", 0) == Place::Joined {}
    let refused = scene.ask("a", "other-thing", "db.corp", 1);
    assert_eq!(refused, Place::Refused);
    scene.now += PATIENCE;
    assert!(scene.line.has_expired(scene.now));
    assert_eq!(scene.line.expired(scene.now).len(), WAITERS_MAX / 2);
    assert!(!scene.line.has_expired(scene.now));
    assert_eq!(scene.ask("a", "other-thing", "db.corp", 1), Place::Waits);
    assert_eq!(
        scene.ask("a", "payroll-sql", "hangs.corp", 2),
        Place::Joined
    );
    assert_eq!(scene.answer("hangs.corp", &found()), [2]);
}

#[test]
fn a_question_that_came_up_too_late_makes_way_for_the_next_one() {
    let mut scene = Scene::open();
    scene.ask("a", "payroll-sql", "late.corp", 1);
    scene.now += PATIENCE;
    scene.ask("a", "payroll-sql", "other.corp", 2);
    assert_eq!(scene.next().as_deref(), Some("other.corp"));
    assert_eq!(scene.line.expired(scene.now), [1]);
    assert_eq!(scene.answer("other.corp", &found()), [2]);
    assert!(scene.line.queues.is_empty() && scene.line.waiters == 0);
}

#[test]
fn an_askers_names_are_resolved_in_their_order_and_one_thread_says_whether_another_is_needed() {
    let mut scene = Scene::open();
    for (number, host) in ["first.corp", "second.corp", "first.corp", "third.corp"]
        .into_iter()
        .enumerate()
    {
        let relay = ["a", "b"][number / 2];
        scene.ask(relay, "payroll-sql", host, 0);
    }
    let mut started = Vec::new();
    while let Some((name, more)) = scene.line.next(scene.now) {
        started.push((name.as_str().to_owned(), more));
    }
    let expected = [
        ("first.corp", true),
        ("third.corp", true),
        ("second.corp", false),
    ];
    let expected = expected.map(|(host, more)| (host.to_owned(), more));
    assert_eq!(started, expected);
    assert!(scene.line.queues.is_empty());
}

#[test]
fn a_flood_of_questions_leaves_places_to_other_relays() {
    let mut scene = Scene::open();
    let mut places = 0;
    while scene.ask("a", "payroll-sql", "db.corp", 0) == Place::Waits {
        places += 1;
    }
    assert_eq!(places, WAITERS_MAX / 2);
    assert_eq!(scene.ask("b", "payroll-sql", "db.corp", 0), Place::Waits);
    let mut questions = 1;
    let mut scene = Scene::open();
    while scene.ask("a", "payroll-sql", &format!("s{questions}.a"), 0) == Place::Waits {
        questions += 1;
    }
    assert_eq!(questions - 1, QUESTIONS_MAX / 2);
    assert_eq!(scene.ask("b", "payroll-sql", "db.corp", 0), Place::Waits);
}

#[test]
fn what_is_remembered_of_names_is_bounded() {
    let mut scene = Scene::open();
    for number in 0..KNOWN_MAX + 10 {
        scene.now += Duration::from_millis(1);
        let host = format!("s{number}.corp");
        scene.ask("a", "payroll-sql", &host, 0);
        scene.next();
        scene.answer(&host, &found());
    }
    assert_eq!(scene.line.known.len(), KNOWN_MAX);
    let newest = format!("s{}.corp", KNOWN_MAX + 9);
    let known = scene.ask("a", "payroll-sql", &newest, 0);
    assert_eq!(known, Place::Known(found()));
}

impl Scene {
    fn open() -> Self {
        Self {
            line: Line::new(BOUNDS),
            now: Instant::now(),
        }
    }

    fn ask(&mut self, relay: &str, hyco: &str, host: &str, waits: u32) -> Place {
        let asker = Asker {
            relay: format!("{relay}.example:4433")
                .parse()
                .expect("an endpoint"),
            hyco: Some(hyco.parse().expect("a name")),
        };
        let give_up = self.now + PATIENCE;
        self.line
            .ask(self.now, &name(host), &asker, give_up, || waits)
    }

    fn next(&mut self) -> Option<String> {
        let (name, _) = self.line.next(self.now)?;
        Some(name.as_str().to_owned())
    }

    /// Starts as many as may be, and says how many.
    fn start_all(&mut self) -> usize {
        std::iter::from_fn(|| self.next()).count()
    }

    fn answer(&mut self, host: &str, answer: &Answer) -> Vec<u32> {
        self.line.answered(self.now, self.now, &name(host), answer)
    }
}

fn name(text: &str) -> HostName {
    text.parse().expect("a name")
}

fn found() -> Answer {
    Ok(Arc::new([Found {
        ip: "10.1.2.3".parse().expect("an address"),
        from_hosts_file: false,
    }]))
}
