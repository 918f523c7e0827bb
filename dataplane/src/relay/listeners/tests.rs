//! What the book says, with time and chance in hand.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const NAME: &str = "payroll-sql";
const FIRST: Instance = Instance([1; 16]);
const SECOND: Instance = Instance([2; 16]);
const AGENT: AgentId = AgentId([9; 16]);
const MANY: usize = 1_000;

#[test]
fn the_first_session_of_a_process_is_probed_at_once_and_once() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.join(FIRST, 1);
    assert_eq!(scene.due_anywhere(), [FIRST]);
    assert_eq!(scene.due_anywhere(), []);
    scene.join(FIRST, 2);
    assert_eq!(scene.due_anywhere(), [], "one more session is no news");
}

#[test]
fn probe_off_dials_nothing_ever() {
    let mut scene = Scene::new();
    scene.define("db01.corp:1433", false);
    scene.join(FIRST, 0);
    scene.flow(FIRST, Some(FlowCode::EndpointRefused));
    scene.pass(Duration::from_secs(3_600));
    assert_eq!(scene.due_anywhere(), []);
    scene.define("db01.corp:1433", true);
    assert_eq!(scene.due_anywhere(), [FIRST]);
}

#[test]
fn after_a_failure_probes_come_1_2_4_up_to_30_seconds_apart() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    for most in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
        assert_eq!(scene.due_anywhere(), [FIRST], "before {most:?}");
        scene.probe(FIRST, Some(FlowCode::EndpointRefused));
        scene.pass(most.mul_f64(0.79));
        assert_eq!(scene.due_anywhere(), [], "sooner than {most:?}");
        scene.pass(most.mul_f64(0.22));
    }
    scene.due_anywhere();
    scene.probe(FIRST, None);
    scene.pass(Duration::from_secs(59));
    assert_eq!(scene.due_anywhere(), [], "it works again");
    scene.pass(Duration::from_secs(8));
    assert_eq!(scene.due_anywhere(), [FIRST]);
}

#[test]
fn a_flow_that_reaches_the_endpoint_puts_the_probe_off() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    for _ in 0..10 {
        scene.flow(FIRST, None);
        scene.pass(Duration::from_secs(50));
        assert_eq!(scene.due_anywhere(), []);
    }
    scene.pass(Duration::from_secs(20));
    assert_eq!(scene.due_anywhere(), [FIRST]);
}

#[test]
fn without_a_flow_probes_are_rarer_and_rarer_and_end_far_below_what_locks_a_host_out() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let counts = [3, 7, 60, 24 * 60, 30 * 24 * 60]
        .map(|minutes| scene.probes_in(Duration::from_secs(60 * minutes), None));
    assert_eq!(
        counts,
        [2, 2, 3, 3, 0],
        "one at once, then after 1, 2, 4 … minutes"
    );
    let seen = &scene.view().listeners[0];
    assert_eq!((seen.rests, seen.probes), (true, thrift::PROBES_IDLE_MAX));
    // A flow says that all is well, and they begin again.
    scene.flow(FIRST, None);
    assert_eq!(scene.view().listeners[0].probes, 0);
    assert_eq!(scene.probes_in(Duration::from_secs(120), None), 1);
}

#[test]
fn a_live_flow_says_as_much_as_a_probe_would() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let live = scene.live_flow(FIRST, None);
    assert!(live.is_some());
    assert_eq!(scene.probes_in(Duration::from_secs(86_400), None), 0);
    drop(live);
    assert_eq!(scene.probes_in(Duration::from_secs(120), None), 1);
}

#[test]
fn a_session_that_comes_and_goes_does_not_probe_without_end() {
    let mut scene = Scene::new();
    let mut count = 0;
    for number in 0..200 {
        // Another process each time, of the same installation.
        let instance = Instance([number; 16]);
        assert!(scene.joins_as(AGENT, instance, 0));
        count += scene.probes_in(Duration::from_secs(10), None);
        scene.leave(instance, 0);
    }
    assert_eq!(count, PROBES_JOINED_MAX);
}

#[test]
fn an_endpoint_that_flaps_is_probed_until_the_bound_and_no_further() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let mut reached = 0;
    for _ in 0..400 {
        scene.flow(FIRST, Some(FlowCode::EndpointRefused));
        reached += scene.probes_in(Duration::from_secs(40), None);
    }
    assert!(
        (PROBES_JOINED_MAX..=PROBES_ASKED_MAX).contains(&reached),
        "{reached}"
    );
}

#[test]
fn an_endpoint_that_is_down_is_probed_on_and_on_and_costs_nothing() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let refused = Some(FlowCode::EndpointRefused);
    assert!(scene.probes_in(Duration::from_secs(600), refused) >= 20);
    let day = scene.probes_in(Duration::from_secs(86_400), refused);
    assert!((200..400).contains(&day), "{day}: each five minutes");
    assert_eq!(
        scene.view().listeners[0].probes,
        0,
        "no connection was made"
    );
}

#[test]
fn probe_on_goes_on_each_minute() {
    let mut scene = Scene::new();
    scene.plan.snapshot.hycos[0].probe_always = true;
    scene.book.define(scene.now, &scene.plan);
    scene.join(FIRST, 0);
    let day = scene.probes_in(Duration::from_secs(86_400), None);
    assert!((1_000..=1_441).contains(&day), "{day}");
}

#[test]
fn flows_that_fail_together_are_one_failure_and_the_probe_comes_within_a_second() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.flow(FIRST, None);
    for _ in 0..MANY {
        scene.flow(FIRST, Some(FlowCode::EndpointTimedOut));
    }
    assert_eq!(scene.book.failing(&name()), [FIRST]);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.due_anywhere(), [FIRST]);
}

#[test]
fn only_what_tells_of_the_endpoint_counts() {
    for code in FlowCode::ALL {
        let tells = [
            FlowCode::EndpointRefused,
            FlowCode::EndpointTimedOut,
            FlowCode::EndpointUnreachable,
            FlowCode::NameNotFound,
            FlowCode::NoSourcePort,
            FlowCode::NameServerSilent,
            FlowCode::Loop,
            FlowCode::NotAllowed,
        ]
        .contains(&code);
        let mut scene = Scene::new();
        scene.join(FIRST, 0);
        scene.flow(FIRST, Some(code));
        assert_eq!(scene.last(FIRST).is_some(), tells, "{code:?}");
        assert_eq!(scene.book.failing(&name()).len(), usize::from(tells));
    }
}

#[test]
fn a_loop_is_not_forgotten_for_a_flow_that_passes_through_it() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let _ = scene.due_anywhere();
    scene.probe(FIRST, None);
    scene.flow(FIRST, Some(FlowCode::Loop));
    // The other member of the ring is probed: its flow passes here before it is found to loop.
    for _ in 0..3 {
        scene.flow(FIRST, None);
        assert_eq!(scene.book.failing(&name()), [FIRST]);
    }
    // Its own probes decide: the loop was ended elsewhere.
    for seconds in [1, 2] {
        assert_eq!(scene.book.failing(&name()), [FIRST]);
        scene.pass(Duration::from_secs(seconds));
        assert_eq!(scene.due_anywhere(), [FIRST]);
        scene.probe(FIRST, None);
    }
    assert!(scene.book.failing(&name()).is_empty());
}

#[test]
fn without_probes_flows_tell_that_a_loop_has_ended() {
    let mut scene = Scene::new();
    scene.define("db01.corp:1433", false);
    scene.join(FIRST, 0);
    scene.flow(FIRST, Some(FlowCode::Loop));
    scene.flow(FIRST, None);
    assert_eq!(scene.book.failing(&name()), [FIRST]);
    scene.flow(FIRST, None);
    assert!(scene.book.failing(&name()).is_empty());
}

#[test]
fn a_probe_that_came_to_nothing_is_sent_again_with_pauses() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    assert_eq!(scene.due_anywhere(), [FIRST]);
    scene.unsaid(FIRST);
    assert_eq!(scene.due_anywhere(), []);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.due_anywhere(), [FIRST]);
    scene.probe(FIRST, Some(FlowCode::RegistrationEnded));
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.due_anywhere(), []);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.due_anywhere(), [FIRST]);
    assert_eq!(scene.last(FIRST), None);
}

#[test]
fn a_changed_endpoint_is_probed_at_once_and_the_old_result_is_forgotten() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    let _ = scene.due_anywhere();
    scene.probe(FIRST, Some(FlowCode::EndpointRefused));
    let old = scene.endpoint.clone();
    scene.define("db02.corp:1433", true);
    assert_eq!(scene.last(FIRST), None);
    assert!(scene.book.failing(&name()).is_empty());
    let pending_probes = scene.pending_probes(0, MANY);
    assert_eq!(pending_probes.len(), 1);
    assert_eq!(pending_probes[0].endpoint, scene.endpoint);
    // What was still under way to the old one says nothing of the new one.
    assert!(scene.note(FIRST, &old, None, true).is_none());
    assert!(scene.note(FIRST, &old, None, false).is_none());
    assert_eq!(scene.last(FIRST), None);
}

#[test]
fn a_plan_that_changes_nothing_here_asks_for_no_probe() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.flow(FIRST, None);
    scene.define("db01.corp:1433", true);
    assert_eq!(scene.due_anywhere(), []);
    assert!(scene.last(FIRST).is_some());
}

#[test]
fn the_probe_of_a_worker_that_lost_the_session_passes_to_another() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.join(FIRST, 1);
    scene.leave(FIRST, 0);
    assert_eq!(scene.due(0), []);
    assert_eq!(scene.due(1), [FIRST]);
    scene.unsaid(FIRST);
    scene.leave(FIRST, 1);
    scene.unsaid(FIRST);
    scene.pass(Duration::from_secs(100));
    assert_eq!(scene.due_anywhere(), []);
}

#[test]
fn the_last_that_leaves_says_when_and_why() {
    let mut scene = Scene::new();
    assert!(scene.view().left.is_none());
    scene.join(FIRST, 0);
    scene.join(SECOND, 0);
    scene.flow(FIRST, Some(FlowCode::NameNotFound));
    scene.leave(FIRST, 0);
    assert!(scene.view().left.is_none());
    assert!(scene.book.failing(&name()).is_empty(), "it is gone");
    scene.leave(SECOND, 0);
    let (_, why) = scene.view().left.expect("all are gone");
    assert_eq!(why, "session lost: timed out");
    scene.leave(SECOND, 0);
    assert!(scene.view().listeners.is_empty());
}

#[test]
fn a_removed_definition_is_forgotten() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.flow(FIRST, Some(FlowCode::EndpointRefused));
    scene.book.define(scene.now, &Plan::of_test(&[]));
    assert!(scene.book.view(&name()).is_none());
    assert!(scene.book.failing(&name()).is_empty());
    // What is still said of it is of nothing.
    scene.flow(FIRST, Some(FlowCode::EndpointRefused));
    scene.leave(FIRST, 0);
    assert_eq!(scene.book.beyond(&name(), 0), []);
    scene.join(FIRST, 0);
    scene.pass(Duration::from_secs(100));
    assert_eq!(scene.due_anywhere(), []);
    assert!(scene.book.view(&name()).is_none());
}

#[test]
fn a_worker_that_has_no_session_of_a_listener_takes_none_away() {
    let mut scene = Scene::new();
    scene.join(FIRST, 0);
    scene.leave(FIRST, 1);
    assert_eq!(scene.view().listeners.len(), 1);
    assert_eq!(scene.due_anywhere(), [FIRST]);
}

#[test]
fn no_more_than_was_asked_for_is_handed_out() {
    let names: Vec<String> = (0..MANY).map(|n| format!("crowd-{n}")).collect();
    let hycos: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), "db01.corp:1433", true))
        .collect();
    let mut scene = Scene::new();
    let plan = Plan::of_test(&hycos);
    scene.book.define(scene.now, &plan);
    for definition in &plan.snapshot.hycos {
        assert!(scene.book.join(scene.now, definition, who(FIRST), 0));
    }
    assert_eq!(scene.pending_probes(0, 600).len(), 600);
    assert_eq!(scene.pending_probes(0, 600).len(), MANY - 600);
    assert_eq!(scene.due(0), []);
}

#[test]
fn above_a_lowered_limit_are_the_newest() {
    let mut scene = Scene::new();
    scene.plan.snapshot.hycos[0].limits.listeners_max = 3;
    let [first, second, third] = [3, 1, 2].map(|number| Instance([number; 16]));
    for instance in [first, second, third] {
        scene.join(instance, 0);
    }
    assert!(
        scene.joins(first, 1),
        "one more session is no listener more"
    );
    assert!(!scene.joins(Instance([9; 16]), 0));
    assert_eq!(scene.book.beyond(&name(), 3), []);
    assert_eq!(scene.book.beyond(&name(), 1), [second, third]);
    scene.leave(second, 0);
    assert_eq!(scene.book.beyond(&name(), 1), [third]);
}

/// A book, a clock and seeded chance.
struct Scene {
    book: Book,
    now: Instant,
    endpoint: Endpoint,
    plan: Plan,
    rng: StdRng,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            book: Book::default(),
            now: Instant::now(),
            endpoint: "db01.corp:1433".parse().expect("an endpoint"),
            plan: Plan::of_test(&[]),
            rng: StdRng::seed_from_u64(7),
        };
        scene.define("db01.corp:1433", true);
        scene
    }

    fn define(&mut self, endpoint: &str, probe: bool) {
        self.endpoint = endpoint.parse().expect("an endpoint");
        self.plan = Plan::of_test(&[(NAME, endpoint, probe)]);
        self.book.define(self.now, &self.plan);
    }

    fn pass(&mut self, length: Duration) {
        self.now += length;
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            unix_ms: 1_000,
        }
    }

    fn join(&self, instance: Instance, worker: u8) {
        assert!(self.joins(instance, worker), "under the limit");
    }

    /// Whether it was let in.
    fn joins(&self, instance: Instance, worker: u8) -> bool {
        self.joins_as(AgentId(instance.0), instance, worker)
    }

    fn joins_as(&self, agent_id: AgentId, instance: Instance, worker: u8) -> bool {
        let definition = &self.plan.snapshot.hycos[0];
        let who = Who {
            agent_id,
            ..who(instance)
        };
        self.book.join(self.now, definition, who, worker)
    }

    fn leave(&self, instance: Instance, worker: u8) {
        let why = "session lost: timed out";
        self.book
            .leave(self.moment(), &name(), instance, worker, why);
    }

    fn note(
        &mut self,
        instance: Instance,
        endpoint: &Endpoint,
        failed: Option<FlowCode>,
        by_flow: bool,
    ) -> Option<Live> {
        let dial = Dial {
            failed,
            latency: Duration::from_millis(1),
            by_flow,
        };
        let moment = self.moment();
        self.book
            .dialled(moment, &name(), instance, endpoint, dial, &mut self.rng)
    }

    /// A flow that was over at once.
    fn flow(&mut self, instance: Instance, failed: Option<FlowCode>) {
        drop(self.live_flow(instance, failed));
    }

    fn live_flow(&mut self, instance: Instance, failed: Option<FlowCode>) -> Option<Live> {
        let endpoint = self.endpoint.clone();
        self.note(instance, &endpoint, failed, true)
    }

    fn probe(&mut self, instance: Instance, failed: Option<FlowCode>) {
        let endpoint = self.endpoint.clone();
        let live = self.note(instance, &endpoint, failed, false);
        assert!(live.is_none(), "a probe is no flow");
    }

    /// Answers every probe that comes due in this time, a minute at a time; how many that were.
    fn probes_in(&mut self, length: Duration, failed: Option<FlowCode>) -> u32 {
        let end = self.now + length;
        let mut count = 0;
        while self.now < end {
            for instance in self.due_anywhere() {
                self.probe(instance, failed);
                count += 1;
            }
            self.pass(Duration::from_secs(10));
        }
        count
    }

    fn unsaid(&mut self, instance: Instance) {
        self.book.unsaid(self.now, &name(), instance, &mut self.rng);
    }

    fn pending_probes(&mut self, worker: u8, most: usize) -> Vec<PendingProbe> {
        self.book.due(worker, self.now, most, &mut self.rng)
    }

    fn due(&mut self, worker: u8) -> Vec<Instance> {
        let pending_probes = self.pending_probes(worker, MANY);
        pending_probes
            .iter()
            .map(|pending| pending.instance)
            .collect()
    }

    fn due_anywhere(&mut self) -> Vec<Instance> {
        (0..3)
            .flat_map(|worker| self.due(worker))
            .collect::<Vec<_>>()
    }

    fn view(&self) -> View {
        self.book.view(&name()).expect("defined")
    }

    fn last(&self, instance: Instance) -> Option<Dial> {
        let listeners = self.view().listeners;
        let seen = listeners
            .iter()
            .find(|seen| seen.who.instance == instance)
            .expect("it listens");
        seen.last.map(|(dial, _)| dial)
    }
}

fn name() -> HycoName {
    NAME.parse().expect("a name")
}

fn who(instance: Instance) -> Who {
    Who {
        agent_id: AgentId(instance.0),
        instance,
        remote: SocketAddr::from(([192, 0, 2, 7], 40_112)),
    }
}
