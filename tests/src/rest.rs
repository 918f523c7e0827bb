//! Control's REST API, asked by curl: a client of the system, with a token of the manage key as any
//! other would make it.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tempfile::TempDir;
use underpass_proto::Key;
use underpass_proto::sas::{self, SasRule};

use crate::deadline::{MOMENT, wait_for};
use crate::installation::{Installation, write_secret};
use crate::process::run_ok;
use crate::servers::program;

/// How long a token is good for, seconds.
const TOKEN_SECS: u64 = 300;

/// The API of one installation.
#[derive(Debug)]
pub struct Rest {
    /// Host and port, as in requests.
    host: String,
    manage: Key,
    folder: TempDir,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

impl Rest {
    /// Finds where control listens, and the primary manage key.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn of(installation: &Installation) -> Result<Self> {
        let host = wait_for("the REST API to listen", MOMENT, || {
            let log = installation.control().as_ref()?.stderr();
            let line = log.lines().find(|line| line.contains("REST API listens"))?;
            let address = line.split("address=").nth(1)?;
            Some(address.split_whitespace().next()?.to_owned())
        })?;
        let keys = installation.directory().join("keys").join("_manage.toml");
        let text = fs::read_to_string(&keys)
            .with_context(|| format!("no manage keys in {}", keys.display()))?;
        let manage = text.split('"').nth(1).context("no key in _manage.toml")?;
        Ok(Self {
            host,
            manage: manage.parse()?,
            folder: TempDir::with_prefix("underpass-rest-")?,
        })
    }

    /// Asks with a token of the manage key that is good for all.
    ///
    /// # Errors
    /// When there is no answer. What it says is for the caller to judge.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        self.ask_with(&self.token(TOKEN_SECS.cast_signed())?, method, path, body)
    }

    /// A token of the manage key that is over in so many seconds; or was so many ago, where
    /// negative.
    ///
    /// # Errors
    /// When the clock stands before 1970.
    pub fn token(&self, good_for: i64) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let expires = now.saturating_add_signed(good_for);
        Ok(sas::make(&self.uri("/"), SasRule::Manage, &self.manage, expires).to_string())
    }

    /// What a token is made for.
    #[must_use]
    pub fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// Asks with any token.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_with(&self, token: &str, method: &str, path: &str, body: &str) -> Result<Answer> {
        let config = self.folder.path().join("curl");
        let mut text = format!(
            "silent\nshow-error\nmax-time = {}\nrequest = \"{method}\"\nurl = \"http://{}{path}\"\nheader = \"Authorization: {token}\"\nwrite-out = \"\\n%{{http_code}}\"\n",
            Duration::from_secs(20).as_secs(),
            self.host
        );
        if !body.is_empty() {
            let escaped = body.replace('\\', "\\\\").replace('"', "\\\"");
            writeln!(
                text,
                "header = \"Content-Type: application/json\"\ndata = \"{escaped}\""
            )?;
        }
        write_secret(&config, &text)?;
        let mut curl = std::process::Command::new(program("curl", "curl")?);
        let said = run_ok(curl.arg("--config").arg(&config), MOMENT)?;
        let (body, status) = said.rsplit_once('\n').context("curl said no status")?;
        Ok(Answer {
            status: status.parse()?,
            body: body.to_owned(),
        })
    }
}

impl Answer {
    /// The answer, if it is one of success.
    ///
    /// # Errors
    /// When it is not; what it says is in the message.
    pub fn well(self) -> Result<Self> {
        anyhow::ensure!(
            (200..300).contains(&self.status),
            "{} {}",
            self.status,
            self.body
        );
        Ok(self)
    }
}
