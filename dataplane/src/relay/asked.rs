//! Probes that control asks for: every listener of a hybrid connection is asked once, and the
//! answer leaves when all have answered, or at the deadline. Waits for nobody: the supervisor tells
//! it what happened.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::snapshot::{ProbeReport, ProbedDial, ProbedListener};
use underpass_proto::{FeedMessage, HycoName, Instance};

use super::listeners::{PROBES_ASKED_MAX, PendingProbe, Seen, View};
use super::peers::Asker;

/// Questions under way at once; a person asks one.
const QUESTIONS_MAX: usize = 64;

/// Answers of workers that may wait for the supervisor: all questions, each to the usual number of
/// listeners.
const ANSWERS_MAX: usize = QUESTIONS_MAX * underpass_proto::limits::LISTENERS_MAX_DEFAULT as usize;

/// After the deadline of the workers themselves, so that theirs is heard first.
const DEADLINE: Duration = Duration::from_secs(OPEN_DEADLINE.as_secs() + 1);

/// All questions under way.
#[derive(Debug)]
pub(crate) struct Asked {
    by_token: HashMap<u64, Question>,
    last_token: u64,
    answers: Sender<(u64, ProbedListener)>,
    /// What workers found.
    pub(crate) found: Receiver<(u64, ProbedListener)>,
}

#[derive(Debug)]
struct Question {
    id: u64,
    deadline: Instant,
    waiting: HashMap<Instance, ProbedListener>,
    found: Vec<ProbedListener>,
}

/// What a worker is to be told.
#[derive(Debug)]
pub(crate) struct Order {
    /// Which worker.
    pub(crate) worker: u8,
    /// What to probe.
    pub(crate) pending: PendingProbe,
    /// Who waits for it.
    pub(crate) asker: Asker,
}

impl Default for Asked {
    fn default() -> Self {
        let (answers, found) = bounded(ANSWERS_MAX);
        Self {
            by_token: HashMap::new(),
            last_token: 0,
            answers,
            found,
        }
    }
}

impl Asked {
    /// Begins one. Answers what the workers are to be told, or what is to be said at once.
    ///
    /// # Errors
    /// The answer, where nobody has to be asked.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        id: u64,
        name: &HycoName,
        view: Option<&View>,
    ) -> Result<Vec<Order>, FeedMessage> {
        let Some(view) = view else {
            return Err(answer(id, ProbeReport::default()));
        };
        let silent = || view.listeners.iter().map(|seen| unanswered(seen, None));
        let known = |agents| ProbeReport {
            known: true,
            agents,
        };
        let may = |seen: &&Seen| view.probing.may_ask(seen.probes);
        if !view.listeners.is_empty() && !view.listeners.iter().any(|seen| may(&seen)) {
            let spent = |seen| unanswered(seen, Some(spent(view)));
            return Err(answer(
                id,
                known(view.listeners.iter().map(spent).collect()),
            ));
        }
        if view.listeners.is_empty() || self.by_token.len() >= QUESTIONS_MAX {
            return Err(answer(id, known(silent().collect())));
        }
        self.last_token += 1;
        let token = self.last_token;
        let question = Question {
            id,
            deadline: now + DEADLINE,
            waiting: view
                .listeners
                .iter()
                .filter(may)
                .map(|seen| (seen.who.instance, unanswered(seen, None)))
                .collect(),
            found: view
                .listeners
                .iter()
                .filter(|seen| !may(seen))
                .map(|seen| unanswered(seen, Some(spent(view))))
                .collect(),
        };
        self.by_token.insert(token, question);
        let order = |seen: &Seen| Order {
            worker: seen.worker,
            pending: PendingProbe {
                hyco: name.clone(),
                instance: seen.who.instance,
                endpoint: view.endpoint.clone(),
            },
            asker: Asker {
                token,
                answers: self.answers.clone(),
            },
        };
        Ok(view.listeners.iter().filter(may).map(order).collect())
    }

    /// A listener was probed, or gave no answer. Answers what is to be said when it was the last
    /// one.
    pub(crate) fn answered(&mut self, token: u64, listener: ProbedListener) -> Option<FeedMessage> {
        let question = self.by_token.get_mut(&token)?;
        question.waiting.remove(&listener.instance)?;
        question.found.push(listener);
        if !question.waiting.is_empty() {
            return None;
        }
        self.by_token.remove(&token).map(Question::answer)
    }

    /// What is to be said about questions that took too long.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<FeedMessage> {
        let over: Vec<u64> = self
            .by_token
            .iter()
            .filter(|(_, question)| question.deadline <= now)
            .map(|(&token, _)| token)
            .collect();
        over.into_iter()
            .filter_map(|token| self.by_token.remove(&token))
            .map(Question::answer)
            .collect()
    }

    /// Control, who asked, is gone.
    pub(crate) fn forget(&mut self) {
        self.by_token.clear();
    }
}

impl Question {
    fn answer(self) -> FeedMessage {
        let mut agents = self.found;
        agents.extend(self.waiting.into_values());
        agents.sort_by_key(|listener| (listener.agent_id, listener.instance));
        answer(
            self.id,
            ProbeReport {
                known: true,
                agents,
            },
        )
    }
}

fn answer(id: u64, report: ProbeReport) -> FeedMessage {
    FeedMessage::Probed {
        id,
        report: Some(Box::new(report)),
    }
}

fn unanswered(seen: &Seen, dial: Option<ProbedDial>) -> ProbedListener {
    ProbedListener {
        agent_id: seen.who.agent_id,
        instance: seen.who.instance,
        remote: seen.who.remote,
        rtt_us: 0,
        dial,
    }
}

/// One more could make the service lock the agent's host out.
fn spent(view: &View) -> ProbedDial {
    let why = format!(
        "not probed: {PROBES_ASKED_MAX} probes in a row without a flow between may be, or the service could lock the agent's host out; \
         connect once through the binding, or write probe = \"on\" where the service does not count"
    );
    not_probed(view, why)
}

fn not_probed(view: &View, why: String) -> ProbedDial {
    ProbedDial {
        endpoint: view.endpoint.clone(),
        address: None,
        resolve_us: 0,
        dial_us: 0,
        failed: Some("not_probed".to_owned()),
        why: Some(why),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use underpass_proto::AgentId;

    use super::*;
    use crate::relay::listeners::{Probing, Who};

    fn name() -> HycoName {
        "payroll-sql".parse().expect("a name")
    }

    fn view(listeners: u8) -> View {
        let seen = |number| Seen {
            who: Who {
                agent_id: AgentId([number; 16]),
                instance: Instance([number; 16]),
                remote: SocketAddr::from(([127, 0, 0, 1], 4_000)),
            },
            worker: number,
            last: None,
            probes: 0,
            rests: false,
        };
        View {
            endpoint: "db01.corp:1433".parse().expect("an endpoint"),
            probing: Probing::Auto,
            listeners: (0..listeners).map(seen).collect(),
            left: None,
        }
    }

    /// What the first listener answers after a dial.
    fn dialled(view: &View) -> ProbedListener {
        let dial = ProbedDial {
            endpoint: view.endpoint.clone(),
            address: None,
            resolve_us: 0,
            dial_us: 0,
            failed: Some("refused".to_owned()),
            why: None,
        };
        unanswered(&view.listeners[0], Some(dial))
    }

    fn report(message: FeedMessage) -> (u64, ProbeReport) {
        match message {
            FeedMessage::Probed {
                id,
                report: Some(report),
            } => (id, *report),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_answer_leaves_with_the_last_listeners() {
        let (now, mut asked) = (Instant::now(), Asked::default());
        let view = view(2);
        let orders = asked
            .begin(now, 7, &name(), Some(&view))
            .expect("two to ask");
        let workers: Vec<u8> = orders.iter().map(|order| order.worker).collect();
        assert_eq!(workers, [0, 1]);
        let token = orders[0].asker.token;
        let found = |at: usize| unanswered(&view.listeners[at], None);
        assert_eq!(asked.answered(token, found(1)), None);
        assert_eq!(asked.answered(token, found(1)), None, "answers once");
        let (id, report) = report(asked.answered(token, found(0)).expect("all answered"));
        assert_eq!((id, report.known, report.agents.len()), (7, true, 2));
        assert_eq!(report.agents[0].instance, Instance([0; 16]));
        assert_eq!(asked.overdue(now + 2 * DEADLINE), []);
    }

    #[test]
    fn at_the_deadline_the_silent_are_told_as_silent() {
        let (now, mut asked) = (Instant::now(), Asked::default());
        let view = view(2);
        let orders = asked
            .begin(now, 7, &name(), Some(&view))
            .expect("two to ask");
        let _ = asked.answered(orders[0].asker.token, dialled(&view));
        assert_eq!(asked.overdue(now + DEADLINE / 2), []);
        let late = asked.overdue(now + DEADLINE).pop().expect("overdue");
        let dials: Vec<bool> = report(late)
            .1
            .agents
            .iter()
            .map(|agent| agent.dial.is_some())
            .collect();
        assert_eq!(dials, [true, false]);
    }

    #[test]
    fn nobody_is_asked_about_the_unknown_and_the_empty_and_with_probe_off_agents_are_asked() {
        let (now, mut asked) = (Instant::now(), Asked::default());
        let unknown = asked.begin(now, 1, &name(), None).expect_err("unknown");
        assert_eq!(report(unknown).1, ProbeReport::default());
        let empty = asked
            .begin(now, 2, &name(), Some(&view(0)))
            .expect_err("empty");
        assert_eq!(
            report(empty).1,
            ProbeReport {
                known: true,
                agents: Vec::new()
            }
        );
        let off = View {
            probing: Probing::Off,
            ..view(1)
        };
        let orders = asked.begin(now, 3, &name(), Some(&off)).expect("asked");
        assert_eq!(
            orders.len(),
            1,
            "a person asks: the switch is for the relay"
        );
    }

    #[test]
    fn a_listener_that_probed_too_often_is_not_asked_and_the_others_are() {
        let (now, mut asked) = (Instant::now(), Asked::default());
        let mut view = view(2);
        view.listeners[0].probes = PROBES_ASKED_MAX;
        let orders = asked.begin(now, 7, &name(), Some(&view)).expect("one");
        assert_eq!(orders.len(), 1);
        let other = unanswered(&view.listeners[1], None);
        let answer = asked.answered(orders[0].asker.token, other);
        let agents = report(answer.expect("all answered")).1.agents;
        let dial = agents[0].dial.as_ref().expect("it says why not");
        assert_eq!(
            (agents.len(), dial.failed.as_deref()),
            (2, Some("not_probed"))
        );
        view.listeners[1].probes = PROBES_ASKED_MAX;
        let none = asked.begin(now, 8, &name(), Some(&view)).expect_err("none");
        assert_eq!(report(none).1.agents.len(), 2);
        view.probing = Probing::Always;
        let all = asked.begin(now, 9, &name(), Some(&view)).expect("both");
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn questions_are_bounded() {
        let (now, mut asked) = (Instant::now(), Asked::default());
        for id in 0..QUESTIONS_MAX as u64 {
            asked
                .begin(now, id, &name(), Some(&view(1)))
                .expect("has room");
        }
        let turned_away = asked
            .begin(now, 99, &name(), Some(&view(1)))
            .expect_err("full");
        assert_eq!(report(turned_away).0, 99);
        asked.forget();
        asked
            .begin(now, 100, &name(), Some(&view(1)))
            .expect("has room again");
    }
}
