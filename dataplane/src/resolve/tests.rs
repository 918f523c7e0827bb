//! Threads, with a resolver that answers as a test wants: at once, when it is let go, or never.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::*;

/// What must happen happens by then.
const MOMENT: Duration = Duration::from_secs(10);

/// Names below `.dead` are answered when this is dropped; all others at once.
struct Scene {
    resolver: Resolver,
    _let_go: Sender<()>,
    looked_up: Arc<AtomicUsize>,
    answered: Sender<Answered>,
    answers: Receiver<Answered>,
}

/// Which question, and how.
type Answered = (u32, Answer);

#[test]
fn silent_names_of_one_relay_hold_up_neither_another_relays_names_nor_relays_themselves() {
    let scene = Scene::open();
    for number in 0..200 {
        let hyco = format!("silent-{}", number % 50);
        scene.ask("a", Some(&hyco), &format!("s{number}.dead"), number);
    }
    scene.ask("a", None, "a.dead", 1_000);
    scene.ask("b", Some("payroll-sql"), "db.corp", 1_001);
    scene.ask("b", None, "b.example", 1_002);
    let mut answered = [scene.answer(), scene.answer()];
    answered.sort_unstable();
    assert_eq!(answered, [1_001, 1_002]);
}

#[test]
fn a_burst_for_one_name_asks_the_system_once() {
    let scene = Scene::open();
    for number in 0..100 {
        scene.ask("a", Some("payroll-sql"), "db.corp", number);
    }
    let mut answered: Vec<_> = (0..100).map(|_| scene.answer()).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..100).collect::<Vec<_>>());
    assert_eq!(scene.looked_up.load(Ordering::SeqCst), 1);
    scene.resolver.forget(Instant::now(), &name("db.corp"));
    scene.ask("a", Some("payroll-sql"), "db.corp", 100);
    assert_eq!(scene.answer(), 100);
    assert_eq!(scene.looked_up.load(Ordering::SeqCst), 2);
}

#[test]
fn who_waits_for_a_look_up_that_hangs_is_answered_when_its_time_is_over() {
    let scene = Scene::open();
    scene.ask("a", Some("payroll-sql"), "db.dead", 0);
    scene.await_look_ups(1);
    let asker = asker("a", Some("payroll-sql"));
    let (send, now) = (scene.answered.clone(), Instant::now());
    let waits = move |answer| {
        let _ = send.send((1, answer));
    };
    let asked = scene
        .resolver
        .ask(now, &name("db.dead"), &asker, now, waits);
    assert!(matches!(asked, Ok(Asked::Later)), "{asked:?}");
    let answered = scene.answers.recv_timeout(MOMENT);
    assert_eq!(answered, Ok((1, Err(Failure::Silent))));
}

#[test]
fn without_any_thread_who_waits_is_answered_at_once() {
    let scene = Scene::open();
    let lane = &scene.resolver.relays.0;
    for (threads, answers) in [(2, 0), (1, 1)] {
        let send = scene.answered.clone();
        let waits = move || -> Waits {
            Box::new(move |answer| {
                let _ = send.send((0, answer));
            })
        };
        let (asker, now) = (asker("a", None), Instant::now());
        let mut state = lane.open();
        let host = format!("relay-{threads}.example");
        state
            .line
            .ask(now, &name(&host), &asker, now + MOMENT, waits);
        // As if this many had been there when one of them could not be started.
        state.threads = threads;
        drop(state);
        lane.not_started(&io::Error::from_raw_os_error(libc::EAGAIN));
        let answered: Vec<_> = scene.answers.try_iter().collect();
        assert_eq!(answered.len(), 2 * answers, "{threads}");
        assert!(
            answered
                .iter()
                .all(|(_, it)| *it == Err(Failure::Exhausted))
        );
    }
}

#[test]
fn names_of_several_hybrid_connections_are_resolved_at_once() {
    let scene = Scene::open();
    for number in 0..20 {
        let hyco = format!("hyco-{number}");
        scene.ask("a", Some(&hyco), &format!("s{number}.dead"), number);
    }
    scene.await_look_ups(20);
}

#[test]
fn the_system_knows_localhost_and_no_name_below_invalid() {
    let found = system::look_up(&name("localhost")).expect("localhost is found");
    assert!(found.iter().all(|found| found.ip.is_loopback()));
    let none = system::look_up(&name("name.invalid"));
    assert!(none.is_err(), "{none:?}");
}

impl Scene {
    fn open() -> Self {
        let (let_go, gate) = bounded::<()>(0);
        let looked_up = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&looked_up);
        let lookup = move |name: &HostName| -> Answer {
            count.fetch_add(1, Ordering::SeqCst);
            if name.as_str().ends_with(".dead") {
                let _ = gate.recv();
                return Err(Failure::Silent);
            }
            Ok(Arc::new([Found {
                ip: "10.1.2.3".parse().expect("an address"),
                from_hosts_file: false,
            }]))
        };
        let (answered, answers) = bounded(2_048);
        Self {
            resolver: Resolver::by(Arc::new(lookup)),
            _let_go: let_go,
            looked_up,
            answered,
            answers,
        }
    }

    fn ask(&self, relay: &str, hyco: Option<&str>, host: &str, number: u32) {
        let asker = asker(relay, hyco);
        let now = Instant::now();
        let send = self.answered.clone();
        let waits = move |answer| {
            let _ = send.send((number, answer));
        };
        let asked = self
            .resolver
            .ask(now, &name(host), &asker, now + MOMENT, waits);
        if let Asked::Known(answer) = asked.expect("there is a place") {
            let _ = self.answered.send((number, answer));
        }
    }

    /// Waits until the system was asked so often.
    fn await_look_ups(&self, count: usize) {
        let until = Instant::now() + MOMENT;
        while self.looked_up.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < until, "{count} are under way at once");
            thread::yield_now();
        }
    }

    /// Who is answered next.
    fn answer(&self) -> u32 {
        let (number, answer) = self.answers.recv_timeout(MOMENT).expect("an answer");
        assert!(answer.is_ok(), "{number}: {answer:?}");
        number
    }
}

fn asker(relay: &str, hyco: Option<&str>) -> Asker {
    Asker {
        relay: format!("{relay}.example:4433")
            .parse()
            .expect("an endpoint"),
        hyco: hyco.map(|hyco| hyco.parse().expect("a name")),
    }
}

fn name(text: &str) -> HostName {
    text.parse().expect("a name")
}
