//! Events that can't be taken: kept as `user.refused.<stream seq>`, with the reason and the original bytes.

use async_nats::{
    HeaderMap,
    jetstream::{
        self, Message, context::PublishErrorKind, message::PublishMessage,
        stream::LastRawMessageErrorKind,
    },
};
use usersync_core::{
    event::InvalidEvent,
    subjects::{self, header},
};

/// What the headers of a dead letter take of the largest message, in bytes.
const ROOM_FOR_HEADERS: usize = 4 * 1024;

/// Headers that JetStream itself writes: on the answer to a direct get, on what a stream republishes. Where one is, the
/// message is no publisher's: somebody had an answer sent to the subject of an event.
const OF_JETSTREAM: [&str; 5] = [
    "Nats-Stream",
    "Nats-Sequence",
    "Nats-Subject",
    "Nats-Time-Stamp",
    "Nats-Last-Sequence",
];

/// What the client says of a message whose headers it can't read (third_party/README.md).
const MALFORMED: &str = "Async-Nats-Malformed";

/// Whether a message has headers that nobody can read.
pub(super) fn is_malformed(headers: &HeaderMap) -> bool {
    headers.get(MALFORMED).is_some()
}

/// Why no event has these headers, if so.
pub(super) fn of_headers(headers: &HeaderMap) -> Option<InvalidEvent> {
    if is_malformed(headers) {
        let reason = "its headers are malformed: each is a line with a name, a colon and a text";
        return Some(InvalidEvent::new("", reason));
    }
    let mut names = OF_JETSTREAM.into_iter();
    let name = names.find(|name| headers.get(*name).is_some())?;
    let reason = format!(
        "the header {name} is what JetStream writes on answers and copies: publish the event without it"
    );
    Some(InvalidEvent::new("", reason))
}

/// Stores a refused event and awaits the PubAck; the caller may acknowledge it then.
pub(super) async fn store(
    jetstream: &jetstream::Context,
    message: &Message,
    seq: u64,
    invalid: &InvalidEvent,
) -> anyhow::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CLASS, "invalid");
    headers.insert(header::REASON, invalid.reason.as_ref());
    headers.insert(header::SUBJECT, message.subject.as_str());
    if !invalid.pointer.is_empty() {
        let pointer = invalid.pointer.replace(char::is_control, " ");
        headers.insert(header::POINTER, pointer);
    }
    let mut payload = message.payload.clone();
    let most = jetstream
        .client()
        .max_payload()
        .saturating_sub(ROOM_FOR_HEADERS);
    if payload.len() > most {
        headers.insert(header::TRUNCATED, payload.len().to_string());
        payload.truncate(most);
    }
    let stored_payload = payload.clone();
    let letter = PublishMessage::build().payload(payload).headers(headers);
    // An event that comes again is there already. In its place the server would put the new one, and leave the bytes of
    // the former on the disk, where no erasure finds them.
    let letter = letter.expected_last_subject_sequence(0);
    let subject = subjects::refused_event(seq);
    loop {
        let sent = jetstream
            .send_publish(subject.clone(), letter.clone())
            .await?;
        match sent.await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        let refused = jetstream.get_stream_no_info(subjects::USER_REFUSED).await?;
        let there = match refused.get_last_raw_message_by_subject(&subject).await {
            Ok(there) => there,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(error.into()),
        };
        if there.payload == stored_payload {
            return Ok(());
        }
        // One of a stream that is no more, whose sequences come again.
        refused.delete_message(there.sequence).await?;
    }
}
