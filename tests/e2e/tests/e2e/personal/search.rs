//! Looks for planted values in everything that the system wrote.

use anyhow::Result;

use super::mark_in;
use crate::support::Bus;

/// In every planted value.
const MARK: &str = "canary";
/// What everything is searched for: as it was published, and as masks, cases and encodings might show it.
const MARKS: &[&str] = &[MARK, "CANARY", "Canary", "Y2FuYXJ5", "NhbmFye", "jYW5hcn"];
/// What was looked through, by name.
#[derive(Default)]
pub(super) struct Search {
    pub(super) looked_at: usize,
    pub(super) leaks: Vec<String>,
}

impl Search {
    pub(super) fn look(&mut self, place: &str, bytes: &[u8]) {
        self.looked_at += 1;
        for line in bytes.split(|byte| *byte == b'\n') {
            if mark_in(line, MARKS).is_some() {
                self.leaks
                    .push(format!("{place}: {}", String::from_utf8_lossy(line)));
            }
        }
    }

    /// Every message of a stream: its subject and headers, and its body where data doesn't belong there.
    pub(super) async fn stream(
        &mut self,
        bus: &Bus,
        name: &str,
        has_data: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let stream = bus.jetstream().get_stream(name).await?;
        // One by one, for a work queue takes no second consumer.
        for seq in 1..=stream.cached_info().state.last_sequence {
            if let Ok(message) = stream.get_raw_message(seq).await {
                let place = format!("{name} {}", message.subject);
                self.look(&place, format!("{:?}", message.headers).as_bytes());
                if !has_data(&message.subject) {
                    self.look(&place, &message.payload);
                }
            }
        }
        Ok(())
    }
}
