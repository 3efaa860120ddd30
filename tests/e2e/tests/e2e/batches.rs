//! Batches against a real server: what is stored, and what is said of it.

use anyhow::{Context, Result, ensure};
use async_nats::{
    HeaderMap, HeaderName,
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID},
    jetstream::{self, stream},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;
use usersync_core::batch::{Batches, Mode, NotSent, Outcome};
use usersync_stack::{Directory, NatsServer, eventually};

use crate::support::SOON;

const STREAM: &str = "BATCHES";
/// For a message that needs no header.
const PLAIN: (HeaderName, &str) = (HeaderName::from_static("Plain"), "");

/// A server with one stream of `batch.*`, and one who publishes there.
struct Rig {
    nats: NatsServer,
    jetstream: jetstream::Context,
    batches: Batches,
    _directory: Directory,
}

impl Rig {
    async fn start(mode: Mode, config: stream::Config) -> Result<Self> {
        let directory = Directory::temporary()?;
        let nats = NatsServer::start(directory.path()).await?;
        let client = usersync_stack::connect(&nats.test_url()).await?;
        let jetstream = jetstream::new(client.clone());
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["batch.*".to_owned()],
            ..config
        };
        jetstream.create_stream(config).await?;
        Ok(Self {
            batches: Batches::new(client, mode).await?,
            nats,
            jetstream,
            _directory: directory,
        })
    }

    /// Adds a message with one header.
    async fn add(&mut self, subject: &str, header: (HeaderName, &str)) -> Result<(), NotSent> {
        let mut headers = HeaderMap::new();
        headers.insert(header.0, header.1);
        let subject = subject.to_owned().into();
        self.batches.add(subject, headers, Bytes::new()).await
    }

    async fn commit(&mut self) -> Vec<Outcome> {
        self.batches.commit().await;
        self.batches.outcomes().collect()
    }

    /// The subjects of all that is stored, in its order.
    async fn stored(&self) -> Result<Vec<String>> {
        let mut stream = self.jetstream.get_stream(STREAM).await?;
        let state = stream.info().await?.state.clone();
        let mut subjects = Vec::new();
        // An empty stream begins at 0.
        for seq in state.first_sequence.max(1)..=state.last_sequence {
            subjects.push(stream.get_raw_message(seq).await?.subject.to_string());
        }
        Ok(subjects)
    }
}

fn batched() -> stream::Config {
    stream::Config {
        allow_batch_publish: true,
        ..stream::Config::default()
    }
}

#[tokio::test]
async fn thousands_are_stored_in_order_and_known_ones_once() -> Result<()> {
    let mut rig = Rig::start(Mode::InOrder, batched()).await?;
    for round in 0..2 {
        for number in 0..5_000 {
            let id = format!("id-{number}");
            rig.add(&format!("batch.{number}"), (NATS_MESSAGE_ID, &id))
                .await?;
        }
        let outcomes = rig.commit().await;
        ensure!(outcomes == [Outcome::Stored; 5_000], "round {round}");
        ensure!(rig.batches.trouble().is_none());
    }
    let expected: Vec<String> = (0..5_000).map(|number| format!("batch.{number}")).collect();
    ensure!(rig.stored().await? == expected);
    Ok(())
}

#[tokio::test]
async fn behind_a_refused_message_nothing_is_stored_in_order() -> Result<()> {
    let mut rig = Rig::start(Mode::InOrder, batched()).await?;
    let expected = NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
    for (subject, seq) in [("batch.1", "0"), ("batch.2", "7"), ("batch.3", "0")] {
        rig.add(subject, (expected.clone(), seq)).await?;
    }
    let outcomes = rig.commit().await;
    ensure!(
        outcomes == [Outcome::Stored, Outcome::Outdated, Outcome::Doubtful],
        "{outcomes:?}"
    );
    ensure!(rig.stored().await? == ["batch.1"]);
    Ok(())
}

#[tokio::test]
async fn a_full_stream_says_so_and_the_next_batch_knows_nothing_of_it() -> Result<()> {
    let full = stream::Config {
        max_messages: 3,
        discard: stream::DiscardPolicy::New,
        ..batched()
    };
    let mut rig = Rig::start(Mode::InOrder, full).await?;
    // A message that is refused says so at once, or at the end: either way nobody goes on.
    for number in 0..5 {
        if rig.add(&format!("batch.{number}"), PLAIN).await.is_err() {
            break;
        }
    }
    let outcomes = rig.commit().await;
    ensure!(outcomes[..3] == [Outcome::Stored; 3], "{outcomes:?}");
    ensure!(
        outcomes[3..].iter().all(|one| *one == Outcome::Doubtful),
        "{outcomes:?}"
    );
    let trouble = rig.batches.trouble().context("no trouble")?;
    ensure!(trouble.contains("maximum messages exceeded"), "{trouble}");
    ensure!(rig.stored().await? == ["batch.0", "batch.1", "batch.2"]);

    rig.jetstream.get_stream(STREAM).await?.purge().await?;
    rig.add("batch.4", PLAIN).await?;
    ensure!(rig.commit().await == [Outcome::Stored]);
    ensure!(rig.batches.trouble().is_none());
    Ok(())
}

#[tokio::test]
async fn each_for_itself_only_the_outdated_is_refused() -> Result<()> {
    let mut rig = Rig::start(Mode::EachForItself, batched()).await?;
    let expected = NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
    rig.add("batch.1", (expected.clone(), "0")).await?;
    ensure!(rig.commit().await == [Outcome::Stored]);
    for (subject, seq) in [
        ("batch.2", "0"),
        ("batch.1", "0"),
        ("batch.1", "1"),
        ("batch.3", "7"),
    ] {
        rig.add(subject, (expected.clone(), seq)).await?;
    }
    let (stored, outdated) = (Outcome::Stored, Outcome::Outdated);
    ensure!(rig.commit().await == [stored, outdated, stored, outdated]);
    ensure!(rig.stored().await? == ["batch.1", "batch.2", "batch.1"]);
    // The first one, and the only one, are answered in other ways.
    for count in [1, 3] {
        for number in 0..count {
            let subject = format!("batch.{}", number + 1);
            let seq = if number == 0 { "0" } else { "7" };
            rig.add(&subject, (expected.clone(), seq)).await?;
        }
        let outcomes = rig.commit().await;
        ensure!(outcomes == vec![outdated; count], "{outcomes:?}");
        ensure!(rig.batches.trouble().is_none());
    }
    Ok(())
}

#[tokio::test]
async fn whoever_listens_sees_each_message_and_nothing_else() -> Result<()> {
    let mut rig = Rig::start(Mode::InOrder, batched()).await?;
    let client = usersync_stack::connect(&rig.nats.test_url()).await?;
    let mut heard = usersync_stack::subscribe(&client, "batch.*").await?;
    for batch in [1, 3] {
        for number in 0..batch {
            rig.add(&format!("batch.{number}"), PLAIN).await?;
        }
        ensure!(rig.commit().await.len() == batch);
    }
    rig.jetstream
        .client()
        .publish("batch.end", Bytes::new())
        .await?;
    for expected in ["0", "0", "1", "2", "end"] {
        let message = timeout(SOON, heard.next()).await?.context("the end")?;
        ensure!(
            message.subject.as_str() == format!("batch.{expected}"),
            "{message:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_the_server_does_not_take_says_why() -> Result<()> {
    for mode in [Mode::InOrder, Mode::EachForItself] {
        let mut rig = Rig::start(mode, stream::Config::default()).await?;
        rig.add("batch.1", PLAIN).await?;
        ensure!(rig.commit().await == [Outcome::Doubtful]);
        let trouble = rig.batches.trouble().context("no trouble")?;
        ensure!(trouble.contains("batch publish is disabled"), "{trouble}");
        ensure!(rig.stored().await?.is_empty());

        rig.add("nobody.takes", PLAIN).await?;
        ensure!(rig.commit().await == [Outcome::Doubtful]);
        let trouble = rig.batches.trouble().context("no trouble")?;
        ensure!(trouble == "no stream takes it", "{trouble}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_too_large_is_told_from_what_is_in_doubt() -> Result<()> {
    let small = stream::Config {
        max_message_size: 1_000,
        ..batched()
    };
    let mut rig = Rig::start(Mode::InOrder, small).await?;
    let most = rig.jetstream.client().server_info().max_payload;
    rig.add("batch.1", PLAIN).await?;
    let large = Bytes::from(vec![b'x'; most + 1]);
    let added = rig.batches.add("batch.2".into(), HeaderMap::new(), large);
    ensure!(added.await == Err(NotSent::TooLarge));
    ensure!(rig.commit().await == [Outcome::Stored]);
    ensure!(rig.batches.trouble().is_none());

    rig.add("batch.3", PLAIN).await?;
    let large = Bytes::from(vec![b'x'; 1_001]);
    let added = rig.batches.add("batch.4".into(), HeaderMap::new(), large);
    added.await?;
    rig.add("batch.5", PLAIN).await?;
    // The server says so at once, and nothing of those before it.
    let outcomes = rig.commit().await;
    ensure!(
        outcomes == [Outcome::Doubtful, Outcome::TooLarge, Outcome::Doubtful],
        "{outcomes:?}"
    );
    let trouble = rig.batches.trouble().context("no trouble")?;
    ensure!(
        trouble.contains("message size exceeds maximum"),
        "{trouble}"
    );
    ensure!(rig.stored().await? == ["batch.1", "batch.3"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_doubt_about_the_rest_and_the_next_batch_works() -> Result<()>
{
    let mut rig = Rig::start(Mode::InOrder, batched()).await?;
    for number in 0..2_100 {
        rig.add(&format!("batch.{number}"), PLAIN).await?;
    }
    rig.nats.kill9().await;
    let outcomes = rig.commit().await;
    ensure!(outcomes.len() == 2_100);
    let known = outcomes.partition_point(|one| *one == Outcome::Stored);
    ensure!(
        outcomes[known..]
            .iter()
            .all(|one| *one == Outcome::Doubtful),
        "what is known to be stored comes first"
    );
    ensure!(known < 2_100 && rig.batches.trouble().is_some());
    rig.nats.restart().await?;
    let next = eventually(SOON, async || {
        // An attempt may be stored although nobody heard of it.
        rig.add("batch.last", (NATS_MESSAGE_ID, "last")).await?;
        let outcomes = rig.commit().await;
        ensure!(outcomes == [Outcome::Stored], "{:?}", rig.batches.trouble());
        Ok(())
    });
    next.await?;
    let stored = rig.stored().await?;
    ensure!(stored.len() > known, "{} of {known}", stored.len());
    let expected = (0..stored.len() - 1).map(|number| format!("batch.{number}"));
    ensure!(expected.eq(stored[..stored.len() - 1].iter().cloned()));
    Ok(())
}
