//! A link beside a relay that is played by hand: what it says, and what it makes of what it is
//! told, in and out of order.

use std::sync::Arc;

use quinn_proto::StreamId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_proto::limits::{PING_AFTER, SUSPECT_AFTER};
use underpass_proto::proof::relay_proof;
use underpass_proto::wire::{Ended, EndedCode, Refused, Registered, Welcome};
use underpass_proto::{AgentId, Exporter, Instance, Key, KeyId, Proof, Register, Rule};

use super::session::Session;
use super::wants::{Want, by_relay};
use super::*;
use crate::control_stream::ControlStream;
use crate::quic::Event;
use crate::quic::config::Trust;
use crate::quic::pair::{Pair, THERE};

const NAME: &str = "payroll-sql";
const FIRST: &str = "db01.corp:1433";
const SECOND: &str = "db02.corp:1433";

#[test]
fn a_registration_stands_from_both_proofs_on_and_what_the_relay_says_of_it_later_is_followed() {
    let mut scene = Scene::registered();
    assert_eq!(scene.stands(), Some(FIRST.parse().expect("an endpoint")));
    // Its endpoint is another one, by a proof over what was said last.
    scene.says_registered(&key(1), SECOND);
    let moved = scene.hear(1);
    assert!(matches!(&moved[..], [Heard::Registered(_, to)] if to.to_string() == SECOND));
    assert_eq!(scene.stands(), Some(SECOND.parse().expect("an endpoint")));
    // Asked for again with another weight: the same, and again another endpoint.
    for (weight, endpoint) in [(50, SECOND), (60, FIRST)] {
        scene.wants(want(1, weight));
        scene.until_asked();
        scene.says_registered(&key(1), endpoint);
        scene.hear(1);
        assert_eq!(scene.stands(), Some(endpoint.parse().expect("an endpoint")));
    }
    // Over, by the relay's word.
    let code = EndedCode::Removed;
    scene.says(&Frame::Ended(Ended { hyco: name(), code }));
    assert!(matches!(&scene.hear(1)[..], [Heard::Ended(_)]));
    assert_eq!(scene.stands(), None);
}

#[test]
fn the_addresses_of_a_relay_are_raced_and_what_worked_last_is_first() {
    let silent: SocketAddr = "127.0.0.9:2".parse().expect("an address");
    let mut scene = Scene::new();
    scene.link.found(scene.now, vec![silent, THERE]);
    scene.dial_now();
    let wants = |scene: &Scene, after| {
        let quic = &scene.pair.here.quic;
        scene.link.wants_session(quic, scene.now + after)
    };
    assert!(!wants(&scene, ATTEMPT_EVERY - Duration::from_millis(1)));
    assert!(wants(&scene, ATTEMPT_EVERY));
    scene.now += ATTEMPT_EVERY;
    scene.dial_now();
    let quic = &scene.pair.here.quic;
    let remote = |id: SessionId| quic.path(id).map(|path| path.remote);
    let mut remotes: Vec<_> = scene.link.all().into_iter().filter_map(remote).collect();
    remotes.sort_unstable();
    assert_eq!(remotes, [THERE, silent]);
    assert!(!wants(&scene, ATTEMPT_EVERY), "each was tried");

    let mut scene = Scene::welcomed();
    scene.until_asked();
    scene.link.found(scene.now, vec![silent, THERE]);
    assert_eq!(scene.link.addresses, [THERE, silent]);
}

#[test]
fn each_round_of_attempts_races_all_addresses() {
    let silent: SocketAddr = "127.0.0.9:2".parse().expect("an address");
    let mut scene = Scene::new();
    scene.link.found(scene.now, vec![silent, THERE]);
    // The last round is one of the time of long pauses.
    for (round, after) in [Duration::ZERO, Duration::ZERO, 2 * EAGER_FOR]
        .into_iter()
        .enumerate()
    {
        scene.now = scene.link.next_attempt + after;
        let wants = |scene: &Scene| scene.link.wants_session(&scene.pair.here.quic, scene.now);
        assert!(wants(&scene), "round {round}");
        scene.dial_now();
        assert_eq!(
            scene.link.next_attempt,
            scene.now + ATTEMPT_EVERY,
            "round {round}"
        );
        scene.now += ATTEMPT_EVERY;
        assert!(wants(&scene), "round {round}");
        scene.dial_now();
        assert!(
            scene.link.next_attempt > scene.now + ATTEMPT_EVERY,
            "round {round}"
        );
        let quic = &scene.pair.here.quic;
        let remote = |id: SessionId| quic.path(id).map(|path| path.remote);
        let remotes: Vec<_> = scene.link.all().into_iter().filter_map(remote).collect();
        for address in [silent, THERE] {
            let tried = remotes.iter().filter(|remote| **remote == address).count();
            assert_eq!(tried, round + 1, "{address}");
        }
    }
}

#[test]
fn a_new_key_that_is_refused_leaves_what_stands_and_is_asked_for_again() {
    let mut scene = Scene::registered();
    scene.wants(want(2, 100));
    let asked = scene.until_asked();
    assert_eq!(asked.key_id, KeyId::of(Rule::Listen, &key(2)));
    scene.says_refused();
    scene.says(&Frame::Draining);
    scene.until(|scene| {
        scene
            .link
            .newest_well(&scene.pair.here.quic, scene.now)
            .is_none()
    });
    assert!(scene.heard.is_empty(), "{:?}", scene.heard);
    assert_eq!(scene.stands(), Some(FIRST.parse().expect("an endpoint")));
    scene.asked = None;
    scene.pass(Duration::from_secs(1));
    let again = scene.until_asked();
    assert_eq!(again.key_id, KeyId::of(Rule::Listen, &key(2)));
    scene.says_registered(&key(2), FIRST);
    scene.hear(1);
    assert_eq!(scene.stands(), Some(FIRST.parse().expect("an endpoint")));
}

#[test]
fn a_relay_that_does_not_know_the_key_is_not_believed() {
    let mut scene = Scene::welcomed();
    scene.until_asked();
    scene.says_registered(&key(9), FIRST);
    let heard = scene.hear(1);
    assert!(
        matches!(&heard[..], [Heard::Broken(SessionCode::NotAuthorised, why)] if why.contains(NAME)),
        "{heard:?}"
    );
    assert_eq!(scene.stands(), None);
}

#[test]
fn what_a_relay_never_says_ends_the_session_and_what_it_says_of_unknown_names_says_nothing() {
    let mut scene = Scene::registered();
    let hyco: HycoName = "no-such-name".parse().expect("a name");
    let code = RefusedCode::NotAuthorised;
    scene.says(&Frame::Refused(Refused {
        hyco: hyco.clone(),
        code,
    }));
    let code = EndedCode::Removed;
    scene.says(&Frame::Ended(Ended {
        hyco: hyco.clone(),
        code,
    }));
    let relay_proof = scene.proof(&key(1), FIRST);
    scene.says(&Frame::Registered(Registered {
        hyco,
        endpoint: FIRST.parse().expect("an endpoint"),
        relay_proof,
    }));
    let hello = Hello {
        version: VERSION,
        role: Role::Agent,
        agent_id: AgentId([1; 16]),
        instance: Instance([1; 16]),
    };
    scene.says(&Frame::Hello(hello));
    let heard = scene.hear(1);
    assert!(
        matches!(&heard[..], [Heard::Broken(SessionCode::Protocol, _)]),
        "{heard:?}"
    );
}

#[test]
fn a_relay_that_ends_the_control_stream_has_ended_the_session() {
    let mut scene = Scene::registered();
    let stream = scene.far_stream();
    scene.pair.there.quic.finish(scene.far, stream);
    let heard = scene.hear(1);
    assert!(
        matches!(&heard[..], [Heard::Broken(SessionCode::Protocol, why)] if why.contains("ended")),
        "{heard:?}"
    );
}

#[test]
fn what_is_said_of_a_session_that_is_gone_changes_nothing() {
    let mut scene = Scene::new();
    let gone = SessionId::of_test(77);
    let quic = &mut scene.pair.here.quic;
    scene.link.up(quic, gone);
    scene.link.lost(gone, "gone", scene.now);
    scene.link.writable(quic, gone);
    scene.link.say(quic, gone, &Frame::Draining);
    let heard = scene.link.readable(quic, gone, scene.now, &mut scene.rng);
    assert!(heard.is_empty());
    assert!(scene.link.all().is_empty());

    // One that its driver has forgotten while its link still knows it.
    scene.dial();
    let session = scene.link.all()[0];
    let early = scene.read(session);
    assert!(early.is_empty(), "before it is up");
    let quic = &mut scene.pair.here.quic;
    quic.close(scene.now, session, SessionCode::Done);
    scene.pair.pass(Duration::from_secs(30));
    assert_eq!(scene.pair.here.quic.silence(scene.now, session), None);
    scene.link.up(&mut scene.pair.here.quic, session);
    assert!(scene.read(session).is_empty());
    let newest = scene.link.newest_well(&scene.pair.here.quic, scene.now);
    assert!(newest.is_none());
}

#[test]
fn a_session_asks_for_nothing_before_it_is_up() {
    let mut scene = Scene::new();
    let mut session = Session::new(scene.now);
    let id = SessionId::of_test(77);
    let quic = &mut scene.pair.here.quic;
    session.register(quic, id, &want(1, 100), &mut scene.rng);
    assert!(!session.is_awaited(&name()));
    let registered = Registered {
        hyco: name(),
        endpoint: FIRST.parse().expect("an endpoint"),
        relay_proof: Proof([0; 32]),
    };
    assert!(
        session
            .registered(
                &scene.link.relay,
                registered,
                (&mut LogLimit::default(), scene.now)
            )
            .is_none()
    );
}

#[test]
fn without_an_address_or_a_trust_of_use_nothing_is_dialled_and_it_is_tried_later() {
    let mut scene = Scene::new();
    scene.link.addresses.clear();
    scene.dial_now();
    assert!(scene.link.all().is_empty());
    assert!(!scene.link.wants_session(&scene.pair.here.quic, scene.now));

    scene.link.found(scene.now, vec![THERE]);
    let ca = [b"no certificate".to_vec()];
    let relays = by_relay(vec![want(1, 100)], Rule::Listen, &ca, &[]).expect("a relay");
    scene.link.relay = Arc::clone(&relays[0]);
    scene.dial_now();
    assert!(scene.link.all().is_empty());
    assert_eq!(scene.link.logged.len(), 2, "no address, and then no trust");
    let later = scene.now + PAUSE_LATER + RENEW_AFTER;
    assert!(scene.link.wants_session(&scene.pair.here.quic, later));
}

#[test]
fn a_new_cause_of_a_failure_is_logged_at_once_and_a_known_one_once_a_minute() {
    let mut scene = Scene::new();
    let mut logged = |why: &str, after: u64| {
        let now = scene.now + Duration::from_secs(after);
        scene.link.tell_failure(now, why);
        let logged = scene.link.logged.iter();
        logged.map(|(why, _)| why.clone()).collect::<Vec<_>>()
    };
    assert_eq!(logged("draining", 0), ["draining"]);
    assert_eq!(logged("certificate", 1), ["draining", "certificate"]);
    assert_eq!(logged("draining", 59), ["draining", "certificate"]);
    assert_eq!(logged("draining", 60), ["certificate", "draining"]);
    for cause in 0..100 {
        let causes = logged(&format!("cause {cause}"), 60);
        assert!(causes.len() <= CAUSES_MAX, "{causes:?}");
    }
}

#[test]
fn a_relays_name_is_resolved_again_while_it_is_dialled_and_other_addresses_are_tried_at_once() {
    let mut scene = Scene::new();
    let (now, later) = (scene.now, scene.now + RESOLVE_EVERY);
    assert!(!scene.link.wants_address(now) && scene.link.wants_address(later));
    scene.dial();
    // Beside the attempts, not in their way.
    scene.link.resolving = true;
    assert!(!scene.link.wants_address(later) && !scene.link.awaits_address());
    let next = scene.link.next_attempt;
    for same in [Vec::new(), vec![THERE]] {
        scene.link.found(now, same);
        assert_eq!(scene.link.next_attempt, next);
    }
    let moved = "10.0.0.9:4433".parse().expect("an address");
    scene.link.found(now, vec![moved]);
    assert_eq!(
        (&scene.link.addresses[..], scene.link.next_attempt),
        (&[moved][..], now)
    );
}

/// A link, and the other end of its session.
struct Scene {
    pair: Pair,
    link: Link,
    now: Instant,
    rng: StdRng,
    /// The link's session, as the relay names it.
    far: SessionId,
    control: Option<ControlStream>,
    /// What the relay was asked for last, and has not been answered.
    asked: Option<Register>,
    /// What was asked for last.
    register: Option<Register>,
    /// What the link's worker is to act on.
    heard: Vec<Heard>,
}

impl Scene {
    fn new() -> Self {
        let pair = Pair::new();
        let Trust::Authorities(ca) = &pair.trust else {
            panic!("a pair trusts its certificate");
        };
        let relays = by_relay(vec![want(1, 100)], Rule::Listen, ca, &[]).expect("a relay");
        let identity = Identity::of_test();
        let now = pair.now();
        let mut link = Link::new(1, Arc::clone(&relays[0]), 0, identity, now);
        link.found(now, vec![THERE]);
        Self {
            far: pair.far,
            pair,
            link,
            now,
            rng: StdRng::seed_from_u64(7),
            control: None,
            asked: None,
            register: None,
            heard: Vec::new(),
        }
    }

    /// Its session is up, and the relay has said Welcome.
    fn welcomed() -> Self {
        let mut scene = Self::new();
        scene.dial();
        scene.until(|scene| scene.control.is_some());
        scene.says(&Frame::Welcome(Welcome {
            workers: 1,
            worker: 0,
            relay_time_unix_ms: 0,
            relays: Vec::new(),
        }));
        scene
    }

    /// What it wants stands.
    fn registered() -> Self {
        let mut scene = Self::welcomed();
        scene.until_asked();
        scene.says_registered(&key(1), FIRST);
        scene.hear(1);
        scene
    }

    fn dial_now(&mut self) {
        let quic = &mut self.pair.here.quic;
        self.link.dial(quic, self.now, &mut self.rng);
    }

    fn dial(&mut self) {
        self.dial_now();
        assert_eq!(self.link.all().len(), 1);
    }

    fn read(&mut self, session: SessionId) -> Vec<Heard> {
        let quic = &mut self.pair.here.quic;
        self.link.readable(quic, session, self.now, &mut self.rng)
    }

    /// One turn of both.
    fn turn(&mut self) {
        self.pair.carry(|_| {});
        self.now = self.pair.now();
        for (session, event) in std::mem::take(&mut self.pair.here.events) {
            let quic = &mut self.pair.here.quic;
            match event {
                Event::Connected => self.link.up(quic, session),
                Event::Readable(stream) if self.link.is_control(session, stream) => {
                    let heard = self.read(session);
                    self.heard.extend(heard);
                }
                Event::Writable(_) => self.link.writable(quic, session),
                _ => {}
            }
        }
        let quic = &mut self.pair.here.quic;
        self.link.ask_again(quic, self.now, &mut self.rng);
        for (session, event) in std::mem::take(&mut self.pair.there.events) {
            match event {
                Event::Opened(stream) => {
                    self.far = session;
                    self.control = Some(ControlStream::new(stream));
                    self.listen();
                }
                Event::Readable(_) => self.listen(),
                _ => {}
            }
        }
    }

    /// The relay reads.
    fn listen(&mut self) {
        let control = self.control.as_mut().expect("it was opened");
        let read = control.read(&mut self.pair.there.quic, self.far);
        for frame in read.expect("frames") {
            if let Frame::Register(register) = frame {
                self.register = Some(register.clone());
                self.asked = Some(register);
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
        panic!("waited in vain");
    }

    fn until_asked(&mut self) -> Register {
        self.until(|scene| scene.asked.is_some());
        self.asked.take().expect("it was asked")
    }

    /// So many things that the link's worker is to act on.
    fn hear(&mut self, count: usize) -> Vec<Heard> {
        self.until(|scene| scene.heard.len() >= count);
        std::mem::take(&mut self.heard)
    }

    /// Less than what makes a session silent.
    fn pass(&mut self, time: Duration) {
        assert!(time < PING_AFTER + SUSPECT_AFTER);
        self.pair.pass(time);
        self.now = self.pair.now();
    }

    fn wants(&mut self, want: Want) {
        let ca = match &self.link.relay.trust {
            Trust::Authorities(ca) => ca.clone(),
            _ => panic!("a pair trusts its certificate"),
        };
        let before = [Arc::clone(&self.link.relay)];
        let relays = by_relay(vec![want], Rule::Listen, &ca, &before).expect("a relay");
        let quic = &mut self.pair.here.quic;
        self.link.adopt(quic, Arc::clone(&relays[0]), &mut self.rng);
    }

    fn stands(&self) -> Option<Endpoint> {
        let session = self.link.all()[0];
        self.link.registered(session, &name()).cloned()
    }

    fn far_stream(&self) -> StreamId {
        self.control.as_ref().expect("it was opened").stream
    }

    fn says(&mut self, frame: &Frame) {
        let control = self.control.as_mut().expect("it was opened");
        let said = control.say(&mut self.pair.there.quic, self.far, frame);
        assert!(said.is_ok());
    }

    fn says_refused(&mut self) {
        let (hyco, code) = (name(), RefusedCode::NotAuthorised);
        self.says(&Frame::Refused(Refused { hyco, code }));
    }

    /// Answers what was asked for last, as who knows this key.
    fn says_registered(&mut self, key: &Key, endpoint: &str) {
        let relay_proof = self.proof(key, endpoint);
        self.says(&Frame::Registered(Registered {
            hyco: name(),
            endpoint: endpoint.parse().expect("an endpoint"),
            relay_proof,
        }));
    }

    fn proof(&mut self, key: &Key, endpoint: &str) -> Proof {
        let exporter: Exporter = self.pair.there.quic.exporter(self.far).expect("a secret");
        let register = self.register.as_ref().expect("it was asked");
        let endpoint = endpoint.parse().expect("an endpoint");
        relay_proof(key, register, &endpoint, &exporter)
    }
}

fn name() -> HycoName {
    NAME.parse().expect("a name")
}

fn key(number: u8) -> Key {
    Key::from_random([number; 32])
}

fn want(key_number: u8, weight: u16) -> Want {
    Want {
        weight,
        ..Want::of_test("localhost:2", NAME, &key(key_number))
    }
}
