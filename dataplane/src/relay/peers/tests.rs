//! The relay's sessions beside a peer that is played by hand: what it may do, how fast, and what is
//! made of a session that is gone.

use crossbeam_channel::{TryRecvError, bounded};
use underpass_proto::limits::{OPEN_DEADLINE, REPLACED_AFTER};
use underpass_proto::snapshot::HycoKeys;
use underpass_proto::wire::Probe;
use underpass_proto::{AgentId, Key, KeyPair, Nonce, Which};

use super::abuse::{OPENS_BURST, REFUSED_MAX};
use super::*;
use crate::quic::Event;
use crate::quic::pair::{HERE, Pair};
use crate::relay::listeners::{PendingProbe, Who};
use crate::relay::peers::succession::CONTEST_AGAIN_AFTER;

const NAME: &str = "payroll-sql";
const ENDPOINT: &str = "db01.corp:1433";
const AGENT: AgentId = AgentId([1; 16]);
const FIRST: Instance = Instance([1; 16]);
const SECOND: Instance = Instance([2; 16]);

#[test]
fn what_is_said_of_a_session_that_is_gone_changes_nothing() {
    let mut scene = Scene::registered();
    let gone = SessionId::of_test(77);
    let (now, register) = (scene.now(), scene.register(Rule::Listen));
    let Scene {
        pair, peers, plan, ..
    } = &mut scene;
    let quic = &mut pair.there.quic;
    let stream = other_stream();
    peers.up(now, quic, gone);
    assert_eq!(peers.len(), 1);
    assert_eq!(peers.stream_opened(now, gone, stream), Opened::Control);
    let read = peers.readable(now, quic, plan, gone, stream, &mut None);
    assert_eq!(read, Verdict::Fine);
    peers.writable(quic, gone);
    let said = peers.hello(quic, plan, gone, hello(Role::Agent, SECOND));
    assert_eq!(said, Verdict::Fine);
    let asked = peers.register(now, quic, plan, gone, register, &mut None);
    assert_eq!(asked, Verdict::Fine);
    assert_eq!(peers.deregister(now, gone, &name()), Verdict::Fine);
    assert_eq!(peers.draining(gone), Verdict::Fine);
    assert_eq!(peers.wasted(now, gone), Verdict::Fine);
    assert_eq!(peers.instance(gone), None);
    assert_eq!(peers.health(quic, now, gone), Health::Draining);
    assert!(!peers.may_send(gone, &name()));
    peers.tell_endpoint(quic, plan, gone, &name());
    assert_eq!(peers.gone(now, quic, gone, "gone"), None);
    assert_eq!(peers.registered().len(), 1, "the one that is there");
}

#[test]
fn the_log_names_who_is_gone_by_its_address_and_by_what_it_has_proven() {
    let mut scene = Scene::registered();
    let (stranger, far) = (scene.stranger(), scene.pair.far);
    let Scene {
        pair, peers, plan, ..
    } = &mut scene;
    let quic = &mut pair.there.quic;
    let greeted = peers.hello(quic, plan, stranger, hello(Role::Agent, SECOND));
    assert_eq!(greeted, Verdict::Fine);
    for (session, agent) in [(far, Some(AGENT)), (stranger, None)] {
        assert_eq!(peers.who(quic, session), (Some(HERE), agent));
        quic.abandon(session);
        assert_eq!(peers.who(quic, session), (Some(HERE), agent));
    }
}

#[test]
fn a_stream_beside_the_control_stream_is_none_of_its_frames() {
    let mut scene = Scene::registered();
    let now = scene.now();
    let Scene {
        pair, peers, plan, ..
    } = &mut scene;
    let other = other_stream();
    let quic = &mut pair.there.quic;
    let read = peers.readable(now, quic, plan, pair.far, other, &mut None);
    assert_eq!(read, Verdict::Fine);
    let opened = peers.stream_opened(now, pair.far, other);
    assert_eq!(opened, Opened::Misplaced, "an agent opens no flows");
}

#[test]
fn what_no_peer_says_ends_its_session() {
    let mut scene = Scene::greeted(Role::Agent);
    let verdict = scene.says(&Frame::Probe(Probe {
        hyco: name(),
        id: 1,
        endpoint: ENDPOINT.parse().expect("an endpoint"),
    }));
    assert_eq!(verdict, Verdict::Close(SessionCode::Protocol));
}

#[test]
fn a_sender_that_opens_faster_than_it_may_is_refused_and_then_sent_away() {
    let mut scene = Scene::greeted(Role::Sender);
    let now = scene.now();
    let far = scene.pair.far;
    let mut open = || scene.peers.stream_opened(now, far, other_stream());
    for _ in 0..OPENS_BURST {
        assert_eq!(open(), Opened::Flow);
    }
    for _ in 0..REFUSED_MAX {
        assert_eq!(open(), Opened::TooFast);
    }
    assert_eq!(open(), Opened::Flood);
}

#[test]
fn an_older_process_of_an_agent_stays_while_it_lives_and_goes_when_it_is_silent() {
    let mut scene = Scene::registered();
    scene.contest(&[NAME], Rule::Listen);
    assert!(scene.is_contested());
    scene.until(|scene| scene.overdue().is_empty() && !scene.is_contested());
    // Two processes of one identity do not disturb each other again and again.
    scene.contest(&[NAME], Rule::Listen);
    assert!(!scene.is_contested());
    scene.pair.pass(CONTEST_AGAIN_AFTER);
    // Another one proves the same while the first cannot answer any more.
    scene.contest(&[NAME], Rule::Listen);
    scene.pair.pass(REPLACED_AFTER);
    assert_eq!(scene.overdue(), [(scene.pair.far, SessionCode::Replaced)]);
}

#[test]
fn a_session_goes_only_when_all_that_it_has_was_granted_to_a_newer_process() {
    let mut scene = Scene::registered();
    scene.contest(&["other-name"], Rule::Listen);
    scene.contest(&[NAME], Rule::Send);
    assert!(
        !scene.is_contested(),
        "of another name, and of another right"
    );
    let register = scene.register(Rule::Listen);
    let peer = scene.peers.sessions.get_mut(&scene.pair.far);
    let other = Registration {
        register,
        which: Which::Primary,
    };
    let second: HycoName = "second-sql".parse().expect("a name");
    peer.expect("it is there")
        .registrations
        .insert(second, other);
    scene.contest(&[NAME], Rule::Listen);
    scene.pair.pass(2 * REPLACED_AFTER);
    assert_eq!(scene.overdue(), []);
    scene.contest(&["second-sql"], Rule::Listen);
    assert_eq!(scene.overdue(), [(scene.pair.far, SessionCode::Replaced)]);
}

#[test]
fn a_restarted_agent_does_not_wait_for_its_dead_process_where_there_is_one_place() {
    let mut scene = Scene::registered();
    scene.plan.snapshot.hycos[0].limits.listeners_max = 1;
    let restarted = scene.stranger();
    assert!(scene.registers_as(restarted, SECOND), "proven");
    assert_eq!(scene.listening(), [FIRST], "there is one place");
    assert!(scene.is_contested());
    scene.pair.pass(REPLACED_AFTER);
    assert_eq!(scene.overdue(), [(scene.pair.far, SessionCode::Replaced)]);
    let (now, far) = (scene.now(), scene.pair.far);
    let Scene { pair, peers, .. } = &mut scene;
    peers.gone(now, &pair.there.quic, far, "replaced");
    assert!(scene.registers_as(restarted, SECOND), "proven");
    assert_eq!(scene.listening(), [SECOND]);
}

#[test]
fn a_living_process_keeps_its_place_from_a_copy_of_its_identity() {
    let mut scene = Scene::registered();
    scene.plan.snapshot.hycos[0].limits.listeners_max = 1;
    let copy = scene.stranger();
    assert!(scene.registers_as(copy, SECOND), "proven");
    scene.until(|scene| scene.overdue().is_empty() && !scene.is_contested());
    assert_eq!(scene.listening(), [FIRST]);
}

#[test]
fn a_distant_session_has_time_to_answer() {
    let mut scene = Scene::registered();
    scene.contest(&[NAME], Rule::Listen);
    let now = scene.now() + REPLACED_AFTER;
    let peer = scene.peers.sessions.get_mut(&scene.pair.far);
    let peer = peer.expect("it is there");
    let rtt = Duration::from_millis(600);
    assert!(!peer.is_replaced(now, Duration::from_secs(1), rtt));
    assert!(peer.is_replaced(now + 4 * rtt, Duration::from_secs(9), rtt));
}

#[test]
fn what_a_stranger_claims_before_its_proof_changes_no_other_session() {
    let mut scene = Scene::registered();
    let mut forged = scene.register(Rule::Listen);
    forged.proof.0[0] ^= 1;
    let (now, stranger) = (scene.now(), scene.stranger());
    let Scene {
        pair, peers, plan, ..
    } = &mut scene;
    let quic = &mut pair.there.quic;
    let greeted = peers.hello(quic, plan, stranger, hello(Role::Agent, SECOND));
    assert_eq!(greeted, Verdict::Fine);
    let mut successor = None;
    let refused = peers.register(now, quic, plan, stranger, forged, &mut successor);
    assert_eq!((refused, successor.is_some()), (Verdict::Fine, false));
    assert!(!scene.is_contested());
    scene.pair.pass(2 * REPLACED_AFTER);
    assert_eq!(scene.overdue(), []);
    let now = scene.now();
    let listed = scene.peers.report(&scene.pair.there.quic, now);
    assert_eq!(listed.len(), 1, "a stranger is not listed");
}

#[test]
fn a_check_is_answered_and_changes_nothing() {
    let mut scene = Scene::greeted(Role::Agent);
    // Not even where there is no place for one more listener.
    scene.plan.snapshot.hycos[0].limits.listeners_max = 0;
    assert_eq!(scene.says(&Frame::Check), Verdict::Fine);
    let register = scene.register(Rule::Listen);
    assert_eq!(scene.says(&Frame::Register(register)), Verdict::Fine);
    scene.until(|scene| matches!(scene.heard.last(), Some(Frame::Registered(_))));
    let now = scene.now();
    let Scene { pair, peers, .. } = &mut scene;
    let view = peers.directory.listeners.view(&name()).expect("defined");
    assert!(view.listeners.is_empty() && peers.registered().is_empty());
    assert!(peers.report(&pair.there.quic, now).is_empty());
    let mut forged = scene.register(Rule::Listen);
    forged.proof.0[0] ^= 1;
    assert_eq!(scene.says(&Frame::Register(forged)), Verdict::Fine);
    scene.until(|scene| matches!(scene.heard.last(), Some(Frame::Refused(_))));
}

#[test]
fn a_check_is_said_before_anything_is_granted() {
    let mut scene = Scene::registered();
    let verdict = scene.says(&Frame::Check);
    assert_eq!(verdict, Verdict::Close(SessionCode::Protocol));
}

#[test]
fn strangers_give_way_to_newcomers_and_those_who_proved_a_key_do_not() {
    let mut scene = Scene::registered();
    assert_eq!(scene.peers.unproven_beyond(1), None);
    let first = scene.stranger();
    assert_eq!(scene.peers.unproven_beyond(2), None);
    let second = scene.stranger();
    assert_eq!(scene.peers.unproven_beyond(2), Some(first));
    assert_eq!(scene.peers.unproven_beyond(1), Some(second));
}

#[test]
fn a_sender_that_claims_the_instance_of_an_agent_takes_it_out_of_no_book() {
    let mut scene = Scene::registered();
    let now = scene.now();
    let far = scene.pair.far;
    // The same session, as if it were a sender's: what leaves is a right to send.
    let peer = scene.peers.sessions.get_mut(&far).expect("it is there");
    let registration = peer.registrations.get_mut(&name()).expect("registered");
    registration.register.rule = Rule::Send;
    scene.peers.unregister(now, far, &name(), "deregistered");
    let view = scene.peers.directory.listeners.view(&name());
    assert_eq!(view.expect("defined").listeners.len(), 1);
}

#[test]
fn a_session_without_its_first_stream_is_told_nothing() {
    let mut scene = Scene::new();
    scene.peers.say_draining(&mut scene.pair.there.quic);
    scene.greet(Role::Agent);
    assert!(
        matches!(scene.heard[..], [Frame::Welcome(_), Frame::Codes(_)]),
        "{:?}",
        scene.heard
    );
}

#[test]
fn a_session_has_no_more_registrations_than_it_may() {
    let mut scene = Scene::greeted(Role::Agent);
    let register = scene.register(Rule::Listen);
    let peer = scene.peers.sessions.get_mut(&scene.pair.far);
    let registrations = &mut peer.expect("it is there").registrations;
    for n in 0..underpass_proto::limits::REGISTRATIONS_MAX {
        let name = format!("crowd-{n}").parse().expect("a name");
        let registration = Registration {
            register: register.clone(),
            which: Which::Primary,
        };
        registrations.insert(name, registration);
    }
    assert_eq!(scene.says(&Frame::Register(register)), Verdict::Fine);
    scene.until(|scene| {
        let refused = |frame: &Frame| matches!(frame, Frame::Refused(it) if it.code == RefusedCode::Overloaded);
        scene.heard.iter().any(refused)
    });
}

#[test]
fn an_endpoint_that_moves_is_told_and_not_where_its_keys_are_not_known_just_now() {
    let mut scene = Scene::registered();
    let told = |scene: &Scene| {
        let registered = scene.heard.iter().filter_map(|frame| match frame {
            Frame::Registered(said) => Some(said.endpoint.to_string()),
            _ => None,
        });
        registered.collect::<Vec<_>>()
    };
    for (endpoint, keys) in [("db02.corp:1433", false), ("db03.corp:1433", true)] {
        let mut moved = Plan::of_test(&[(NAME, endpoint, true)]);
        if keys {
            moved.snapshot.hycos[0].keys = self::keys();
        }
        let (now, far) = (scene.now(), &mut scene.pair.there.quic);
        let over = scene.peers.apply(now, far, &scene.plan, &moved);
        assert!(over.is_empty());
        scene.plan = moved;
    }
    scene.until(|scene| told(scene).len() >= 2);
    assert_eq!(told(&scene), [ENDPOINT, "db03.corp:1433"]);
}

#[test]
fn a_probe_that_cannot_be_said_is_put_off_and_one_that_a_person_asked_for_is_not_answered() {
    let mut scene = Scene::registered();
    let now = scene.now();
    let Scene { pair, peers, .. } = &mut scene;
    let quic = &mut pair.there.quic;
    // It hears nothing any more.
    let peer = peers.sessions.get_mut(&pair.far).expect("it is there");
    while peer.say(quic, pair.far, &Frame::Draining) == Verdict::Fine {}
    peers.keep_probing(now, quic);
    let mut rng = StdRng::seed_from_u64(8);
    let listeners = &peers.directory.listeners;
    assert!(listeners.due(0, now, 8, &mut rng).is_empty());
    let later = now + Duration::from_secs(1);
    assert_eq!(listeners.due(0, later, 8, &mut rng).len(), 1);
    let (answers, answered) = bounded(8);
    for instance in [FIRST, SECOND] {
        let answers = answers.clone();
        peers.probe_asked(now, quic, pending(instance), Asker { token: 1, answers });
    }
    drop(answers);
    let none = answered.try_recv().expect_err("nobody is left to answer");
    assert_eq!(none, TryRecvError::Disconnected);
}

#[test]
fn probes_that_a_lost_session_owed_are_sent_again_or_answered_with_what_is_known() {
    let mut scene = Scene::registered();
    let now = scene.now();
    let Scene {
        pair, peers, plan, ..
    } = &mut scene;
    let quic = &mut pair.there.quic;
    let (answers, answered) = bounded(8);
    // The same listener has a session on another worker, too.
    let who = Who {
        agent_id: AGENT,
        instance: FIRST,
        remote: HERE,
    };
    let listeners = &peers.directory.listeners;
    assert!(listeners.join(now, &plan.snapshot.hycos[0], who, 1));
    peers.keep_probing(now, quic);
    let later = now + Duration::from_secs(1);
    let mut rng = StdRng::seed_from_u64(8);
    assert!(
        peers
            .directory
            .listeners
            .due(1, later, 8, &mut rng)
            .is_empty()
    );
    peers.probe_asked(now, quic, pending(FIRST), Asker { token: 7, answers });
    assert_eq!(peers.gone(now, quic, pair.far, "gone"), Some(1));
    let (token, found) = answered.try_recv().expect("an answer");
    assert_eq!((token, found.instance), (7, FIRST));
    assert!(found.dial.is_none());
    // The other worker sends the one that nobody asked for.
    let due = peers.directory.listeners.due(1, later, 8, &mut rng);
    assert_eq!(due, [pending(FIRST)]);
}

#[test]
fn a_probe_that_nobody_answers_is_a_dial_that_took_too_long() {
    let mut scene = Scene::registered();
    let now = scene.now();
    let Scene { pair, peers, .. } = &mut scene;
    let quic = &mut pair.there.quic;
    let (answers, answered) = bounded(8);
    peers.probe_asked(now, quic, pending(FIRST), Asker { token: 7, answers });
    let nearly = now + OPEN_DEADLINE - Duration::from_millis(1);
    peers.keep_probing(nearly, quic);
    assert!(peers.directory.listeners.failing(&name()).is_empty());
    peers.keep_probing(now + OPEN_DEADLINE, quic);
    assert_eq!(peers.directory.listeners.failing(&name()), [FIRST]);
    let (_, found) = answered.try_recv().expect("an answer");
    assert!(found.dial.is_none());
}

/// The sessions of a relay's worker, and a peer.
struct Scene {
    pair: Pair,
    peers: Peers,
    plan: Plan,
    control: Option<ControlStream>,
    heard: Vec<Frame>,
    verdict: Verdict,
}

impl Scene {
    /// A session that is up.
    fn new() -> Self {
        let mut pair = Pair::new();
        let mut plan = Plan::of_test(&[(NAME, ENDPOINT, true)]);
        plan.snapshot.hycos[0].keys = keys();
        let directory = Arc::<Directory>::default();
        directory.listeners.define(pair.now(), &plan);
        let mut peers = Peers::new((0, 1), directory, StdRng::seed_from_u64(7));
        peers.up(pair.now(), &mut pair.there.quic, pair.far);
        Self {
            pair,
            peers,
            plan,
            control: None,
            heard: Vec::new(),
            verdict: Verdict::Fine,
        }
    }

    /// Its peer said Hello.
    fn greeted(role: Role) -> Self {
        let mut scene = Self::new();
        scene.greet(role);
        scene
    }

    /// Its peer is an agent, registered as listener.
    fn registered() -> Self {
        let mut scene = Self::greeted(Role::Agent);
        let register = scene.register(Rule::Listen);
        assert_eq!(scene.says(&Frame::Register(register)), Verdict::Fine);
        scene.until(|scene| matches!(scene.heard.last(), Some(Frame::Registered(_))));
        scene
    }

    fn greet(&mut self, role: Role) {
        let stream = self.pair.here.quic.open(self.pair.session);
        self.control = Some(ControlStream::new(stream.expect("a stream")));
        let verdict = self.says(&Frame::Hello(hello(role, FIRST)));
        assert_eq!(verdict, Verdict::Fine);
        self.until(|scene| !scene.heard.is_empty());
    }

    fn now(&self) -> Instant {
        self.pair.now()
    }

    fn register(&mut self, rule: Rule) -> Register {
        let exporter = self.pair.here.quic.exporter(self.pair.session);
        let exporter = exporter.expect("a secret");
        Register::new(&key(), name(), rule, Nonce([7; 16]), 100, 0, &exporter)
    }

    /// Says something and waits until the relay has read it: what it makes of that.
    fn says(&mut self, frame: &Frame) -> Verdict {
        let control = self.control.as_mut().expect("it is open");
        let said = control.say(&mut self.pair.here.quic, self.pair.session, frame);
        assert!(said.is_ok());
        for _ in 0..20 {
            self.turn();
        }
        std::mem::replace(&mut self.verdict, Verdict::Fine)
    }

    fn turn(&mut self) {
        self.pair.carry(|_| {});
        let now = self.now();
        for (session, event) in std::mem::take(&mut self.pair.there.events) {
            let stream = match event {
                Event::Opened(stream) => {
                    let opened = self.peers.stream_opened(now, session, stream);
                    assert_eq!(opened, Opened::Control);
                    stream
                }
                Event::Readable(stream) => stream,
                _ => continue,
            };
            let (quic, plan) = (&mut self.pair.there.quic, &self.plan);
            let peers = &mut self.peers;
            let verdict = peers.readable(now, quic, plan, session, stream, &mut None);
            if verdict != Verdict::Fine {
                self.verdict = verdict;
            }
        }
        for (session, event) in std::mem::take(&mut self.pair.here.events) {
            if let (Event::Readable(_), Some(control)) = (event, &mut self.control) {
                let read = control.read(&mut self.pair.here.quic, session);
                self.heard.extend(read.expect("frames"));
            }
        }
    }

    fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..2_000 {
            if is_so(self) {
                return;
            }
            self.turn();
        }
        panic!("waited in vain; it heard {:?}", self.heard);
    }

    /// One more session, of somebody who is not known yet.
    fn stranger(&mut self) -> SessionId {
        let session = self.pair.here.dial(&self.pair.trust);
        let (mut near, mut far) = (false, None);
        self.pair.carry_until(|pair| {
            let up = |(_, event): &(SessionId, Event)| matches!(event, Event::Connected);
            near |= pair
                .here
                .events
                .drain(..)
                .any(|said| said.0 == session && up(&said));
            far = far.or(pair.there.events.drain(..).find(up).map(|(id, _)| id));
            near && far.is_some()
        });
        let far = far.expect("it is connected");
        let now = self.now();
        self.peers.up(now, &mut self.pair.there.quic, far);
        far
    }

    /// Another process of the same agent has proven this.
    fn contest(&mut self, names: &[&str], rule: Rule) {
        let now = self.now();
        let quic = &mut self.pair.there.quic;
        let successor = Successor {
            agent_id: AGENT,
            instance: SECOND,
            rule,
            names: names
                .iter()
                .map(|name| name.parse().expect("a name"))
                .collect(),
        };
        self.peers.contest(now, quic, &successor);
    }

    /// A session says Hello, where it has not, and Register with the right key. Whether that was
    /// proven.
    fn registers_as(&mut self, session: SessionId, instance: Instance) -> bool {
        let now = self.now();
        let Self {
            pair, peers, plan, ..
        } = self;
        let quic = &mut pair.there.quic;
        if peers.instance(session).is_none() {
            let greeted = peers.hello(quic, plan, session, hello(Role::Agent, instance));
            assert_eq!(greeted, Verdict::Fine);
        }
        let exporter = quic.exporter(session).expect("a secret");
        let nonce = Nonce([8; 16]);
        let register = Register::new(&key(), name(), Rule::Listen, nonce, 100, 0, &exporter);
        let mut successor = None;
        let verdict = peers.register(now, quic, plan, session, register, &mut successor);
        assert_eq!(verdict, Verdict::Fine);
        if let Some(successor) = &successor {
            peers.contest(now, quic, successor);
        }
        successor.is_some()
    }

    /// The processes that listen, by the book.
    fn listening(&self) -> Vec<Instance> {
        let view = self.peers.directory.listeners.view(&name());
        let listeners = view.expect("defined").listeners;
        listeners.iter().map(|seen| seen.who.instance).collect()
    }

    fn is_contested(&self) -> bool {
        self.peers.is_contested(self.pair.far, &name())
    }

    fn overdue(&mut self) -> Vec<(SessionId, SessionCode)> {
        let now = self.now();
        self.peers.overdue(&self.pair.there.quic, now, |_| 0)
    }
}

/// Any stream but a control stream.
fn other_stream() -> StreamId {
    StreamId::new(quinn_proto::Side::Client, quinn_proto::Dir::Bi, 9)
}

/// To dial the endpoint, for this listener.
fn pending(instance: Instance) -> PendingProbe {
    PendingProbe {
        hyco: name(),
        instance,
        endpoint: ENDPOINT.parse().expect("an endpoint"),
    }
}

fn hello(role: Role, instance: Instance) -> Hello {
    Hello {
        version: VERSION,
        role,
        agent_id: AGENT,
        instance,
    }
}

fn name() -> HycoName {
    NAME.parse().expect("a name")
}

fn key() -> Key {
    Key::from_random([7; 32])
}

fn keys() -> HycoKeys {
    let primary = key();
    HycoKeys {
        listen: Some(KeyPair {
            primary,
            secondary: None,
        }),
        send: None,
    }
}
