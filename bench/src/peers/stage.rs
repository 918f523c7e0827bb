//! What lasts for a whole run: the places, and the server that takes long to make.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use underpass_tests::servers::postgres::Postgres;

use super::site::Site;
use super::{Row, Settings, rows};

/// Made when it is first needed, and gone with the run.
#[derive(Debug)]
pub struct Stage {
    /// Of the run.
    pub settings: Settings,
    loopback: Site,
    apart: Option<Site>,
    database: Option<Postgres>,
}

impl Stage {
    /// An empty one.
    #[must_use]
    pub fn new(settings: Settings) -> Stage {
        Stage {
            settings,
            loopback: Site::loopback(),
            apart: None,
            database: None,
        }
    }

    /// Makes what a row needs and what is not there yet.
    ///
    /// # Errors
    /// The kernel permits no network namespaces, or PostgreSQL does not start.
    pub fn prepare(&mut self, row: Row) -> Result<()> {
        if row.is_apart() && self.apart.is_none() {
            self.apart = Some(Site::apart()?);
        }
        if row.needs_database() && self.database.is_none() {
            self.database = Some(rows::start_database()?);
        }
        Ok(())
    }

    /// Where a row runs.
    #[must_use]
    pub fn site(&self, row: Row) -> &Site {
        let apart = self.apart.as_ref().filter(|_| row.is_apart());
        apart.unwrap_or(&self.loopback)
    }

    /// The one PostgreSQL.
    ///
    /// # Errors
    /// None was made.
    pub fn database(&self) -> Result<SocketAddr> {
        let server = self
            .database
            .as_ref()
            .context("no PostgreSQL was started")?;
        Ok(server.address)
    }
}
