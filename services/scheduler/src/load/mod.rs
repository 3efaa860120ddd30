//! `load`: every user of a main database as state, skipping what is equal.
//!
//! `known` reads the states once, `part` keeps what is needed of them, in parts small enough for memory;
//! `rows` reads the table; `publish` writes; `contested` decides again about users who changed meanwhile.
//! Whatever is read of a state is read before the row it is compared with, and written only where it is
//! still the newest: so a load never overwrites what it hasn't seen. See docs/OUTBOX.md, "Bulk load".

mod contested;
mod known;
mod part;
mod progress;
mod publish;
pub(crate) mod rows;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::jetstream;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health, event::Event, load, member::Member, nats, streams, subjects::USER_STATE,
    user_id::UserId,
};
use usersync_source::{Database, Layout};

use crate::settings::LoadWork;
use contested::Contested;
use part::{Part, Parts, Seen};
use progress::Progress;
use publish::{IDLE, Publisher};
use rows::{Row, Rows};

/// What became of every user.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The source.
    pub source: String,
    /// Whether it only counted.
    pub dry_run: bool,
    /// Users in the table.
    pub users: u64,
    /// Those who had no state, or one that says deleted.
    pub created: u64,
    /// Those whose state was another, or only partly known.
    pub changed: u64,
    /// Those whose state is equal.
    pub equal: u64,
    /// Rows that can't be a user: their ids or values are none that usersync takes.
    pub unusable: u64,
    /// Why, for the first of them.
    pub unusable_because: Option<String>,
    /// Users who have a state and no row. They are left as they are.
    pub only_in_states: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A load under way.
struct Load {
    members: Vec<Member>,
    publisher: Publisher,
    contested: Contested,
    report: Report,
    progress: Progress,
    dry_run: bool,
}

/// Loads until it is done or `shutdown`.
pub(crate) async fn run(
    settings: &nats::Settings,
    work: LoadWork,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let json = work.json;
    let loading = load_all(settings, work, began);
    let Some(report) = shutdown.run_until_cancelled(loading).await else {
        anyhow::bail!("interrupted; start it again to go on: what is done is equal then");
    };
    let report = report?;
    let mut out = std::io::stdout();
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(out, "{}", report.shown())?,
    }
    Ok(())
}

async fn load_all(
    settings: &nats::Settings,
    work: LoadWork,
    began: Instant,
) -> anyhow::Result<Report> {
    let source = || format!("source {}", work.name);
    let connect = || Database::connect(&work.source);
    let mut database = connect().await.with_context(source)?;
    let layout = database.readable().await.with_context(source)?;
    let again = connect().await.with_context(source)?;
    let client = nats::connect(settings, "usersync-scheduler", &Health::default()).await?;
    let context = jetstream::context::ContextBuilder::new().timeout(nats::REQUEST_TIMEOUT);
    let jetstream = context.build(client.clone());
    nats::until_connected(&client).await?;
    let found = streams::wait_for_stream(&jetstream, USER_STATE, &Health::default()).await;
    anyhow::ensure!(
        work.dry_run || found.cached_info().config.allow_batch_publish,
        "stream {USER_STATE} takes no batches yet: start a usersync-gateway of this version, which updates it"
    );
    let states = jetstream.get_stream_no_info(USER_STATE).await?;
    let mut members: Vec<Member> = layout.members().cloned().collect();
    for forgotten in &work.forget {
        if let Some(member) = members.iter().find(|member| member.overlaps(forgotten)) {
            anyhow::bail!(
                "--forget {forgotten}: `{member}` is mapped; take its column out of the settings first"
            );
        }
    }
    // A row says nothing of them, so they leave the state.
    members.extend(work.forget.iter().cloned());

    let mut load = Load {
        publisher: Publisher::new(client.clone(), work.rate).await?,
        contested: Contested::new(states.clone(), again, layout.clone(), work.name.clone()),
        report: Report {
            source: work.name.to_string(),
            dry_run: work.dry_run,
            ..Report::default()
        },
        progress: Progress::new(work.name.as_ref(), database.estimate().await.unwrap_or(0)),
        dry_run: work.dry_run,
        members,
    };
    let mut parts = known::read(&jetstream, &load.members, &mut load.progress).await?;
    load.table(database, &layout, &work, &mut parts).await?;
    load.finish().await?;
    let Load {
        mut report,
        publisher,
        progress,
        ..
    } = load;
    progress.end();
    report.created += publisher.created;
    report.changed += publisher.changed;
    report.seconds = began.elapsed().as_secs_f64();
    nats::flush(&client).await;
    Ok(report)
}

impl Load {
    /// Goes through the table: users of the first part at once, all others when their part is at hand.
    async fn table(
        &mut self,
        database: Database,
        layout: &Layout,
        work: &LoadWork,
        parts: &mut Parts,
    ) -> anyhow::Result<()> {
        let mut rows = Rows::read(database, layout.clone());
        let mut part = parts.first();
        loop {
            let page = match timeout(IDLE, rows.next()).await {
                Ok(page) => page?,
                Err(_) => {
                    self.publisher.drain().await;
                    rows.next().await?
                }
            };
            let Some(page) = page else { break };
            for row in page {
                self.report.users += 1;
                match rows::event(&work.name, &row) {
                    Err(reason) => {
                        self.report.unusable += 1;
                        self.report.unusable_because.get_or_insert(reason);
                    }
                    Ok(_) if !parts.is_first(&row) => parts.put_aside(&row)?,
                    Ok(event) => self.decide(&mut part, row, event).await?,
                }
            }
            self.progress.users(self.report.users);
        }
        self.report.only_in_states += part.unseen();
        // One at a time is in memory.
        drop(part);
        while let Some((mut part, mut aside)) = parts.next()? {
            while let Some(row) = aside.next()? {
                if let Ok(event) = rows::event(&work.name, &row) {
                    self.decide(&mut part, row, event).await?;
                }
            }
            self.report.only_in_states += part.unseen();
        }
        Ok(())
    }

    async fn decide(&mut self, part: &mut Part, row: Row, event: Event) -> anyhow::Result<()> {
        match part.look(&row, || load::digest_of_row(&event, &self.members)) {
            Seen::Equal => self.report.equal += 1,
            Seen::Nowhere | Seen::Gone if self.dry_run => self.report.created += 1,
            Seen::Other if self.dry_run => self.report.changed += 1,
            Seen::Nowhere => {
                let user = Contest::of(row, &event);
                self.publisher
                    .publish(user, event, None, 0, &self.members)
                    .await?;
            }
            Seen::Other | Seen::Gone => self.contested.add(Contest::of(row, &event)),
        }
        self.settle(false).await
    }

    /// Takes up those who have to be looked at again, once there are many, or `all` of them.
    async fn settle(&mut self, all: bool) -> anyhow::Result<()> {
        if self.publisher.is_idle() {
            self.publisher.drain().await;
        }
        self.contested.extend(self.publisher.lost());
        while self.contested.many() || all && !self.contested.is_empty() {
            // It takes a while, and the server doesn't keep a batch for long.
            self.publisher.drain().await;
            let equal = self
                .contested
                .round(&mut self.publisher, &self.members)
                .await?;
            self.report.equal += equal;
            if all {
                self.publisher.drain().await;
            }
            self.contested.extend(self.publisher.lost());
        }
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        self.publisher.drain().await;
        self.settle(true).await?;
        self.report.unusable += self.publisher.too_large;
        Ok(())
    }
}

/// A user to be decided about.
#[derive(Clone, Debug)]
pub(crate) struct Contest {
    /// As the table spells it.
    pub id: String,
    /// As NATS does.
    pub user_id: UserId,
    /// How often it was lost.
    pub lost: u32,
}

impl Contest {
    fn of(row: Row, event: &Event) -> Self {
        Self {
            id: row.id,
            user_id: event.user_id.clone(),
            lost: 0,
        }
    }
}

impl Report {
    fn shown(&self) -> String {
        let would = if self.dry_run {
            " (nothing was written)"
        } else {
            ""
        };
        let mut text = format!(
            "loaded {} in {:.1} s{would}\n  users            {}\n  created          {}\n  changed          {}\n  equal            {}\n",
            self.source, self.seconds, self.users, self.created, self.changed, self.equal
        );
        if let Some(reason) = &self.unusable_because {
            text += &format!(
                "  unusable         {} (the first: {reason})\n",
                self.unusable
            );
        }
        text += &format!("  only in states   {}\n", self.only_in_states);
        text
    }
}

/// How long to wait before a lost contest is taken up again.
const PATIENCE: Duration = Duration::from_millis(250);
