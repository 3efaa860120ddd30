//! The bare loops that ours is compared with, each in a process of its own: what one gets from the same
//! client libraries with nothing of usersync in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{
    self, Message,
    consumer::{AckPolicy, PullConsumer, pull},
    message::PublishMessage,
};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::main_db;
use crate::preload;
use crate::rig::WINDOW;
use crate::upserts;
use crate::users;

/// What a bare loop writes when it is connected and about to look for its consumer.
pub(crate) const READY: &str = "ready: waiting for the consumer";
/// Messages asked for at once.
const PULL: usize = 500;
/// SETs under way at once.
const SETS: usize = 512;

/// Run one bare loop.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// The NATS server.
    #[arg(long)]
    nats: String,
    #[command(subcommand)]
    limit: Limit,
}

#[derive(Debug, Subcommand)]
enum Limit {
    /// Pull and acknowledge, nothing else.
    Ack(Source),
    /// Spawn a task per message, bounded by a semaphore; each posts and acknowledges.
    Post {
        #[command(flatten)]
        source: Source,
        #[arg(long)]
        url: String,
        /// Tasks at once.
        #[arg(long)]
        tasks: usize,
    },
    /// One SET per message through one multiplexed connection, many under way; then acknowledge.
    Set {
        #[command(flatten)]
        source: Source,
        #[arg(long)]
        redis: String,
    },
    /// The same with a task per message.
    SpawnSet {
        #[command(flatten)]
        source: Source,
        #[arg(long)]
        redis: String,
    },
    /// One statement per batch of messages, a few under way; then acknowledge.
    Upsert {
        #[command(flatten)]
        source: Source,
        #[arg(long)]
        server: upserts::Server,
        #[arg(long)]
        url: String,
    },
    /// Publish every message again under its user's subject, many PubAcks outstanding; then acknowledge.
    Republish {
        #[command(flatten)]
        source: Source,
        /// What the user's id is appended to.
        #[arg(long)]
        prefix: String,
    },
    /// Read every message of a stream once, and tell how long it took.
    Scan {
        #[arg(long)]
        stream: String,
        /// How many there are.
        #[arg(long)]
        messages: u64,
    },
    /// Publish an outbox: select, publish, mark; and tell how long it took.
    Relay(MainDatabase),
    /// Publish a table, and tell how long it took.
    Load(MainDatabase),
    /// Publish events with a window of PubAcks, and tell how long it took.
    Publish {
        #[arg(long)]
        subject: String,
        #[arg(long)]
        events: u64,
        /// What makes the message ids of this run differ from those of others.
        #[arg(long)]
        run: String,
    },
}

#[derive(Debug, Args)]
struct MainDatabase {
    #[arg(long)]
    server: upserts::Server,
    #[arg(long)]
    url: String,
}

#[derive(Debug, Args)]
struct Source {
    #[arg(long)]
    stream: String,
    #[arg(long)]
    consumer: String,
}

/// What a bare loop that ends by itself writes then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Published {
    /// From the first message to the last, or its PubAck.
    pub seconds: f64,
}

/// Runs one bare loop; those that pull never end by themselves.
pub(crate) async fn run(args: LimitArgs) -> Result<()> {
    let client = usersync_stack::connect(&args.nats).await;
    let jetstream = jetstream::new(client.with_context(|| format!("connecting to {}", args.nats))?);
    match args.limit {
        Limit::Ack(source) => acknowledge(&jetstream, &source).await,
        Limit::Post { source, url, tasks } => post(&jetstream, &source, &url, tasks).await,
        Limit::Set { source, redis } => set(&jetstream, &source, &redis).await,
        Limit::SpawnSet { source, redis } => spawn_set(&jetstream, &source, &redis).await,
        Limit::Upsert {
            source,
            server,
            url,
        } => upserts::drain(pulled(&jetstream, &source).await?, server, &url).await,
        Limit::Republish { source, prefix } => republish(&jetstream, &source, &prefix).await,
        Limit::Scan { stream, messages } => scan(&jetstream, &stream, messages).await,
        Limit::Relay(MainDatabase { server, url }) => {
            tell(main_db::relay(&jetstream, server, &url).await?)
        }
        Limit::Load(MainDatabase { server, url }) => {
            tell(main_db::load(&jetstream, server, &url).await?)
        }
        Limit::Publish {
            subject,
            events,
            run,
        } => publish(&jetstream, &subject, events, &run).await,
    }
}

/// The messages of the consumer, once it exists.
async fn pulled(
    jetstream: &jetstream::Context,
    source: &Source,
) -> Result<impl futures_util::Stream<Item = Result<Message>> + Unpin + use<>> {
    println!("{READY}");
    let stream = jetstream.get_stream_no_info(&source.stream).await?;
    let consumer: PullConsumer = loop {
        match stream.get_consumer(&source.consumer).await {
            Ok(consumer) => break consumer,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let pulling = consumer.stream().max_messages_per_batch(PULL);
    let messages = pulling.messages().await.context("pulling")?;
    Ok(messages.map(|message| message.context("pulling a message")))
}

async fn ack(message: &Message) -> Result<()> {
    message.ack().await.map_err(anyhow::Error::from_boxed)
}

async fn acknowledge(jetstream: &jetstream::Context, source: &Source) -> Result<()> {
    let mut messages = pulled(jetstream, source).await?;
    while let Some(message) = messages.next().await {
        ack(&message?).await?;
    }
    Ok(())
}

async fn post(
    jetstream: &jetstream::Context,
    source: &Source,
    url: &str,
    tasks: usize,
) -> Result<()> {
    // Somebody else may have installed one already; either will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let free = Arc::new(Semaphore::new(tasks));
    let mut messages = pulled(jetstream, source).await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let permit = Arc::clone(&free).acquire_owned().await?;
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .body(message.payload.clone());
        tokio::spawn(async move {
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    if let Err(error) = ack(&message).await {
                        eprintln!("can't acknowledge: {error:#}");
                    }
                }
                Ok(answer) => eprintln!("answered {}", answer.status()),
                Err(error) => eprintln!("can't post: {error}"),
            }
            drop(permit);
        });
    }
    Ok(())
}

async fn set(jetstream: &jetstream::Context, source: &Source, redis: &str) -> Result<()> {
    let connection = redis_connection(redis).await?;
    let messages = pulled(jetstream, source).await?;
    let work = messages.for_each_concurrent(SETS, |message| {
        let connection = connection.clone();
        async move {
            if let Err(error) = set_one(connection, message).await {
                eprintln!("{error:#}");
            }
        }
    });
    work.await;
    Ok(())
}

async fn spawn_set(jetstream: &jetstream::Context, source: &Source, redis: &str) -> Result<()> {
    let connection = redis_connection(redis).await?;
    let free = Arc::new(Semaphore::new(SETS));
    let mut messages = pulled(jetstream, source).await?;
    while let Some(message) = messages.next().await {
        let permit = Arc::clone(&free).acquire_owned().await?;
        let connection = connection.clone();
        tokio::spawn(async move {
            if let Err(error) = set_one(connection, message).await {
                eprintln!("{error:#}");
            }
            drop(permit);
        });
    }
    Ok(())
}

async fn redis_connection(url: &str) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(url).context("the URL of Redis")?;
    let connection = client.get_multiplexed_async_connection().await;
    connection.context("connecting to Redis")
}

async fn set_one(mut connection: MultiplexedConnection, message: Result<Message>) -> Result<()> {
    let message = message?;
    let id = message.subject.rsplit('.').next().unwrap_or_default();
    redis::cmd("SET")
        .arg(format!("user:{id}"))
        .arg(&message.payload[..])
        .arg("EX")
        .arg(86_400)
        .exec_async(&mut connection)
        .await?;
    ack(&message).await
}

async fn republish(jetstream: &jetstream::Context, source: &Source, prefix: &str) -> Result<()> {
    let messages = pulled(jetstream, source).await?;
    let work = messages.for_each_concurrent(WINDOW, |message| async move {
        let done = async {
            let message = message?;
            let id = user_of(&message.payload).context("an event without a user")?;
            let again = jetstream.publish(format!("{prefix}{id}"), message.payload.clone());
            again.await?.await?;
            ack(&message).await
        };
        if let Err(error) = done.await {
            eprintln!("{error:#}");
        }
    });
    work.await;
    Ok(())
}

/// The id in a benchmark's event, found without parsing it.
fn user_of(event: &[u8]) -> Option<&str> {
    let (_, after) = std::str::from_utf8(event)
        .ok()?
        .split_once("\"user_id\":")?;
    after.split([',', '}']).next()
}

async fn scan(jetstream: &jetstream::Context, stream: &str, messages: u64) -> Result<()> {
    let began = Instant::now();
    let stream = jetstream.get_stream_no_info(stream).await?;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await?;
    let pulling = consumer.stream().max_messages_per_batch(WINDOW);
    let mut read = pulling.messages().await?;
    for _ in 0..messages {
        read.next().await.context("the stream ended early")??;
    }
    tell(began.elapsed().as_secs_f64())
}

async fn publish(
    jetstream: &jetstream::Context,
    subject: &str,
    events: u64,
    run: &str,
) -> Result<()> {
    ensure!(events > 0, "there is nothing to publish");
    let bodies: Vec<Bytes> = (0..events)
        .map(|user| users::event(user, None))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    let messages = bodies.into_iter().enumerate().map(|(number, body)| {
        let message = PublishMessage::build()
            .payload(body)
            .message_id(format!("{run}-{number}"));
        Ok((subject.to_owned(), message))
    });
    preload::publish_all(jetstream, messages).await?;
    tell(began.elapsed().as_secs_f64())
}

fn tell(seconds: f64) -> Result<()> {
    println!("{}", serde_json::to_string(&Published { seconds })?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_found_in_an_event() {
        let event = users::event(1_234_567, None).unwrap();
        assert_eq!(user_of(&event), Some("1234567"));
        assert_eq!(user_of(b"{}"), None);
    }
}
