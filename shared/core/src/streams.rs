//! Streams and consumers: one definition, created or updated by the gateway, waited for by the others.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{
    self, ErrorCode,
    consumer::{self, AckPolicy, DeliverPolicy, Info, PriorityPolicy, pull},
    context::{ConsumerInfoErrorKind, GetStreamError, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream},
};

use futures_util::TryStreamExt;

use crate::{admin::Health, buckets, nats, subjects, target::TargetConfig};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long the id of an event is known, so that the same event isn't stored twice, unless settings or whoever
/// edits USER_EVENTS say otherwise. Each id costs the server some 243 bytes of memory.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(10 * 60);
/// What one id costs the server, in bytes (measured on nats-server 2.15).
pub const BYTES_PER_ID: u64 = 243;
/// How long what was handed out may go unanswered before the server hands it out again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// The same of what workers are handed: the users of one that was killed wait for so long. Workers tell of progress three
/// times within it.
pub const DELIVERY_WAIT: Duration = Duration::from_secs(9);
/// After how long without a sign of life another gateway takes over (ADR-42).
pub const PIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often those who don't create streams look whether they are still there.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// The most alerts in one notice.
pub const NOTICE: usize = 100;
/// Deliveries the server grants beyond a target's own limit, for workers that die on the last one.
const SPARE_DELIVERIES: u32 = 8;

/// What settings say of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Copies of every stream and bucket: 1, 3 or 5.
    pub replicas: usize,
    /// The duplicate window of USER_EVENTS. Where none is set, a stream that is there keeps its own, and a new one has
    /// [`DUPLICATE_WINDOW`].
    pub duplicate_window: Option<Duration>,
}

impl From<usize> for Options {
    fn from(replicas: usize) -> Self {
        Self {
            replicas,
            duplicate_window: None,
        }
    }
}

/// Every stream.
pub fn all(options: impl Into<Options>) -> Vec<Config> {
    let Options {
        replicas,
        duplicate_window,
    } = options.into();
    let base = |name: &str, description: &str, subjects: &[&str]| Config {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        subjects: subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        duplicate_window: Duration::from_secs(120),
        allow_direct: true,
        ..Config::default()
    };
    vec![
        Config {
            max_age: 7 * DAY,
            duplicate_window: duplicate_window.unwrap_or(DUPLICATE_WINDOW),
            allow_batch_publish: true,
            ..base(
                subjects::USER_EVENTS,
                "What happened, in arrival order",
                &[subjects::EVENTS],
            )
        },
        Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            allow_batch_publish: true,
            ..base(
                subjects::USER_STATE,
                "The newest state of every user",
                &[subjects::STATES],
            )
        },
        Config {
            retention: RetentionPolicy::WorkQueue,
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            max_age: 7 * DAY,
            ..base(
                subjects::USER_REPAIR,
                "Deliveries asked for",
                &[subjects::REPAIRS],
            )
        },
        Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            allow_message_ttl: true,
            ..base(
                subjects::USER_DEAD,
                "What could not be delivered",
                &[subjects::DEAD_LETTERS],
            )
        },
        Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            ..base(
                subjects::USER_REFUSED,
                "Events that were refused",
                &[subjects::REFUSED_EVENTS],
            )
        },
        Config {
            max_age: 7 * DAY,
            discard: DiscardPolicy::Old,
            ..base(
                subjects::USER_ADVISORY,
                "Messages that ran out of deliveries",
                &subjects::ADVISORIES,
            )
        },
        Config {
            max_age: DAY,
            max_bytes: 256 << 20,
            discard: DiscardPolicy::Old,
            allow_direct: false,
            ..base(
                subjects::USER_RESULT,
                "What deliveries came to; best effort",
                &[subjects::RESULTS],
            )
        },
        Config {
            retention: RetentionPolicy::WorkQueue,
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            allow_message_schedules: true,
            ..base(
                subjects::USER_CHECK,
                "Checks asked for, their schedules, and what the last ones found",
                &[subjects::CHECKS],
            )
        },
        Config {
            max_age: 30 * DAY,
            max_bytes: 64 << 20,
            discard: DiscardPolicy::Old,
            ..base(
                subjects::USER_ALERT,
                "What people should know of",
                &[subjects::ALERTS],
            )
        },
    ]
}

/// The gateways' consumer of raw events: pinned, so that one of them is active at a time.
pub fn intake_consumer() -> pull::Config {
    pull::Config {
        durable_name: Some(subjects::INTAKE.to_owned()),
        description: Some("Merges events into states; one gateway at a time".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: 20_000,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![subjects::INTAKE_GROUP.to_owned()],
        priority_timeout: PIN_TIMEOUT,
        ..pull::Config::default()
    }
}

/// The gateways' consumer of messages that ran out of deliveries; several gateways share it.
pub fn backstop_consumer() -> pull::Config {
    pull::Config {
        durable_name: Some(subjects::BACKSTOP.to_owned()),
        description: Some("Dead-letters what ran out of deliveries without one".to_owned()),
        filter_subject: subjects::ADVISORIES[0].to_owned(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: 1_000,
        ..pull::Config::default()
    }
}

/// The gateways' consumer of the alerts that a channel tells of, from now on: pinned, so that one of them gathers,
/// throttles and tries again. It hands out as many as one notice may hold.
pub fn notify_consumer(durable: &str) -> pull::Config {
    pull::Config {
        durable_name: Some(durable.to_owned()),
        description: Some("Tells people of alerts; one gateway at a time".to_owned()),
        deliver_policy: DeliverPolicy::New,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: NOTICE as i64,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![subjects::NOTIFY_GROUP.to_owned()],
        priority_timeout: PIN_TIMEOUT,
        ..pull::Config::default()
    }
}

/// Creates or updates the consumer of one channel.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_notify_consumer(
    jetstream: &jetstream::Context,
    durable: &str,
) -> anyhow::Result<()> {
    ensure_each(
        jetstream,
        [(subjects::USER_ALERT, notify_consumer(durable))],
    )
    .await
}

/// The schedulers' consumer of checks; each check goes to one of them.
pub fn check_consumer() -> pull::Config {
    pull::Config {
        durable_name: Some(subjects::CHECKER.to_owned()),
        description: Some("Checks; several schedulers share them".to_owned()),
        filter_subject: subjects::CHECK_REQUESTS.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // A check goes on where it was left, however often a scheduler dies of it.
        max_deliver: -1,
        max_ack_pending: 1_000,
        ..pull::Config::default()
    }
}

/// The consumer of states of one target. It starts at the first state, so a new target is back-filled.
pub fn state_consumer(target: &TargetConfig) -> pull::Config {
    target_consumer(target, subjects::STATES.to_owned())
}

/// The consumer of repairs of one target.
pub fn repair_consumer(target: &TargetConfig) -> pull::Config {
    target_consumer(target, subjects::repairs_of(&target.name))
}

fn target_consumer(target: &TargetConfig, filter_subject: String) -> pull::Config {
    pull::Config {
        durable_name: Some(target.name.to_string()),
        filter_subject,
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: DELIVERY_WAIT,
        max_deliver: i64::from(target.retry.max_deliver + SPARE_DELIVERIES),
        // Delayed messages hold a slot until they come back, so there must be many.
        max_ack_pending: 50_000,
        ..pull::Config::default()
    }
}

/// What must be done so that every stream is as defined.
#[derive(Debug)]
pub enum Step {
    /// The stream is missing.
    Create(Config),
    /// The stream is there and needs an update that changes no shape.
    Update(Config),
}

impl Step {
    /// The stream's name.
    pub fn stream(&self) -> &str {
        let (Self::Create(config) | Self::Update(config)) = self;
        &config.name
    }
}

/// Compares the streams there with those defined, changing nothing.
///
/// # Errors
/// When the server can't be asked, or a stream exists with an incompatible shape: the error lists
/// every difference and what to do.
pub async fn plan(
    jetstream: &jetstream::Context,
    options: impl Into<Options>,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut conflicts = Vec::new();
    let options = options.into();
    for wanted in all(options) {
        match jetstream.get_stream(&wanted.name).await {
            Ok(stream) => {
                let found = &stream.cached_info().config;
                conflicts.extend(incompatible(found, &wanted));
                steps.extend(updated(found, &wanted, &options).map(Step::Update));
            }
            Err(error) if is_missing(&error) => steps.push(Step::Create(wanted)),
            Err(error) => {
                return Err(error).with_context(|| format!("asking for stream {}", wanted.name));
            }
        }
    }
    anyhow::ensure!(
        conflicts.is_empty(),
        "existing streams have an incompatible shape; nothing was changed:\n  {}\nEdit or remove them with `nats stream edit` or `nats stream rm`, after saving what they hold (`nats stream backup`), or point nats.url at another account",
        conflicts.join("\n  ")
    );
    Ok(steps)
}

/// The streams and buckets that aren't there.
///
/// # Errors
/// When the server can't be asked.
pub async fn missing(jetstream: &jetstream::Context) -> anyhow::Result<Vec<String>> {
    let mut missing: Vec<String> = all(1).into_iter().map(|stream| stream.name).collect();
    let buckets = buckets::all(1).into_iter();
    missing.extend(buckets.map(|bucket| format!("KV_{}", bucket.bucket)));
    let mut found = jetstream.stream_names();
    while let Some(name) = found.try_next().await.context("asking for the streams")? {
        missing.retain(|missing| *missing != name);
    }
    Ok(missing)
}

/// The streams that nobody may make again in passing: what was in them decides what is to be done.
const KEPT: [&str; 5] = [
    subjects::USER_EVENTS,
    subjects::USER_STATE,
    subjects::TARGETS_STREAM,
    "KV_user_epochs",
    "KV_user_sources",
];

/// What was missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Streams that still are: what was in them decides what is to be done.
    pub kept: Vec<String>,
    /// Streams that were made again: what was in them is lost either way, and the work goes on.
    pub made: Vec<String>,
}

/// Makes streams and buckets again that somebody has deleted, where that loses nothing more.
///
/// # Errors
/// When the server can't be asked, or refuses one.
pub async fn make_again(
    jetstream: &jetstream::Context,
    options: impl Into<Options>,
) -> anyhow::Result<Missing> {
    let (kept, made) = missing(jetstream)
        .await?
        .into_iter()
        .partition::<Vec<_>, _>(|name| KEPT.contains(&name.as_str()));
    // Another account, or an empty store: what was there may be brought back, and needs the names.
    if !kept.is_empty() {
        let made = Vec::new();
        return Ok(Missing { kept, made });
    }
    let options = options.into();
    let is_made = |name: &String| made.contains(name);
    for config in all(options) {
        if is_made(&config.name) {
            jetstream.create_stream(config).await?;
        }
    }
    for config in buckets::all(options.replicas) {
        if is_made(&format!("KV_{}", config.bucket)) {
            jetstream.create_key_value(config).await?;
        }
    }
    Ok(Missing { kept, made })
}

/// Refuses to begin with empty streams where the server keeps those of another account, which has no JetStream any more.
///
/// # Errors
/// When it does so, when a server is too old, or the server can't be asked.
pub async fn refuse_empty_start(jetstream: &jetstream::Context) -> anyhow::Result<()> {
    let servers = nats::servers(&jetstream.client()).await?;
    let mut hidden: Vec<_> = servers
        .iter()
        .flat_map(nats::Server::hidden_streams)
        .collect();
    if hidden.is_empty() {
        return Ok(());
    }
    let missing = missing(jetstream).await?;
    hidden.retain(|(_, stream)| missing.iter().any(|missing| missing == stream));
    hidden.sort_unstable();
    hidden.dedup();
    let Some((account, _)) = hidden.first() else {
        return Ok(());
    };
    let streams: Vec<_> = hidden.iter().map(|(_, stream)| *stream).collect();
    anyhow::bail!(
        "the server keeps {} of the account {account}, in which JetStream is off, and the account of this gateway has none: \
         nothing was made. Bring the streams over as docs/UPGRADING.md says under \"Accounts\"; or, to begin empty, move the \
         folder of that account out of the server's store and restart the server",
        streams.join(", ")
    )
}

/// Creates what is missing, updates what may be updated, and refuses what may not.
///
/// # Errors
/// Those of [`plan`], and when the server refuses a step.
pub async fn ensure(
    jetstream: &jetstream::Context,
    options: impl Into<Options>,
) -> anyhow::Result<()> {
    let options = options.into();
    for step in plan(jetstream, options).await? {
        let name = step.stream().to_owned();
        match step {
            Step::Create(config) => {
                let created = jetstream.create_stream(config).await;
                created.with_context(|| format!("creating stream {name}"))?;
                tracing::info!(stream = name, "created");
            }
            Step::Update(config) => {
                let updated = jetstream.update_stream(&config).await;
                updated.with_context(|| format!("updating stream {name}"))?;
                tracing::info!(stream = name, "updated");
            }
        }
    }
    buckets::ensure_buckets(jetstream, options.replicas).await
}

/// Creates or updates the consumers of gateways and schedulers.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_consumers(jetstream: &jetstream::Context) -> anyhow::Result<()> {
    ensure_each(jetstream, own_consumers()).await
}

/// The consumers of gateways and schedulers, each with its stream.
pub fn own_consumers() -> Vec<(&'static str, pull::Config)> {
    vec![
        (subjects::USER_EVENTS, intake_consumer()),
        (subjects::USER_ADVISORY, backstop_consumer()),
        (subjects::USER_CHECK, check_consumer()),
    ]
}

/// When consumers were made, by name and stream: a later time means that somebody has deleted one since.
pub type Made = BTreeMap<(String, &'static str), i128>;

/// Makes those of `wanted` that are missing. Says which were, each with its stream, and which somebody else has made again since `known`. A
/// consumer of a stream that isn't there is none of them.
///
/// # Errors
/// When the server can't be asked, or refuses one.
pub async fn make_consumers_again(
    jetstream: &jetstream::Context,
    wanted: impl IntoIterator<Item = (&'static str, pull::Config)>,
    known: &mut Made,
) -> anyhow::Result<Vec<(String, &'static str)>> {
    let mut again = Vec::new();
    for (stream, config) in wanted {
        let name = config.durable_name.clone().unwrap_or_default();
        let found = jetstream.get_stream_no_info(stream).await?;
        let (created, missing) = match found.consumer_info(&name).await {
            Ok(info) => (info.created, false),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
                let made = jetstream.create_consumer_on_stream(config, stream).await;
                let made = made.with_context(|| format!("making consumer {name} on {stream}"))?;
                (made.cached_info().created, true)
            }
            Err(error) if error.kind() == ConsumerInfoErrorKind::StreamNotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("asking for consumer {name}")),
        };
        let created = created.unix_timestamp_nanos();
        let before = known.insert((name.clone(), stream), created);
        if missing || before.is_some_and(|before| before != created) {
            again.push((name, stream));
        }
    }
    Ok(again)
}

/// Creates or updates the consumers of one target, enabled or not.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_target_consumers(
    jetstream: &jetstream::Context,
    target: &TargetConfig,
) -> anyhow::Result<()> {
    for (stream, config) in target_consumers(target) {
        let found = jetstream.get_stream_no_info(stream).await?;
        if let Ok(info) = found.consumer_info(&target.name).await {
            remove_narrowed(&found, &info, &config).await?;
        }
        ensure_each(jetstream, [(stream, config)]).await?;
    }
    Ok(())
}

/// Removes a consumer that somebody has told to look at other subjects: what it has passed by since it would never deliver.
/// One that is made anew begins with everybody's newest state.
async fn remove_narrowed(
    stream: &Stream<()>,
    found: &consumer::Info,
    wanted: &pull::Config,
) -> anyhow::Result<bool> {
    let Info { name, config, .. } = found;
    if config.filter_subject == wanted.filter_subject && config.filter_subjects.is_empty() {
        return Ok(false);
    }
    tracing::error!(
        stream = found.stream_name,
        consumer = name,
        "somebody has changed the subjects of the consumer; it is made anew, and everybody's newest state is delivered"
    );
    let removing = stream.delete_consumer(name).await;
    removing.with_context(|| format!("removing consumer {name}"))?;
    Ok(true)
}

/// Updates the consumers of one target that are there and differ from what they are to be.
///
/// # Errors
/// When the server can't be asked, or refuses.
pub async fn renew_target_consumers(
    jetstream: &jetstream::Context,
    target: &TargetConfig,
) -> anyhow::Result<()> {
    for (stream, config) in target_consumers(target) {
        let found = jetstream.get_stream_no_info(stream).await?;
        let Ok(info) = found.consumer_info(&target.name).await else {
            continue;
        };
        if remove_narrowed(&found, &info, &config).await?
            || info.config.ack_wait != config.ack_wait
            || info.config.max_deliver != config.max_deliver
        {
            ensure_each(jetstream, [(stream, config)]).await?;
        }
    }
    Ok(())
}

/// The consumers of one target, each with its stream.
pub fn target_consumers(target: &TargetConfig) -> [(&'static str, pull::Config); 2] {
    [
        (subjects::USER_STATE, state_consumer(target)),
        (subjects::USER_REPAIR, repair_consumer(target)),
    ]
}

async fn ensure_each(
    jetstream: &jetstream::Context,
    wanted: impl IntoIterator<Item = (&'static str, pull::Config)>,
) -> anyhow::Result<()> {
    for (stream, config) in wanted {
        let name = config.durable_name.clone().unwrap_or_default();
        let created = jetstream.create_consumer_on_stream(config, stream).await;
        created.with_context(|| format!("creating consumer {name} on stream {stream}"))?;
    }
    Ok(())
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// What differs between `found` and `wanted` that no update may change silently.
fn incompatible(found: &Config, wanted: &Config) -> Vec<String> {
    let shape = |config: &Config| {
        BTreeMap::from([
            ("subjects", format!("{:?}", config.subjects)),
            ("retention", format!("{:?}", config.retention)),
            ("storage", format!("{:?}", config.storage)),
            ("discard", format!("{:?}", config.discard)),
            (
                "max_msgs_per_subject",
                config.max_messages_per_subject.to_string(),
            ),
            ("allow_direct", config.allow_direct.to_string()),
            ("mirror", config.mirror.is_some().to_string()),
            ("sealed", config.sealed.to_string()),
        ])
    };
    let (found_shape, wanted_shape) = (shape(found), shape(wanted));
    let differing = wanted_shape
        .iter()
        .filter(|(key, value)| found_shape[*key] != **value);
    differing
        .map(|(key, value)| {
            format!(
                "{}: {key} is {}, expected {value}",
                wanted.name, found_shape[key]
            )
        })
        .collect()
}

/// `found` with what we own raised to `wanted`, `None` when it is so already.
///
/// Nothing is lowered, for that could delete what is kept; limits an operator has added stay. Only a duplicate window
/// that settings name is as they say: it deletes nothing.
fn updated(found: &Config, wanted: &Config, options: &Options) -> Option<Config> {
    // No age means for ever.
    let longer = |found: Duration, wanted: Duration| {
        if found.is_zero() || wanted.is_zero() {
            Duration::ZERO
        } else {
            found.max(wanted)
        }
    };
    let updated = Config {
        num_replicas: found.num_replicas.max(wanted.num_replicas),
        max_age: longer(found.max_age, wanted.max_age),
        duplicate_window: match options.duplicate_window {
            Some(window) if wanted.name == subjects::USER_EVENTS => window,
            _ if wanted.name == subjects::USER_EVENTS => found.duplicate_window,
            _ => found.duplicate_window.max(wanted.duplicate_window),
        },
        allow_message_ttl: found.allow_message_ttl || wanted.allow_message_ttl,
        allow_message_schedules: found.allow_message_schedules || wanted.allow_message_schedules,
        allow_batch_publish: found.allow_batch_publish || wanted.allow_batch_publish,
        description: wanted.description.clone(),
        ..found.clone()
    };
    (updated != *found).then_some(updated)
}

/// Waits until `name` exists, saying so in `health`, too; for those who don't create streams.
pub async fn wait_for_stream(
    jetstream: &jetstream::Context,
    name: &str,
    health: &Health,
) -> Stream {
    let mut said = false;
    loop {
        match look_for_stream(jetstream, name, health).await {
            Ok(stream) => return stream,
            Err(error) if !said => {
                tracing::warn!(stream = name, %error, "waiting for the stream; usersync-gateway creates it");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Says in `health` every few seconds which of the streams is missing, for ever; for those who don't create streams.
pub async fn watch_streams(jetstream: &jetstream::Context, names: &[&str], health: &Health) {
    loop {
        for name in names {
            if let Err(error) = look_for_stream(jetstream, name, health).await {
                tracing::debug!(stream = name, %error, "looking for a stream that has been there");
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Looks for a stream. While it isn't there `health` has a part for it.
async fn look_for_stream(
    jetstream: &jetstream::Context,
    name: &str,
    health: &Health,
) -> Result<Stream, GetStreamError> {
    let part = format!("stream {name}");
    let found = jetstream.get_stream(name).await;
    match &found {
        Ok(_) => health.gone(&part),
        Err(error) if is_missing(error) => {
            health.down(&part, "missing; usersync-gateway creates it when it starts");
        }
        Err(error) => health.down(&part, error.to_string()),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_stream_needs_nothing_and_operator_limits_stay() {
        for config in all(1) {
            assert!(incompatible(&config, &config).is_empty());
            assert_eq!(updated(&config, &config, &1.into()), None);
            let limited = Config {
                max_bytes: 1 << 30,
                ..config.clone()
            };
            assert!(incompatible(&limited, &config).is_empty());
            let replicated = Config {
                num_replicas: 3,
                ..config.clone()
            };
            let raised = updated(&limited, &replicated, &3.into());
            assert_eq!(raised.unwrap().max_bytes, 1 << 30);
            let lower = updated(&replicated, &config, &1.into());
            assert_eq!(lower, None, "nothing is lowered");
        }
    }

    #[test]
    fn a_duplicate_window_stays_unless_settings_name_another() {
        let wanted = &all(1)[0];
        let found = Config {
            duplicate_window: Duration::from_secs(3_600),
            ..wanted.clone()
        };
        assert_eq!(wanted.duplicate_window, DUPLICATE_WINDOW);
        assert_eq!(updated(&found, wanted, &1.into()), None);
        let said = Options {
            duplicate_window: Some(Duration::from_secs(120)),
            ..1.into()
        };
        let window = |config: &Config| config.duplicate_window.as_secs();
        assert_eq!(
            updated(&found, wanted, &said).as_ref().map(window),
            Some(120)
        );
        assert_eq!(window(&all(said)[0]), 120);
    }

    #[test]
    fn another_shape_is_a_conflict_that_names_stream_and_key() {
        let wanted = &all(1)[1];
        let found = Config {
            max_messages_per_subject: -1,
            storage: StorageType::Memory,
            ..wanted.clone()
        };
        let conflicts = incompatible(&found, wanted);
        assert_eq!(conflicts.len(), 2, "{conflicts:?}");
        assert!(conflicts[0].starts_with("USER_STATE: max_msgs_per_subject is -1, expected 1"));
    }
}
