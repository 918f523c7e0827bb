//! What is measured along an axis: names, units, and what a straight line of it looks like. Knows
//! no processes.

use serde::Serialize;

/// A figure of one process, or of the whole.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Figure {
    /// What.
    pub kind: Kind,
    /// Whose.
    pub of: Part,
}

/// Kinds of figures. The name in JSON is the name here, in snake case.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Processor time of one request and its response.
    RequestCpu,
    /// Processor time of moved bytes.
    ByteCpu,
    /// 99th percentile of a request's time, from when it was due.
    RequestP99,
    /// Processor time of opening one flow, its first answer included.
    OpeningCpu,
    /// Processor time of ending one flow, of many that end at once.
    ClosingCpu,
    /// From the first connect until all flows were answered.
    OpeningTime,
    /// Memory of one idle flow.
    FlowMemory,
    /// Memory of one idle session.
    SessionMemory,
    /// Memory of the process.
    Memory,
    /// Processor time of each second in which nothing is asked for.
    IdleCpu,
    /// From the start of the processes until all bindings are open and the agent is registered.
    Ready,
    /// From a changed definition's file to its effect.
    Change,
    /// From the relay's start until all agents have registered again.
    Reconnect,
    /// Processor time from the relay's start until then.
    ReconnectCpu,
}

/// Whose figure it is.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The relay's process.
    Relay,
    /// The agent's process; the process of all agents where there are many.
    Agent,
    /// Control's process.
    Control,
    /// All of them together, as a user sees it.
    Whole,
}

/// What a figure does when growth is straight.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// It is a cost of one unit and stays what it is.
    Each,
    /// It grows by the same with each unit, from a fixed cost.
    Sum,
    /// It is told and not judged: it depends on more than the product.
    Told,
}

impl Kind {
    /// In words, with what the figure is divided by.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Kind::RequestCpu => "processor time per request",
            Kind::ByteCpu => "processor time per gigabyte",
            Kind::RequestP99 => "p99 of a request",
            Kind::OpeningCpu => "processor time per opened flow",
            Kind::ClosingCpu => "processor time per ended flow",
            Kind::OpeningTime => "time to open all flows",
            Kind::FlowMemory => "memory per idle flow",
            Kind::SessionMemory => "memory per idle session",
            Kind::Memory => "memory",
            Kind::IdleCpu => "processor time per second, idle",
            Kind::Ready => "time from start to ready",
            Kind::Change => "time until a change takes effect",
            Kind::Reconnect => "time until all agents are back",
            Kind::ReconnectCpu => "processor time until all are back",
        }
    }

    /// Its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Kind::RequestCpu | Kind::OpeningCpu | Kind::ClosingCpu => "µs",
            Kind::ByteCpu | Kind::OpeningTime | Kind::Ready | Kind::Reconnect => "s",
            Kind::RequestP99 | Kind::IdleCpu | Kind::Change | Kind::ReconnectCpu => "ms",
            Kind::FlowMemory | Kind::SessionMemory => "B",
            Kind::Memory => "MiB",
        }
    }

    /// What it does when growth is straight.
    #[must_use]
    pub fn shape(self) -> Shape {
        match self {
            Kind::RequestCpu
            | Kind::ByteCpu
            | Kind::OpeningCpu
            | Kind::ClosingCpu
            | Kind::FlowMemory
            | Kind::SessionMemory => Shape::Each,
            Kind::OpeningTime
            | Kind::Memory
            | Kind::IdleCpu
            | Kind::Ready
            | Kind::Change
            | Kind::Reconnect
            | Kind::ReconnectCpu => Shape::Sum,
            Kind::RequestP99 => Shape::Told,
        }
    }

    /// Of this part.
    #[must_use]
    pub fn of(self, of: Part) -> Figure {
        Figure { kind: self, of }
    }
}

impl Part {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Relay => "relay",
            Part::Agent => "agent",
            Part::Control => "control",
            Part::Whole => "all",
        }
    }
}

/// A number with three digits that mean something.
#[must_use]
pub(super) fn number(figure: f64) -> String {
    let size = figure.abs();
    if size >= 100.0 || size == 0.0 {
        format!("{figure:.0}")
    } else if size >= 10.0 {
        format!("{figure:.1}")
    } else if size >= 0.1 {
        format!("{figure:.2}")
    } else {
        format!("{figure:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        let told: Vec<String> = [0.0, 0.01234, 0.5, 12.34, 2468.1, -3.456]
            .map(number)
            .to_vec();
        assert_eq!(told, ["0", "0.012", "0.50", "12.3", "2468", "-3.46"]);
    }
}
