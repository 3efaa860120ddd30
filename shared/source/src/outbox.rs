//! Installing an outbox beside a table of users, removing it, and how it stands.

use serde::Serialize;

use usersync_core::member::Member;

use crate::{
    Database, Failure, Layout, Server, SourceError, TableName,
    database::within,
    layout::{ABOUT, OUTBOX},
    mysql, postgres,
    session::Installed,
    sqlite,
};

/// How long a look may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
/// Reasons shown of rows that can't be published.
const REASONS: u32 = 10;
/// The columns every outbox has.
const COLUMNS: [&str; 9] = [
    "id",
    "user_id",
    "event",
    "payload",
    "previous",
    "state",
    "error",
    "created_at",
    "published_at",
];

/// What an installation would do.
#[derive(Clone, Debug)]
pub struct InstallPlan {
    /// The SQL, all of it.
    pub script: String,
    /// What is mapped, `column=member` each.
    pub mapped: Vec<String>,
    /// Whether there is an outbox already, whose triggers are renewed.
    pub again: bool,
}

/// How an outbox stands.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Whether tables and triggers are there.
    pub installed: bool,
    /// Whether changes wait in it, also where an older version has made it.
    #[serde(skip)]
    pub is_there: bool,
    /// The triggers and tables that are missing.
    pub missing: Vec<String>,
    /// Rows that wait to be published.
    pub unpublished: u64,
    /// For how long the oldest has been waiting, in seconds.
    pub oldest_seconds: f64,
    /// Rows that could not be published.
    pub failed: u64,
    /// Why, for the newest of them: `id`, `reason`.
    pub reasons: Vec<Reason>,
}

impl Standing {
    /// Whether an older version has made it, so that it tells of changes and has no notes.
    pub fn is_older(&self) -> bool {
        self.is_there && self.missing == [ABOUT]
    }
}

/// Why a row could not be published.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    /// The row.
    pub id: i64,
    /// Why.
    pub reason: String,
}

impl Database {
    /// What installing the outbox for the mapping of the settings would do; changes nothing.
    ///
    /// # Errors
    /// When table or columns aren't there, or something stands in the way.
    pub async fn plan(&mut self, all: bool) -> Result<(Layout, InstallPlan), SourceError> {
        let layout = self.layout(all).await?;
        let installed = self.installed(&layout.table).await?;
        let mapped = layout.columns.iter();
        let mapped = mapped.map(|column| format!("{}={}", column.name, column.member));
        let plan = InstallPlan {
            script: self.session.script(&layout),
            mapped: mapped.collect(),
            again: !installed.outbox.is_empty(),
        };
        Ok((layout, plan))
    }

    /// Makes the outbox and its triggers, or renews the triggers.
    ///
    /// # Errors
    /// Those of [`Self::plan`], and when the server refuses.
    pub async fn install(&mut self, all: bool) -> Result<InstallPlan, SourceError> {
        self.install_with(all, false).await
    }

    /// The same; `new_epoch` makes it another outbox, whose notes count anew.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub async fn install_with(
        &mut self,
        all: bool,
        new_epoch: bool,
    ) -> Result<InstallPlan, SourceError> {
        let (layout, plan) = self.plan(all).await?;
        // One that a newer program made is left alone.
        let about = self.about().await?;
        if new_epoch && about.is_some() {
            let statement = self.session.new_epoch(&layout.table);
            self.run(&statement).await?;
        }
        self.run(&plan.script).await?;
        let installed = self.installed(&layout.table).await?;
        let missing = missing(self.config.server()?, &installed);
        // From now on it is read as what it has become.
        self.about().await?;
        match missing.is_empty() {
            true => Ok(plan),
            false => Err(SourceError::Refused(format!(
                "the server took every statement, but {} aren't there",
                missing.join(", ")
            ))),
        }
    }

    /// The script that removes triggers and outbox.
    pub fn removal(&self) -> String {
        self.session.removal(&self.config.table)
    }

    /// Removes the triggers and the outbox; says whether there were any.
    ///
    /// # Errors
    /// When rows aren't published and `force` isn't given, or the server refuses.
    pub async fn uninstall(&mut self, force: bool) -> Result<bool, SourceError> {
        let table = self.config.table.clone();
        let installed = self.installed(&table).await?;
        if installed.outbox.is_empty() && installed.triggers.is_empty() {
            return Ok(false);
        }
        let waiting = match installed.outbox.is_empty() {
            true => 0,
            false => self.lag().await?.unpublished,
        };
        if waiting > 0 && !force {
            return Err(SourceError::Refused(format!(
                "{waiting} rows of {OUTBOX} aren't published and would be lost: let usersync-gateway publish them first, or give --force"
            )));
        }
        self.run(&self.removal()).await?;
        Ok(true)
    }

    /// How the outbox stands.
    ///
    /// # Errors
    /// When the database can't be asked.
    pub async fn standing(&mut self) -> Result<Standing, SourceError> {
        let table = self.config.table.clone();
        let installed = self.installed(&table).await?;
        let missing = missing(self.config.server()?, &installed);
        let mut standing = Standing {
            installed: missing.is_empty() && !installed.outbox.is_empty(),
            is_there: !installed.outbox.is_empty(),
            missing,
            unpublished: 0,
            oldest_seconds: 0.0,
            failed: 0,
            reasons: Vec::new(),
        };
        if !installed.outbox.is_empty() {
            let lag = self.lag().await?;
            let failures = self.session.failures(&table, REASONS);
            let reason = |failure: Failure| Reason {
                id: failure.id,
                reason: failure.reason,
            };
            let reasons = within(PATIENCE, "looking at the outbox", failures).await?;
            standing.reasons = reasons.into_iter().map(reason).collect();
            standing.unpublished = lag.unpublished;
            standing.oldest_seconds = lag.oldest.as_secs_f64();
            standing.failed = lag.failed;
        }
        Ok(standing)
    }

    /// What of an outbox is there; refuses what isn't ours.
    async fn installed(&mut self, table: &TableName) -> Result<Installed, SourceError> {
        let installed = self.session.installed(table);
        let installed = within(PATIENCE, "looking for the outbox", installed).await?;
        let outbox = table.beside(OUTBOX);
        let known = |name: &&&str| installed.outbox.iter().any(|found| found == **name);
        if !installed.outbox.is_empty() && COLUMNS.iter().filter(known).count() < COLUMNS.len() {
            return Err(SourceError::Refused(format!(
                "there is a table `{outbox}` that isn't ours: without {}; rename or drop it",
                COLUMNS
                    .iter()
                    .filter(|name| !known(name))
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        if let Some((name, other)) = installed.triggers.iter().find(|(_, on)| *on != table.name) {
            return Err(SourceError::Refused(format!(
                "`{outbox}` serves the table `{other}` already (trigger `{name}`): one outbox serves one table; uninstall that one first"
            )));
        }
        Ok(installed)
    }
}

/// Our triggers and the table beside the outbox, as far as they aren't there.
fn missing(server: Server, installed: &Installed) -> Vec<String> {
    let wanted: &[&str] = match server {
        Server::MySql => &mysql::TRIGGERS,
        Server::Postgres => &postgres::TRIGGERS,
        Server::Sqlite => &sqlite::TRIGGERS,
    };
    let there = |name: &&&str| installed.triggers.iter().any(|(found, _)| found == **name);
    let missing = wanted.iter().filter(|name| !there(name));
    let about = (!installed.about).then_some(&ABOUT);
    let missing = missing.chain(about);
    missing.map(|name| (*name).to_owned()).collect()
}

/// The file in `deploy/sql` for a server: the outbox of a table `users` with the columns `id`,
/// `username`, `email` and `status`.
pub fn shipped(server: Server) -> String {
    let text = |name: &str| crate::LiveColumn {
        name: name.to_owned(),
        kind: crate::Kind::Text,
        shown: "text".to_owned(),
    };
    let column = |(name, member): (&str, Member)| crate::Column {
        name: name.to_owned(),
        kind: crate::Kind::Text,
        shown: "text".to_owned(),
        member,
    };
    let columns = [
        ("username", Member::Username),
        ("email", Member::Email),
        ("status", Member::Status),
    ];
    let layout = Layout {
        table: TableName {
            schema: (server == Server::Postgres).then(|| "public".to_owned()),
            name: "users".to_owned(),
        },
        id: crate::LiveColumn {
            kind: crate::Kind::Integer,
            shown: "bigint".to_owned(),
            ..text("id")
        },
        columns: columns.map(column).into(),
    };
    match server {
        Server::MySql => mysql::script(&layout, mysql::RANDOM),
        Server::Postgres => postgres::script(&layout),
        Server::Sqlite => sqlite::script(&layout),
    }
}
