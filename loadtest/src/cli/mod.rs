//! One module for each subcommand.

pub(crate) mod endpoint;
pub(crate) mod flows;
pub(crate) mod processes;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod scenarios;
