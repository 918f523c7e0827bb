//! The works that are measured: a server, a client that tells figures, and what a unit of the work
//! is.

mod http;
mod idle;
mod iperf;
mod latency;
mod pgbench;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use underpass_loadtest::Endpoint;
use underpass_tests::network::Machine;
use underpass_tests::process::Process;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::postgres::Postgres;

use super::measure::{Figures, Measure};
use super::stage::Stage;
use super::tools::Missing;
use super::ways::{Mtu, Open, Way};

/// PostgreSQL with what its row asks for.
///
/// # Errors
/// It is not installed or does not start.
pub fn start_database() -> Result<Postgres> {
    pgbench::prepare()
}

/// A work.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Row {
    /// iperf3, one flow, application to endpoint.
    Bulk,
    /// iperf3, 8 flows, application to endpoint.
    #[value(name = "bulk-8")]
    Bulk8,
    /// iperf3, one flow, endpoint to application.
    BulkReverse,
    /// iperf3, 8 flows, endpoint to application.
    #[value(name = "bulk-8-reverse")]
    Bulk8Reverse,
    /// iperf3, one flow, between two network namespaces joined by a cable of 1,500 bytes. Needs
    /// root.
    Namespaces,
    /// wrk, 64 kept connections, small replies of nginx.
    #[value(name = "http-64")]
    Http64,
    /// wrk, a new connection for each request, 16 at a time, small replies of nginx.
    HttpNew,
    /// pgbench, select only, prepared, 8 connections to PostgreSQL.
    Pgbench,
    /// One byte there and back, open loop, one flow at rest.
    PingPong,
    /// The same beside one flow in bulk, one worker in relay and agent each: on the same session.
    PingBesideBulk,
    /// Statements of one connection to a database, open loop, alone; one worker each in this row
    /// and the next three.
    #[value(name = "sql-beside-0")]
    SqlBeside0,
    /// The same beside one flow in bulk of the same session.
    #[value(name = "sql-beside-1")]
    SqlBeside1,
    /// The same beside 8.
    #[value(name = "sql-beside-8")]
    SqlBeside8,
    /// The same beside 64.
    #[value(name = "sql-beside-64")]
    SqlBeside64,
    /// 2,000 flows at rest: memory of relay and agent for each.
    IdleMemory,
    /// 8,000 flows at rest that all speak at once, or as many as the limit of files permits.
    Burst,
}

/// What a load came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Done {
    /// Of the work itself.
    pub figures: Figures,
    /// Bytes or requests.
    pub work: f64,
}

impl Done {
    fn rate(rate: f64, work: f64) -> Done {
        Done {
            figures: [(Measure::Rate, rate)].into(),
            work,
        }
    }
}

/// A running server.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    running: Running,
}

enum Running {
    Process(#[expect(dead_code, reason = "held for as long as it shall run")] Process),
    Nginx(#[expect(dead_code, reason = "likewise")] Nginx),
    Echo(idle::Echo),
    Endpoint(#[expect(dead_code, reason = "likewise")] Endpoint),
    /// The stage's, for the whole run.
    Elsewhere,
}

/// What the program beside a row is, and how it is told to work.
enum Kind {
    Iperf(iperf::Shape),
    Http(http::Shape),
    Pgbench,
    AtRest,
    BesideBulk,
    /// Beside so many flows in bulk.
    Sql(u32),
    Idle,
    Burst,
}

impl Row {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Row::Bulk => "bulk",
            Row::Bulk8 => "bulk-8",
            Row::BulkReverse => "bulk-reverse",
            Row::Bulk8Reverse => "bulk-8-reverse",
            Row::Namespaces => "namespaces",
            Row::Http64 => "http-64",
            Row::HttpNew => "http-new",
            Row::Pgbench => "pgbench",
            Row::PingPong => "ping-pong",
            Row::PingBesideBulk => "ping-beside-bulk",
            Row::SqlBeside0 => "sql-beside-0",
            Row::SqlBeside1 => "sql-beside-1",
            Row::SqlBeside8 => "sql-beside-8",
            Row::SqlBeside64 => "sql-beside-64",
            Row::IdleMemory => "idle-memory",
            Row::Burst => "burst",
        }
    }

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Row::Bulk => "bulk, 1 flow",
            Row::Bulk8 => "bulk, 8 flows",
            Row::BulkReverse => "bulk, 1 flow, reverse",
            Row::Bulk8Reverse => "bulk, 8 flows, reverse",
            Row::Namespaces => "bulk, 1 flow, MTU 1500 between namespaces",
            Row::Http64 => "HTTP, 64 kept connections",
            Row::HttpNew => "HTTP, a new connection each",
            Row::Pgbench => "pgbench -S, 8 clients",
            Row::PingPong => "1 byte there and back",
            Row::PingBesideBulk => "1 byte beside bulk, 1 worker",
            Row::SqlBeside0 => "SQL-like flow alone, 1 worker",
            Row::SqlBeside1 => "SQL-like flow beside 1 in bulk",
            Row::SqlBeside8 => "SQL-like flow beside 8 in bulk",
            Row::SqlBeside64 => "SQL-like flow beside 64 in bulk",
            Row::IdleMemory => "memory of an idle flow",
            Row::Burst => "idle flows, then all speak",
        }
    }

    /// What it is about, the first of them first.
    #[must_use]
    pub fn measures(self) -> &'static [Measure] {
        match self.kind() {
            Kind::Iperf(_) | Kind::Http(_) | Kind::Pgbench => &[Measure::Rate],
            Kind::AtRest => &[
                Measure::P50,
                Measure::P99,
                Measure::AddedP50,
                Measure::AddedP99,
            ],
            Kind::Sql(0) => &[Measure::P99, Measure::P50],
            Kind::BesideBulk | Kind::Sql(_) => &[Measure::P99, Measure::P50, Measure::Rate],
            Kind::Idle => &[Measure::RelayMemory, Measure::AgentMemory, Measure::Flows],
            Kind::Burst => &[Measure::AllAnswered, Measure::Lost, Measure::Flows],
        }
    }

    /// The first of [`Self::measures`].
    #[must_use]
    pub fn headline(self) -> Measure {
        self.measures()[0]
    }

    /// Of one of its figures; nothing where it is a plain number.
    #[must_use]
    pub fn unit(self, measure: Measure) -> &'static str {
        match (measure, self.kind()) {
            (Measure::Rate, Kind::Iperf(_) | Kind::BesideBulk | Kind::Sql(_)) => "Gbit/s",
            (Measure::Rate, Kind::Pgbench) => "transactions/s",
            (Measure::Rate, _) => "requests/s",
            (Measure::Cost, Kind::Iperf(_) | Kind::BesideBulk | Kind::Sql(1..)) => "s/GB",
            (Measure::Cost, _) => "s/100,000",
            (measure, _) => measure.unit(),
        }
    }

    /// Processor time, seconds, for each gigabyte (10^9), or for 100,000 requests or flows.
    #[must_use]
    pub fn cost(self, cpu: Duration, work: f64) -> f64 {
        let unit = match self.kind() {
            Kind::Iperf(_) | Kind::BesideBulk | Kind::Sql(1..) => 1e9,
            _ => 1e5,
        };
        cpu.as_secs_f64() * unit / work
    }

    /// Whether it runs between network namespaces.
    #[must_use]
    pub fn is_apart(self) -> bool {
        self == Row::Namespaces
    }

    /// Workers or threads of relay and agent, of those that the run has: one where two flows must
    /// share a session.
    #[must_use]
    pub fn workers(self, usual: usize) -> usize {
        match self.kind() {
            Kind::BesideBulk | Kind::Sql(_) => 1,
            _ => usual,
        }
    }

    /// Flows in bulk beside the one whose times it tells, where it is one of those that make a
    /// curve.
    #[must_use]
    pub fn in_bulk(self) -> Option<u32> {
        match self.kind() {
            Kind::Sql(beside) => Some(beside),
            _ => None,
        }
    }

    /// Whether it asks the one PostgreSQL.
    #[must_use]
    pub fn needs_database(self) -> bool {
        self == Row::Pgbench
    }

    /// Whether it is measured over a way. Where the cable holds datagrams at 1,500 bytes, a way
    /// that is held there too says nothing new, and where there is no tunnel, it has no memory.
    #[must_use]
    pub fn takes(self, way: Way) -> bool {
        match self {
            Row::Namespaces => way.mtu() != Some(Mtu::Held),
            Row::IdleMemory => way != Way::Direct,
            _ => true,
        }
    }

    /// Whether what it needs is here.
    ///
    /// # Errors
    /// It is not.
    pub fn check_possible(self) -> Result<(), Missing> {
        if self.is_apart()
            && let Some(what) = Machine::unavailable()
        {
            return Err(Missing {
                what,
                install: None,
            });
        }
        match self.kind() {
            Kind::Iperf(_) => iperf::check_installed(),
            Kind::Http(_) => http::check_installed(),
            Kind::Pgbench => pgbench::check_installed(),
            Kind::AtRest | Kind::BesideBulk | Kind::Sql(_) | Kind::Idle | Kind::Burst => Ok(()),
        }
    }

    /// Starts the server.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(self, stage: &Stage) -> Result<Server> {
        match self.kind() {
            Kind::Iperf(_) => iperf::serve(stage.site(self)),
            Kind::Http(_) => http::serve(),
            Kind::Pgbench => Ok(Server {
                address: stage.database()?,
                running: Running::Elsewhere,
            }),
            Kind::AtRest | Kind::BesideBulk | Kind::Sql(_) => latency::serve(),
            Kind::Idle | Kind::Burst => idle::serve(),
        }
    }

    /// Makes the load.
    ///
    /// # Errors
    /// The client fails, or tells of a request or a flow that did.
    pub fn load(self, stage: &Stage, server: &Server, open: &Open) -> Result<Done> {
        let length = stage.settings.length;
        match self.kind() {
            Kind::Iperf(shape) => iperf::load(stage.site(self), shape, open.address, length),
            Kind::Http(shape) => http::load(shape, open.address, length),
            Kind::Pgbench => pgbench::load(open.address, length),
            Kind::AtRest => latency::at_rest(open.address, length),
            Kind::BesideBulk => latency::beside_bulk(open.address, length),
            Kind::Sql(beside) => latency::statements(open.address, beside, length),
            Kind::Idle => idle::memory(open, idle::permitted(idle::RESTING)),
            Kind::Burst => match &server.running {
                Running::Echo(echo) => idle::burst(open, echo, idle::permitted(idle::SPEAKING)),
                _ => bail!("a burst needs its own server"),
            },
        }
    }

    fn kind(self) -> Kind {
        match self {
            Row::Bulk | Row::Namespaces => Kind::Iperf(iperf::Shape::ONE),
            Row::Bulk8 => Kind::Iperf(iperf::Shape::MANY),
            Row::BulkReverse => Kind::Iperf(iperf::Shape::ONE_REVERSE),
            Row::Bulk8Reverse => Kind::Iperf(iperf::Shape::MANY_REVERSE),
            Row::Http64 => Kind::Http(http::Shape::KEPT),
            Row::HttpNew => Kind::Http(http::Shape::NEW),
            Row::Pgbench => Kind::Pgbench,
            Row::PingPong => Kind::AtRest,
            Row::PingBesideBulk => Kind::BesideBulk,
            Row::SqlBeside0 => Kind::Sql(0),
            Row::SqlBeside1 => Kind::Sql(1),
            Row::SqlBeside8 => Kind::Sql(8),
            Row::SqlBeside64 => Kind::Sql(64),
            Row::IdleMemory => Kind::Idle,
            Row::Burst => Kind::Burst,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Row, D::Error> {
        let name = String::deserialize(deserializer)?;
        <Row as ValueEnum>::from_str(&name, false).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_told_in_the_units_of_the_table() {
        let cpu = Duration::from_secs(3);
        assert_eq!(Row::Bulk.cost(cpu, 2e9), 1.5);
        assert_eq!(Row::Http64.cost(cpu, 200_000.0), 1.5);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for row in Row::value_variants() {
            let value = row.to_possible_value().expect("shown");
            assert_eq!(value.get_name(), row.name());
        }
    }
}
