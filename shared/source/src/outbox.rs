//! Installing an outbox beside a table of users, removing it, and how it stands.

use serde::Serialize;

use usersync_core::member::Member;

use crate::{
    Database, Failure, Layout, Server, SourceError, TableName,
    database::within,
    layout::{ABOUT, OUTBOX},
    mysql, postgres,
    session::{Installed, Trigger},
    sqlite,
};

/// How long a look may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
/// Why nothing can be written to a table with triggers.
const ORPHANED: &str =
    "the account that installed the outbox is gone, with whose rights its triggers run (1449)";
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
    /// The SQL that notes changes.
    pub script: String,
    /// The SQL that lets relays see whether they are noted, where that takes some; changes are noted without it, too.
    pub watching: Option<String>,
    /// What is mapped, `column=member` each.
    pub mapped: Vec<String>,
    /// Whether there is an outbox already, whose triggers are renewed.
    pub again: bool,
    /// What whoever installs it should know.
    pub remarks: Vec<String>,
}

/// How an outbox stands.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Whether tables and triggers are there.
    pub installed: bool,
    /// Whether changes wait in it, also where an older version has made it.
    #[serde(skip)]
    pub is_there: bool,
    /// The triggers and tables that are missing, or do nothing.
    pub missing: Vec<String>,
    /// What is as an older version has made it, or can't be seen.
    pub remarks: Vec<String>,
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
        let installed = self.served(&layout.table).await?;
        let mapped = layout.columns.iter();
        let mapped = mapped.map(|column| format!("{}={}", column.name, column.member));
        let plan = InstallPlan {
            script: self.session.script(&layout),
            watching: self.session.watch_script(&layout.table),
            mapped: mapped.collect(),
            again: !installed.outbox.is_empty(),
            remarks: layout.remarks.clone(),
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
        let (layout, mut plan) = self.plan(all).await?;
        // One that a newer program made is left alone.
        let about = self.about().await?;
        self.run(&plan.script).await?;
        if new_epoch && about.is_some() {
            let script = self.session.new_epoch(&layout.table);
            self.run(&script).await?;
        }
        let mut watching = self.make_watchable(&layout.table).await;
        // Whoever has asked for it may see and remove it from then on, in another session.
        let mut beside = self.again().await?;
        if watching.is_ok() && beside.is_watched_by_another(&layout.table).await? {
            let removal = beside.session.unwatch_script(&layout.table);
            plan.remarks.push(match beside.run(&removal.unwrap_or_default()).await {
                Ok(()) => {
                    watching = beside.make_watchable(&layout.table).await;
                    "the function user_outbox_trigger was another account's and is made anew, for the triggers are this one's now: \
                     GRANT EXECUTE on it to the relay again"
                        .to_owned()
                }
                Err(error) => format!(
                    "the function user_outbox_trigger is another account's, and the triggers are this one's now: DROP FUNCTION it with \
                     an account that may, and install again ({error})"
                ),
            });
        }
        beside.close().await;
        if let Err(error) = watching {
            plan.remarks
                .push(format!("relays can't watch the triggers: {error}"));
        }
        let installed = self.installed(&layout.table).await?;
        let missing = missing(self.config.server()?, &installed);
        // From now on it is read as what it has become.
        self.about().await?;
        match missing.is_empty() {
            true => Ok(plan),
            false => Err(SourceError::Refused(format!(
                "the server took every statement, but changes aren't noted: {}",
                missing.join(", ")
            ))),
        }
    }

    /// Refuses triggers that note another column than the one rows are looked for by.
    ///
    /// # Errors
    /// When they do, or the database can't be asked.
    pub(crate) async fn refuse_another_id(&mut self) -> Result<(), SourceError> {
        let table = self.config.table.clone();
        let triggers = self.session.triggers(&table);
        let triggers = within(PATIENCE, "looking for triggers", triggers).await?;
        match triggers.and_then(|triggers| another_id(&triggers)) {
            Some(why) => Err(SourceError::Refused(why)),
            None => Ok(()),
        }
    }

    /// Whether changes of users are noted: why not all of them are, or why that isn't known.
    ///
    /// # Errors
    /// When the database can't be asked, or they are noted by another column than the settings name as the id.
    pub async fn watch(&mut self) -> Result<Watched, SourceError> {
        let table = self.config.table.clone();
        let server = self.config.server()?;
        if self.is_orphaned(&table).await? {
            return Ok(Watched::Broken(format!(
                "every write to `{table}` fails: {ORPHANED}, unless an older version has renewed them since; run \
                 `usersync-scheduler outbox install`, which makes all of it anew for the account in its url (docs/OUTBOX.md)"
            )));
        }
        let triggers = self.session.triggers(&table);
        let triggers = within(PATIENCE, "looking for triggers", triggers).await?;
        let Some(triggers) = triggers else {
            return Ok(Watched::Unknown(UNSEEN.to_owned()));
        };
        if let Some(why) = another_id(&triggers) {
            return Err(SourceError::Refused(why));
        }
        let idle = idle(server, &triggers);
        // One of a version that had only payloads is to be renewed anyway.
        if !idle.is_empty() && self.about().await?.is_none() {
            return Ok(Watched::Older(format!(
                "an older version has made the outbox: {}; `usersync-scheduler outbox install` renews it",
                idle.join(", ")
            )));
        }
        let id = self.config.id.clone();
        let asking = self.session.has_column(&table, &id);
        if !within(PATIENCE, "looking for a column", asking).await? {
            return Ok(Watched::Broken(format!(
                "changes of `{table}` aren't noted, so nobody hears of them: it has no column `{id}`; name it so again, or say its name \
                 by `id` and run `usersync-scheduler outbox install`; then `usersync-scheduler load` brings in what was missed, and the \
                 check `gateway` names who was deleted meanwhile (docs/OUTBOX.md)"
            )));
        }
        if !idle.is_empty() {
            return Ok(Watched::Broken(format!(
                "changes of `{table}` aren't noted, so nobody hears of them: {}; `usersync-scheduler outbox install` makes the \
                 triggers anew, then `usersync-scheduler load` brings in what was missed, and the check `gateway` names who was deleted \
                 meanwhile (docs/OUTBOX.md)",
                idle.join(", ")
            )));
        }
        Ok(match older(server, &triggers) {
            Some(why) => Watched::Older(why),
            None => Watched::Good,
        })
    }

    async fn is_watched_by_another(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let asking = self.session.is_watched_by_another(table);
        within(PATIENCE, "looking for triggers", asking).await
    }

    /// Makes what lets a relay see how triggers are, where there is none.
    async fn make_watchable(&mut self, table: &TableName) -> Result<(), SourceError> {
        match self.session.watch_script(table) {
            Some(script) => self.run(&script).await,
            None => Ok(()),
        }
    }

    async fn is_orphaned(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let asking = self.session.is_orphaned(table);
        within(PATIENCE, "looking for triggers", asking).await
    }

    /// The script that removes triggers and outbox.
    pub fn removal(&self) -> String {
        let table = &self.config.table;
        let unwatch = self.session.unwatch_script(table).unwrap_or_default();
        self.session.removal(table) + &unwatch
    }

    /// Removes the triggers and the outbox; says whether there were any.
    ///
    /// # Errors
    /// When rows aren't published and `force` isn't given, or the server refuses.
    pub async fn uninstall(&mut self, force: bool) -> Result<bool, SourceError> {
        let table = self.config.table.clone();
        let installed = self.served(&table).await?;
        let none = installed.triggers.as_ref().is_none_or(Vec::is_empty);
        if installed.outbox.is_empty() && none {
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
        let removal = self.session.removal(&table);
        self.run(&removal).await?;
        // Whoever may not remove it leaves a function that finds nothing.
        if let Some(script) = self.session.unwatch_script(&table) {
            let _ = self.run(&script).await;
        }
        Ok(true)
    }

    /// How the outbox stands.
    ///
    /// # Errors
    /// When the database can't be asked.
    pub async fn standing(&mut self) -> Result<Standing, SourceError> {
        let table = self.config.table.clone();
        let installed = self.installed(&table).await?;
        let server = self.config.server()?;
        let mut missing = missing(server, &installed);
        if self.is_orphaned(&table).await? {
            missing.insert(0, ORPHANED.to_owned());
        }
        let remark = match &installed.triggers {
            Some(triggers) => older(server, triggers),
            None => Some(UNSEEN.to_owned()),
        };
        let mut standing = Standing {
            installed: missing.is_empty() && !installed.outbox.is_empty(),
            is_there: !installed.outbox.is_empty(),
            missing,
            remarks: remark.into_iter().collect(),
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
        Ok(installed)
    }

    /// Refuses an outbox that serves another table, which may be what a change of this one has left.
    async fn served(&mut self, table: &TableName) -> Result<Installed, SourceError> {
        let installed = self.installed(table).await?;
        let triggers = installed.triggers.iter().flatten();
        let mut elsewhere = triggers.filter_map(|trigger| {
            let other = trigger.elsewhere.as_ref()?;
            Some((&trigger.name, other))
        });
        match elsewhere.next() {
            None => Ok(installed),
            Some((name, other)) => Err(SourceError::Refused(format!(
                "`{}` serves the table `{other}` already (trigger `{name}`): one outbox serves one table; uninstall that one first. \
                 If `{other}` is what pt-online-schema-change, gh-ost or a RENAME has left of `{table}`, remove its triggers \
                 (DROP TRIGGER) or the table, install again, then `usersync-scheduler load`",
                table.beside(OUTBOX)
            ))),
        }
    }
}

/// Whether changes of users are noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// All of them are.
    Good,
    /// Some aren't; says why, and what to do.
    Broken(String),
    /// The triggers are those of an older version; says what to do.
    Older(String),
    /// Nobody can tell; says why.
    Unknown(String),
}

/// Why triggers can't be told of.
const UNSEEN: &str = "whether the triggers are there can't be seen: `usersync-scheduler outbox install` makes the function \
     user_outbox_trigger, which the relay's user needs the right to execute (GRANT EXECUTE ON FUNCTION)";

/// Why rows must not be read by the id that the settings name, if so.
fn another_id(triggers: &[Trigger]) -> Option<String> {
    let found = triggers.iter().find(|trigger| trigger.of_another_id)?;
    let why = found.disabled.as_deref().unwrap_or_default();
    Some(format!("the trigger {}: {why}", found.name))
}

/// Our triggers, as far as they note nothing.
fn idle(server: Server, triggers: &[Trigger]) -> Vec<String> {
    let (wanted, later) = names(server);
    let why = |name: &&str| {
        let Some(found) = triggers.iter().find(|trigger| trigger.name == **name) else {
            return Some(format!("there is no trigger {name}"));
        };
        if let Some(other) = &found.elsewhere {
            return Some(format!(
                "the trigger {name} is on `{other}`: the table was swapped"
            ));
        }
        let disabled = found.disabled.as_ref()?;
        Some(format!("the trigger {name}: {disabled}"))
    };
    // One that an older version doesn't have is no matter, but one that somebody has switched off is.
    let switched_off = |name: &&&str| {
        let found = triggers.iter().find(|trigger| trigger.name == ***name);
        found.is_some_and(|trigger| trigger.disabled.is_some())
    };
    let off = later.iter().filter(switched_off);
    wanted.iter().chain(off).filter_map(why).collect()
}

/// Why the triggers are those of an older version, if so.
fn older(server: Server, triggers: &[Trigger]) -> Option<String> {
    let (wanted, later) = names(server);
    let is_old = |name: &&&str| {
        let found = triggers.iter().find(|trigger| trigger.name == ***name);
        found.is_none_or(|trigger| !trigger.current || trigger.disabled.is_some())
    };
    let old = wanted.iter().chain(later).find(is_old)?;
    Some(format!(
        "the trigger {old} isn't as this version makes it; `usersync-scheduler outbox install` renews the triggers"
    ))
}

/// The names of the triggers that note changes, and of those that came later.
fn names(server: Server) -> (&'static [&'static str], &'static [&'static str]) {
    match server {
        Server::MySql => (&mysql::TRIGGERS, &mysql::LATER),
        Server::Postgres => (&postgres::TRIGGERS, &postgres::LATER),
        Server::Sqlite => (&sqlite::TRIGGERS, &[]),
    }
}

/// Our triggers and the table beside the outbox, as far as they aren't there or note nothing.
fn missing(server: Server, installed: &Installed) -> Vec<String> {
    let triggers = installed.triggers.as_ref();
    let mut missing = triggers.map_or_else(Vec::new, |triggers| idle(server, triggers));
    if !installed.about {
        missing.push(ABOUT.to_owned());
    }
    missing
}

/// The files in `deploy/sql`, each with its folder: the outbox of a table `users` with the columns `id`, `username`, `email` and
/// `status`.
pub fn shipped() -> [(&'static str, String); 4] {
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
    let layout = |schema: Option<&str>| Layout {
        table: TableName {
            schema: schema.map(str::to_owned),
            name: "users".to_owned(),
        },
        id: crate::LiveColumn {
            kind: crate::Kind::Integer,
            shown: "bigint".to_owned(),
            ..text("id")
        },
        columns: columns.clone().map(column).into(),
        deleted: None,
        remarks: Vec::new(),
    };
    let users = layout(None);
    let mysql = |flavour| {
        let watch = mysql::watch_script(&users.table);
        format!("{}\n{watch}", mysql::script(&users, mysql::RANDOM, flavour))
    };
    [
        ("mysql", mysql(mysql::Flavour::MySql)),
        ("mariadb", mysql(mysql::Flavour::MariaDb)),
        ("postgres", postgres::script(&layout(Some("public")))),
        ("sqlite", sqlite::script(&users)),
    ]
}
