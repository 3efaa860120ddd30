//! Erases a user: everywhere usersync keeps them, and at every target.
//!
//! First an event that says so, so that nothing which is under way can bring the user back: order is stream order.
//! Once intake has merged it, what is older is overwritten message by message, then the targets are told. Each step finds
//! out by itself what is left to do, so an erasure that was cut off is simply asked for again (ADR 26).

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{
    message::PublishMessage,
    stream::{RawMessageErrorKind, Stream},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use usersync_core::{
    dead_letter,
    event::{Envelope, Event, EventType},
    event_key::EventKey,
    subjects::{self, INTAKE, REFUSED_EVENTS, USER_DEAD, USER_EVENTS, USER_REFUSED},
    target::Removal,
    user_id::UserId,
};
use uuid::Uuid;

use super::{
    Control,
    bulk::{self, Task},
    erasure::{self, AtTarget, Erasure, Gone, newest},
    evidence::{Whose, whose},
    former_refused,
    jobs::{self, Job, Record, Work},
    scan::{self, Found, PAGE, Query},
};
use crate::problem::Problem;

/// The `source` of the event that says so.
const SOURCE: &str = "usersync";
/// How long intake may take to merge that event.
const MERGED: Duration = Duration::from_secs(60);
/// How long to wait for events of others before it.
const OTHERS: Duration = Duration::from_secs(10);
/// How long targets are waited for; who takes longer is reported as pending.
const DELIVERED: Duration = Duration::from_secs(5);
/// How often is looked whether something waited for has happened.
const LOOK: Duration = Duration::from_millis(100);
/// Messages overwritten at once.
const AT_ONCE: usize = 16;
/// Events in one page: each may have a megabyte, and a page is held in memory.
const LOOKED_AT: usize = 100;
/// At most one page of the events per so long, so that others are served meanwhile.
const PACE: Duration = Duration::from_millis(2);

/// Whom to erase.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Erase {
    /// The user.
    pub user_id: UserId,
    /// Count and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Erases a user, as a job.
pub(crate) async fn start(control: &Arc<Control>, erase: Erase) -> Result<Job, Problem> {
    let events = control.stream(USER_EVENTS).await?;
    let refused = control.stream(USER_REFUSED).await?;
    let total = scan::count(&events, subjects::EVENTS).await?
        + scan::count(&refused, REFUSED_EVENTS).await?;
    jobs::start(control, Work::Erase(erase), bulk::MOST_PER_SECOND, total).await
}

impl Erase {
    /// Does all of it, and writes progress down; false when it was to stop before the end.
    pub(super) async fn run(
        &self,
        control: &Arc<Control>,
        record: &mut Record,
    ) -> anyhow::Result<bool> {
        let mut erasure = Erasure::of(self);
        let known = newest(control, &self.user_id).await?;
        let known = known.filter(|state| state.erased);
        // Before workers clear them because of the erasure, which overwrites nothing.
        let version = known.as_ref().map_or(u64::MAX, |state| state.version);
        self.letters(control, version, &mut erasure).await?;
        let said = match (self.dry_run, known) {
            (true, _) => None,
            (false, Some(state)) => Some(state.event_seq),
            (false, None) => Some(self.say(control).await?),
        };
        erasure.event_seq = said;
        if let Some(seq) = said
            && !self.merged(control, record, seq).await?
        {
            return Ok(false);
        }
        let state = newest(control, &self.user_id).await?;
        erasure.revived = said.is_some() && state.as_ref().is_some_and(|state| !state.deleted);
        if let Some(state) = state.filter(|_| !self.dry_run) {
            // What was given up meanwhile.
            self.letters(control, state.version, &mut erasure).await?;
        }
        let done = self.refused_events(control, record, &mut erasure).await;
        if !done.context("erasing refused events")? {
            return Ok(false);
        }
        let done = self.events(control, record, &mut erasure).await;
        if !done.context("erasing events")? {
            return Ok(false);
        }
        self.tell_targets(control, record, &mut erasure).await
    }

    /// Publishes the event that says so; answers its sequence.
    async fn say(&self, control: &Control) -> anyhow::Result<u64> {
        let id = format!("erase-{}", Uuid::now_v7().simple());
        let event = serde_json::json!({
            "id": id, "type": EventType::Deleted, "user_id": self.user_id, "erase": true,
            "timestamp": Timestamp::now(), "source": SOURCE,
        });
        let message = PublishMessage::build()
            .payload(event.to_string().into())
            .message_id(EventKey::new(Some(SOURCE), &id).message_id());
        let subject = EventType::Deleted.as_str();
        let stored = control.jetstream.send_publish(subject, message).await?;
        Ok(stored.await?.sequence)
    }

    /// Waits until intake is through with everything up to `seq`; false when the job is to stop.
    async fn merged(
        &self,
        control: &Control,
        record: &mut Record,
        seq: u64,
    ) -> anyhow::Result<bool> {
        let events = control.stream(USER_EVENTS).await?;
        let since = Instant::now();
        while events
            .consumer_info(INTAKE)
            .await?
            .ack_floor
            .stream_sequence
            < seq
        {
            // Another user's event may hold the others up for long; this one's state tells, once those before it had time.
            if since.elapsed() > OTHERS && self.contains(control, seq).await? {
                break;
            }
            anyhow::ensure!(
                since.elapsed() < MERGED,
                "intake hasn't merged event {seq} after {} s: see /readyz of the gateways, then ask for the erasure again",
                MERGED.as_secs()
            );
            if !goes_on(control, record).await? {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
        Ok(true)
    }

    /// Whether the user's state contains the event.
    async fn contains(&self, control: &Control, seq: u64) -> anyhow::Result<bool> {
        let state = erasure::newest(control, &self.user_id).await?;
        Ok(state.is_some_and(|state| state.erased && state.event_seq >= seq))
    }

    /// Overwrites the user's dead letters of versions below `version`: one of that version says that the erasure failed.
    async fn letters(
        &self,
        control: &Control,
        version: u64,
        erasure: &mut Erasure,
    ) -> anyhow::Result<()> {
        let dead = control.stream(USER_DEAD).await?;
        let query = Query {
            filter: subjects::dead_letters_for(&self.user_id),
            headers_only: true,
        };
        let mut next = Some(1);
        while let Some(from) = next {
            let page = scan::page(&dead, &query, from, PAGE).await?;
            next = page.next;
            let outdated = |found: &Found| {
                let older = dead_letter::version_of(&found.headers) < version;
                let (target, user_id) = subjects::of_dead_letter(&found.subject)?;
                (older && !dead_letter::is_cleared(&found.headers)).then_some(Task {
                    target,
                    user_id,
                    seq: found.seq,
                })
            };
            let gone: Vec<Task> = page.found.iter().filter_map(outdated).collect();
            erasure.dead_letters += gone.len() as u64;
            if !self.dry_run {
                bulk::clear(control, gone).await?;
            }
        }
        Ok(())
    }

    /// Overwrites the user's events that intake refused; false when the job is to stop.
    async fn refused_events(
        &self,
        control: &Control,
        record: &mut Record,
        erasure: &mut Erasure,
    ) -> anyhow::Result<bool> {
        // A gateway of before may have refused something just now.
        former_refused::bring_over(control).await?;
        let refused = control.stream(USER_REFUSED).await?;
        let walk = Walk::new(&refused, REFUSED_EVENTS.to_owned());
        let ended = self
            .walk(control, record, walk, |found| {
                if dead_letter::is_cleared(&found.headers) {
                    return false;
                }
                match whose(&found.payload, &self.user_id) {
                    Whose::Theirs => {
                        erasure.refused_events += 1;
                        true
                    }
                    Whose::Unclear => {
                        erasure.unclear += 1;
                        false
                    }
                    Whose::Others => false,
                }
            })
            .await?;
        record.job.erasure = Some(erasure.clone());
        Ok(ended)
    }

    /// Overwrites the user's events, up to the one that says so and, beyond it, those that came too late to count; false
    /// when the job is to stop.
    async fn events(
        &self,
        control: &Control,
        record: &mut Record,
        erasure: &mut Erasure,
    ) -> anyhow::Result<bool> {
        let events = control.stream(USER_EVENTS).await?;
        let walk = Walk::new(&events, subjects::EVENTS.to_owned());
        let said = erasure.event_seq.unwrap_or(u64::MAX);
        let mut revived = false;
        let ended = self
            .walk(control, record, walk, |found| {
                if found.seq == said || whose(&found.payload, &self.user_id) != Whose::Theirs {
                    return false;
                }
                revived |= found.seq > said && creates(found);
                erasure.events += u64::from(!revived);
                !revived
            })
            .await?;
        record.job.erasure = Some(erasure.clone());
        Ok(ended)
    }

    /// Looks at everything that is there now, page by page, and overwrites what `is_theirs`.
    async fn walk(
        &self,
        control: &Control,
        record: &mut Record,
        walk: Walk<'_>,
        mut is_theirs: impl FnMut(&Found) -> bool,
    ) -> anyhow::Result<bool> {
        let last = walk.stream.get_info().await?.state.last_sequence;
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = Some(1);
        while let Some(from) = next.filter(|from| *from <= last) {
            pace.tick().await;
            let page = scan::page(walk.stream, &walk.query, from, LOOKED_AT).await?;
            next = page.next;
            let found = page.found.iter().filter(|found| found.seq <= last);
            let theirs = found.filter(|found| is_theirs(found));
            let theirs: Vec<u64> = theirs.map(|found| found.seq).collect();
            if !self.dry_run {
                overwrite(walk.stream, theirs).await?;
            }
            record.job.done += page.found.len() as u64;
            record.job.total = record.job.total.max(record.job.done);
            if !goes_on(control, record).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has the newest state delivered everywhere, and waits a little; what isn't done then stays asked for. False when the
    /// job is to stop.
    async fn tell_targets(
        &self,
        control: &Control,
        record: &mut Record,
        erasure: &mut Erasure,
    ) -> anyhow::Result<bool> {
        if !self.dry_run {
            let mut tasks = Vec::new();
            for entry in control.registry().await?.entries().await?.into_values() {
                if let Some(config) = entry
                    .config
                    .filter(|config| config.on_delete != Removal::Ignore)
                {
                    let (target, user_id) = (config.name.clone(), self.user_id.clone());
                    tasks.push(Task {
                        target,
                        user_id,
                        seq: 0,
                    });
                }
            }
            bulk::ask_for(control, tasks).await?;
        }
        let since = Instant::now();
        loop {
            erasure.targets = erasure::standing(control, self).await?;
            record.job.erasure = Some(erasure.clone());
            let waits = |at: &AtTarget| at.state == Gone::Pending;
            if self.dry_run || since.elapsed() > DELIVERED || !erasure.targets.iter().any(waits) {
                record.job.total = record.job.done;
                return Ok(true);
            }
            if !goes_on(control, record).await? {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }
}

/// Which messages to look at.
struct Walk<'a> {
    stream: &'a Stream<()>,
    query: Query,
}

impl<'a> Walk<'a> {
    fn new(stream: &'a Stream<()>, filter: String) -> Self {
        let query = Query {
            filter,
            headers_only: false,
        };
        Self { stream, query }
    }
}

/// Whether a job is to go on; writes its progress down, now and then.
async fn goes_on(control: &Control, record: &mut Record) -> anyhow::Result<bool> {
    Ok(record.note().await? && !control.shutdown.is_cancelled())
}

/// Whether an event brings a deleted user back.
fn creates(found: &Found) -> bool {
    let envelope = Envelope {
        kind: subjects::event_type(&found.subject),
        id: Some(found.seq.to_string()),
        timestamp: Some(found.time),
    };
    envelope.kind == Some(EventType::Created) && Event::parse(&found.payload, envelope).is_ok()
}

/// Deletes messages so that the server overwrites their bytes; those that are gone already are no error. Answers how many
/// were there.
pub(super) async fn overwrite(stream: &Stream<()>, seqs: Vec<u64>) -> anyhow::Result<u64> {
    let overwritten = seqs.into_iter().map(async |seq| {
        let Err(error) = stream.delete_message(seq).await else {
            return Ok(1);
        };
        match stream.get_raw_message(seq).await {
            Err(gone) if gone.kind() == RawMessageErrorKind::NoMessageFound => Ok(0),
            _ => Err(error).with_context(|| format!("overwriting message {seq}")),
        }
    });
    let mut overwritten = stream::iter(overwritten).buffer_unordered(AT_ONCE);
    let mut count = 0;
    while let Some(one) = overwritten.try_next().await? {
        count += one;
    }
    Ok(count)
}
