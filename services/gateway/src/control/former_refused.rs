//! Refused events of before there was USER_REFUSED: brought there from USER_DEAD, where every worker could read them.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{context::PublishErrorKind, message::PublishMessage};
use usersync_core::subjects::{self, FORMER_REFUSED_EVENTS, USER_DEAD};

use super::{
    Control,
    erase::overwrite,
    scan::{self, Query},
};

/// Events in one page: each may have a megabyte, and a page is held in memory.
const PAGE: usize = 100;
/// How often is looked: a gateway of before may still be refusing events.
const LOOK: Duration = Duration::from_secs(60);

/// Brings over what is there and then overwrites it; answers how many there were. Cut off anywhere it is simply done again.
///
/// # Errors
/// When the server can't be asked, or refuses.
pub(crate) async fn bring_over(control: &Control) -> anyhow::Result<u64> {
    let dead = control.stream(USER_DEAD).await?;
    let mut brought = 0;
    if scan::count(&dead, FORMER_REFUSED_EVENTS).await? == 0 {
        return Ok(0);
    }
    let query = Query {
        filter: FORMER_REFUSED_EVENTS.to_owned(),
        headers_only: false,
    };
    let mut next = Some(1);
    while let Some(from) = next {
        let page = scan::page(&dead, &query, from, PAGE).await?;
        next = page.next;
        let mut done = Vec::new();
        for found in page.found {
            let Some(seq) = subjects::seq_of_former_refused(&found.subject) else {
                continue;
            };
            let message = PublishMessage::build()
                .payload(found.payload)
                .headers(found.headers)
                .expected_last_subject_sequence(0);
            let subject = subjects::refused_event(seq);
            let stored = control.jetstream.send_publish(subject, message).await?;
            match stored.await {
                // It was brought over before.
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                stored => drop(stored.context("bringing over a refused event")?),
            }
            done.push(found.seq);
        }
        brought += done.len() as u64;
        overwrite(&dead, done).await?;
    }
    tracing::info!(
        brought,
        "refused events were brought over from USER_DEAD to USER_REFUSED"
    );
    Ok(brought)
}

/// Goes on with it for ever.
pub(crate) async fn follow(control: &Control) {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = bring_over(control).await {
            let error = format!("{error:#}");
            tracing::warn!(error, "can't bring over refused events; trying again");
        }
    }
}
