//! A supervisor beside workers that do what a test wants.

use std::thread;

use underpass_proto::{HostName, Key, Pin};

use super::*;
use crate::link::wants::{Want, by_relay};
use crate::worker::Handle;

const SOON: Duration = Duration::from_secs(20);

/// What a worker's thread does.
type Work = fn() -> std::io::Result<()>;

#[test]
fn who_is_asked_to_end_before_its_relay_is_found_ends() {
    let (asker, requests) = drain::pair();
    asker.ask(drain::Request::Stop);
    let relays = relays("no-such-relay.invalid");
    let environment = Environment::find(&relays, &settings(), &requests, None);
    assert!(environment.expect("nothing is wrong").is_none());
}

#[test]
fn a_relay_with_a_silent_name_server_holds_up_no_other_relay() {
    let (silent, _never) = silent_but_for("good.test");
    let (_asker, requests) = drain::pair();
    let both = [relays("silent.test"), relays("good.test")].concat();
    let found = await_name(&both, &silent, &requests, None);
    assert!(matches!(found, Ok(true)), "{found:?}");
    let literal = [relays("silent.test"), relays("127.0.0.1")].concat();
    let found = await_name(&literal, &silent, &requests, None);
    assert!(matches!(found, Ok(true)), "{found:?}");
}

#[test]
fn a_silent_name_server_delays_neither_a_stop_nor_a_deadline() {
    let (silent, never) = silent_but_for("good.test");
    let (asker, requests) = drain::pair();
    let alone = relays("silent.test");
    let over = Some(Instant::now());
    let late = await_name(&alone, &silent, &requests, over).expect_err("it is over");
    let expected = "cannot reach silent.test:4433 (udp): its name is not found";
    assert_eq!(late.to_string(), expected);
    // Asked to stop while the look-up is under way.
    let looking = thread::spawn(move || await_name(&alone, &silent, &requests, None));
    asker.ask(drain::Request::Stop);
    let until = Instant::now() + SOON;
    while !looking.is_finished() {
        assert!(Instant::now() < until, "it does not wait for the look-up");
        thread::yield_now();
    }
    let stopped = looking.join().expect("no panic");
    assert!(matches!(stopped, Ok(false)), "{stopped:?}");
    drop(never);
}

#[test]
fn a_configuration_of_no_use_is_not_told_to_the_workers_and_the_next_one_is() {
    let (asker, requests) = drain::pair();
    let (update, updates) = bounded(2);
    for config in [Config::OfNoUse, Config::Good] {
        update.send(config).expect("there is room");
    }
    drop(update);
    let (handle, inbox) = Handle::to_inbox();
    let mut workers = workers(handle, move || {
        let is_plan = |message: &Message<Wanted, ()>| matches!(message, Message::Plan(_));
        let plans = inbox.iter().take_while(is_plan).count();
        assert_eq!(plans, 1);
        Ok(())
    });
    let mut steward = Fake {
        plan: Arc::new(Wanted(relays("relay.test"))),
        asker,
    };
    let settings = settings();
    let ended = workers.supervise(&mut steward, &settings, &requests, updates);
    assert!(ended.is_ok(), "{ended:?}");
    let worker = workers.running.remove(0).thread.join();
    assert!(matches!(worker, Ok(Ok(()))), "{worker:?}");
}

#[test]
fn a_worker_that_ends_by_itself_is_told_with_its_reason() {
    let ends: [(Work, &str); 3] = [
        (
            || Err(std::io::Error::other("no more")),
            "a worker failed: no more",
        ),
        (|| Ok(()), "a worker failed: it ended"),
        (
            || std::panic::resume_unwind(Box::new(())),
            "a worker failed: it panicked",
        ),
    ];
    for (end, why) in ends {
        let mut workers = workers(Handle::to_inbox().0, end);
        let until = Instant::now() + SOON;
        let told = loop {
            match workers.look(false) {
                Err(told) => break told,
                Ok(over) => assert!(!over && Instant::now() < until, "{why}"),
            }
            thread::yield_now();
        };
        assert_eq!(told.to_string(), why);
    }
}

#[test]
fn a_check_names_why_it_was_refused() {
    let plan = Wanted(relays("relay.test"));
    for (code, words) in [
        (
            RefusedCode::TooManyListeners,
            "the relay refused to register payroll-sql: too many listeners",
        ),
        (
            RefusedCode::Overloaded,
            "the relay refused to register payroll-sql: relay overloaded",
        ),
        (
            RefusedCode::NotAuthorised,
            "the relay refused to register payroll-sql: unknown name, or a key that is not one of its listen keys",
        ),
    ] {
        let why = check(&plan, vec![refused("relay.test", code)]);
        assert_eq!(why.expect_err("it was refused").to_string(), words);
    }
}

#[test]
fn one_name_at_two_relays_is_checked_at_both() {
    let plan = Wanted([relays("relay.test"), relays("other.test")].concat());
    let code = RefusedCode::NotAuthorised;
    let both = ["relay.test", "other.test"];
    let why = check(&plan, both.map(|relay| refused(relay, code)).into());
    assert_eq!(
        why.expect_err("both refused").to_string(),
        "the relay refused to register payroll-sql: unknown name, or a key that is not one of its listen keys"
    );
    let granted = check(&plan, both.map(registered).into()).expect("both granted");
    assert_eq!(granted.len(), 2);
    // One that answers twice says nothing of the other.
    let all = vec![
        registered("relay.test"),
        registered("relay.test"),
        refused("other.test", code),
    ];
    let why = check(&plan, all);
    assert!(matches!(why, Err(Error::NotAuthorised(_))), "{why:?}");
}

#[test]
fn a_process_ends_for_want_of_a_right_once_every_relay_has_refused() {
    let (asker, requests) = drain::pair();
    let code = RefusedCode::NotAuthorised;
    let supervise = |all: Vec<Said>, asks_to_end: bool| {
        let (handle, inbox) = Handle::to_inbox();
        let mut workers = workers(handle, move || {
            inbox.recv().map(drop).map_err(std::io::Error::other)
        });
        let (say, said) = bounded(all.len());
        all.into_iter()
            .for_each(|it| say.send(it).expect("there is room"));
        workers.said = said;
        let mut steward = Fake {
            plan: Arc::new(Wanted(
                [relays("relay.test"), relays("other.test")].concat(),
            )),
            asker: asker.clone(),
        };
        if asks_to_end {
            asker.ask(drain::Request::Stop);
        }
        workers.supervise(&mut steward, &settings(), &requests, never())
    };
    let one = vec![refused("relay.test", code)];
    let ended = supervise(one, true);
    assert!(ended.is_ok(), "the other relay may answer yet: {ended:?}");
    let both = ["relay.test", "other.test"].map(|relay| refused(relay, code));
    let ended = supervise(both.into(), false);
    assert!(matches!(ended, Err(Error::NotAuthorised(_))), "{ended:?}");
}

#[test]
fn a_wrong_certificate_ends_a_check_only_where_the_relay_has_no_other_address() {
    let plan = Wanted(relays("relay.test"));
    let wrong = |has_one_address| Said::Lost {
        relay: endpoint("relay.test"),
        why: format!("{WRONG_CERTIFICATE} (unknown issuer)"),
        has_one_address,
    };
    let found = check(&plan, vec![wrong(false), registered("relay.test")]);
    assert_eq!(found.expect("the other address is the relay's").len(), 1);
    let why = check(&plan, vec![wrong(true), registered("relay.test")]);
    let why = why.expect_err("no other attempt helps").to_string();
    assert!(why.contains(WRONG_CERTIFICATE), "{why}");
    // The other address gives no answer: the certificate is the reason.
    let silent = Said::Lost {
        relay: endpoint("relay.test"),
        why: NO_ANSWER.to_owned(),
        has_one_address: false,
    };
    let why = check_until(Instant::now(), &plan, vec![wrong(false), silent]);
    let why = why.expect_err("none answered").to_string();
    assert!(why.contains(WRONG_CERTIFICATE), "{why}");
}

/// What a check finds whose workers say all this.
fn check(plan: &Wanted, all: Vec<Said>) -> Result<Vec<Checked>, Error> {
    check_until(Instant::now() + SOON, plan, all)
}

fn check_until(give_up: Instant, plan: &Wanted, all: Vec<Said>) -> Result<Vec<Checked>, Error> {
    let mut workers = workers(Handle::to_inbox().0, || Ok(()));
    let (say, said) = bounded(all.len());
    all.into_iter()
        .for_each(|it| say.send(it).expect("there is room"));
    workers.said = said;
    let found = workers.check(plan, give_up, SOON);
    workers.leave();
    found
}

fn registered(relay: &str) -> Said {
    Said::Registered {
        relay: endpoint(relay),
        hyco: "payroll-sql".parse().expect("a name"),
        endpoint: "db01.corp:1433".parse().expect("an endpoint"),
        rtt: Duration::ZERO,
    }
}

fn refused(relay: &str, code: RefusedCode) -> Said {
    Said::Refused {
        relay: endpoint(relay),
        hyco: "payroll-sql".parse().expect("a name"),
        code,
    }
}

/// Of the relay of this host, as its connection string names it.
fn endpoint(host: &str) -> Endpoint {
    relays(host)[0].endpoint.clone()
}

/// One, that does this.
fn workers(
    handle: Handle<Message<Wanted, ()>>,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Workers<Wanted, ()> {
    Workers {
        running: vec![Running {
            handle,
            thread: thread::spawn(work),
        }],
        said: never(),
    }
}

/// Finds this name at once, and no other one until the second part is dropped.
fn silent_but_for(name: &'static str) -> (Resolver, Sender<()>) {
    let (never, gate) = bounded::<()>(0);
    let lookup = move |host: &HostName| -> Answer {
        if host.as_str() != name {
            let _ = gate.recv();
            return Err(Failure::Silent);
        }
        Ok(Arc::new([resolve::Found {
            ip: "10.1.2.3".parse().expect("an address"),
            from_hosts_file: false,
        }]))
    };
    (Resolver::by(Arc::new(lookup)), never)
}

fn settings() -> Settings {
    Settings {
        io: io::Choice::Poll,
        workers: None,
        mtu_max: None,
        grace: Duration::ZERO,
        keep_alive: underpass_proto::limits::PING_AFTER,
    }
}

struct Wanted(Vec<Arc<Relay>>);

impl Plan for Wanted {
    fn relays(&self) -> &[Arc<Relay>] {
        &self.0
    }

    fn rule(&self) -> Rule {
        Rule::Listen
    }
}

enum Config {
    OfNoUse,
    Good,
}

/// Asks its process to end once it has a configuration.
struct Fake {
    plan: Arc<Wanted>,
    asker: drain::Asker,
}

impl Steward for Fake {
    type Config = Config;
    type Plan = Wanted;
    type Own = ();

    fn plan(&self) -> &Arc<Wanted> {
        &self.plan
    }

    fn update(&mut self, config: Config) -> Result<(), Error> {
        match config {
            Config::OfNoUse => Err(Error::Config("of no use".to_owned())),
            Config::Good => {
                self.asker.ask(drain::Request::Drain);
                Ok(())
            }
        }
    }
}

fn relays(host: &str) -> Vec<Arc<Relay>> {
    let mut want = Want::of_test(host, "payroll-sql", &Key::from_random([7; 32]));
    // Without one the system's certificates would be asked for, which a machine may not have.
    want.string.pins.push(Pin([7; 32]));
    by_relay(vec![want], Rule::Listen, &[], &[]).expect("a relay")
}
