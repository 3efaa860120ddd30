//! What somebody has deleted: it is made again where that loses nothing more, and people are told.

use std::collections::BTreeSet;

use jiff::Timestamp;
use usersync_core::{
    alert::{self, Alert, Kind, Runbook},
    streams::{self, Options},
    subjects::USER_ALERT,
};

use super::consumers;
use crate::{
    control::{Control, look::Look},
    notify,
};

/// What is looked for.
pub(super) struct Deleted {
    streams: Options,
    notify: notify::Settings,
    runbook: Runbook,
    /// Targets whose consumers were all there: what is missing of them was deleted, and is not yet to be made.
    complete: BTreeSet<String>,
    /// When the consumers of gateways and schedulers were made: intake makes its own again by itself.
    known: streams::Made,
    /// What was made and nobody was told of yet: the stream or target, and what it was.
    untold: Vec<(String, String)>,
}

impl Deleted {
    pub(super) fn new(streams: Options, notify: notify::Settings, runbook: Runbook) -> Self {
        Self {
            streams,
            notify,
            runbook,
            complete: BTreeSet::new(),
            known: streams::Made::new(),
            untold: Vec::new(),
        }
    }

    /// Makes streams, buckets and the consumers of gateways and schedulers again; answers the streams that are missing and
    /// can't be made in passing.
    ///
    /// # Errors
    /// When NATS can't be asked, or refuses something.
    pub(super) async fn make_again(&mut self, control: &Control) -> anyhow::Result<Vec<String>> {
        let jetstream = &control.jetstream;
        let streams::Missing { kept, made } = streams::make_again(jetstream, self.streams).await?;
        let streams = made.iter().map(|stream| (stream.clone(), stream.clone()));
        self.untold.extend(streams);
        let mut wanted = streams::own_consumers();
        for channel in self.notify.channels() {
            wanted.push((USER_ALERT, streams::notify_consumer(channel.durable())));
        }
        let again = streams::make_consumers_again(jetstream, wanted, &mut self.known).await?;
        for (consumer, stream) in again {
            // One that went with its stream is told of with it.
            if !made.iter().any(|made| made == stream) {
                let what = format!("{consumer} of {stream}");
                self.untold.push((stream.to_owned(), what));
            }
        }
        self.tell(control).await?;
        Ok(kept)
    }

    /// The same of the consumers of targets.
    ///
    /// # Errors
    /// As [`Self::make_again`].
    pub(super) async fn make_targets_again(
        &mut self,
        control: &Control,
        look: &Look,
    ) -> anyhow::Result<()> {
        for target in &look.targets {
            let (name, standing) = (target.name.as_ref(), &look.standing);
            if standing.live(name).is_some() && standing.repairs(name).is_some() {
                self.complete.insert(name.to_owned());
                continue;
            }
            let Some(config) = &target.entry.config else {
                continue;
            };
            if !consumers::is_there(control, name).await? {
                continue;
            }
            let wanted = streams::target_consumers(config);
            let mut known = streams::Made::new();
            let made =
                streams::make_consumers_again(&control.jetstream, wanted, &mut known).await?;
            let were_there = !self.complete.insert(name.to_owned());
            for (consumer, stream) in made.iter().filter(|_| were_there) {
                let what = format!("{consumer} of {stream}");
                self.untold.push((name.to_owned(), what));
            }
        }
        let there: BTreeSet<&str> = look.targets.iter().map(|it| it.name.as_ref()).collect();
        self.complete.retain(|name| there.contains(name.as_str()));
        self.tell(control).await
    }

    /// Tells of everything that nobody was told of yet.
    async fn tell(&mut self, control: &Control) -> anyhow::Result<()> {
        while let Some((about, what)) = self.untold.last() {
            self.raise(control, about, what).await?;
            self.untold.pop();
        }
        Ok(())
    }

    /// `about` is the stream, or the target whose consumer it was.
    async fn raise(&self, control: &Control, about: &str, what: &str) -> anyhow::Result<()> {
        let summary = format!("deleted by somebody, and made again: {what}");
        tracing::error!(what, "deleted by somebody, and made again");
        let alert = Alert::raised(
            Kind::Streams,
            about,
            Timestamp::now(),
            summary,
            &self.runbook,
        );
        alert::tell(&control.jetstream, Kind::Streams, about, |newest| {
            let told = newest.raised().map(|raised| &raised.summary);
            (told != Some(&alert.summary)).then(|| alert.clone())
        })
        .await
    }
}
