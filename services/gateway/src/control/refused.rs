//! Events that intake refused: list, show, discard. They can't be replayed: publish a good one instead.

use async_nats::{HeaderMap, jetstream::stream::LastRawMessageErrorKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use usersync_core::{
    dead_letter,
    subjects::{self, REFUSED_EVENTS, USER_REFUSED, header},
};

use super::{
    Control, Count, nats,
    scan::{self, PAGE, Query},
};
use crate::problem::Problem;

/// Events in one answer unless said otherwise.
const EVENTS: usize = 100;

/// The most bytes of an event that are shown: as JSON, every one of them may take six.
const SHOWN: usize = 128 * 1024;

/// Which refused events to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct List {
    /// Where to go on, as the page before said.
    pub from: Option<u64>,
    /// How many, 1 to 1000; 100 unless said otherwise.
    pub limit: Option<usize>,
}

/// One page of refused events.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Refused {
    /// The oldest first, without the events themselves.
    pub refused_events: Vec<RefusedEvent>,
    /// Where the next page begins, null when this is the last.
    pub next: Option<u64>,
}

/// An event that was refused.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct RefusedEvent {
    /// Its sequence in USER_EVENTS.
    pub seq: u64,
    /// When it was refused.
    #[schema(value_type = String, format = DateTime)]
    pub stored: Timestamp,
    /// The subject it came on.
    pub subject: String,
    /// What is wrong with it.
    pub reason: String,
    /// JSON Pointer to the member that is wrong.
    pub pointer: Option<String>,
    /// The event as it came, bytes that aren't text replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its length in bytes where only the beginning was kept, or is shown.
    pub truncated: Option<u64>,
}

/// A request that names a refused event.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct One {
    /// Its sequence in USER_EVENTS.
    pub seq: u64,
}

/// Which refused events to discard.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DiscardRefused)]
pub(crate) struct Discard {
    /// This one, by its sequence in USER_EVENTS.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Every one.
    #[serde(default)]
    pub all: bool,
    /// Count and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

pub(crate) async fn list(control: &Control, list: List) -> Result<Refused, Problem> {
    let limit = list.limit.unwrap_or(EVENTS);
    if !(1..=PAGE).contains(&limit) {
        let detail = format!("limit: expected 1 to {PAGE}");
        return Err(Problem::unprocessable(detail));
    }
    let stream = control.stream(USER_REFUSED).await?;
    let query = Query {
        filter: REFUSED_EVENTS.to_owned(),
        headers_only: true,
    };
    let page = scan::page(&stream, &query, list.from.unwrap_or(1), limit).await?;
    let events = page.found.iter().filter_map(|found| {
        let seq = subjects::seq_of_refused(&found.subject)?;
        read(seq, found.time, &found.headers)
    });
    Ok(Refused {
        refused_events: events.collect(),
        next: page.next,
    })
}

pub(crate) async fn show(control: &Control, one: One) -> Result<RefusedEvent, Problem> {
    let stream = control.stream(USER_REFUSED).await?;
    let subject = subjects::refused_event(one.seq);
    let missing = || Problem::not_found(format!("event {} was not refused", one.seq));
    let message = match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            return Err(missing());
        }
        Err(error) => return Err(nats(error)),
    };
    let nanos = message.time.unix_timestamp_nanos();
    let stored = Timestamp::from_nanosecond(nanos).unwrap_or_default();
    let mut event = read(one.seq, stored, &message.headers).ok_or_else(missing)?;
    let shown = message.payload.len().min(SHOWN);
    event.body = Some(String::from_utf8_lossy(&message.payload[..shown]).into_owned());
    if shown < message.payload.len() {
        event.truncated.get_or_insert(message.payload.len() as u64);
    }
    Ok(event)
}

/// Removes refused events for good.
pub(crate) async fn discard(control: &Control, discard: Discard) -> Result<Count, Problem> {
    let filter = match (discard.seq, discard.all) {
        (Some(seq), false) => subjects::refused_event(seq),
        (None, true) => REFUSED_EVENTS.to_owned(),
        _ => return Err(Problem::unprocessable("expected one of seq and all = true")),
    };
    let stream = control.stream(USER_REFUSED).await?;
    let matched = match discard.dry_run {
        true => scan::count(&stream, &filter).await?,
        false => stream.purge().filter(filter).await.map_err(nats)?.purged,
    };
    Ok(Count {
        matched,
        dry_run: discard.dry_run,
    })
}

fn read(seq: u64, stored: Timestamp, headers: &HeaderMap) -> Option<RefusedEvent> {
    if dead_letter::is_cleared(headers) {
        return None;
    }
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    Some(RefusedEvent {
        seq,
        stored,
        subject: text(header::SUBJECT).unwrap_or_default(),
        reason: text(header::REASON).unwrap_or_default(),
        pointer: text(header::POINTER),
        body: None,
        truncated: text(header::TRUNCATED).and_then(|length| length.parse().ok()),
    })
}
