//! A scenario's calls, made by a process of their own.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::trial::Trial;
use crate::scenario::Outcome;
use crate::stand::process::Process;

/// Longer than a scenario's own end takes.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Calls under way.
pub(super) struct Calls {
    process: Process,
    folder: TempDir,
    length: Duration,
}

impl Calls {
    /// Begins a scenario of this length, given as its file's text.
    pub(super) fn start(
        trial: &mut Trial<'_>,
        target: SocketAddr,
        groups: &str,
        length: Duration,
    ) -> Result<Calls> {
        let folder = TempDir::with_prefix("underpass-calls-")?;
        let file = folder.path().join("row.toml");
        let length_ms = length.as_millis();
        fs::write(&file, format!("duration = \"{length_ms}ms\"\n{groups}"))?;
        let mut command = Command::new(trial.own());
        command
            .arg("run")
            .arg(&file)
            .args(["--target", &target.to_string()]);
        command.args(["--seed", &trial.chance(u64::MAX).to_string()]);
        command.arg("--json").arg(folder.path().join("out.json"));
        Ok(Calls {
            process: Process::start("calls", &mut command)?,
            folder,
            length,
        })
    }

    /// Ends them early.
    pub(super) fn stop(mut self, trial: &mut Trial<'_>) -> Result<Outcome> {
        self.process.ask_to_end()?;
        self.end(trial)
    }

    /// Waits for their end, and gives their endings to the trial.
    pub(super) fn end(mut self, trial: &mut Trial<'_>) -> Result<Outcome> {
        self.process.wait(self.length + ENDS_WITHIN)?;
        let file = self.folder.path().join("out.json");
        let text = fs::read_to_string(&file).with_context(|| self.process.log_end())?;
        let outcome: Outcome = serde_json::from_str(&text)?;
        trial.take_calls(&outcome);
        Ok(outcome)
    }
}
