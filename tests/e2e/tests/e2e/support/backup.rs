//! Backup and restore of a stream, as `nats stream backup` and `nats stream restore` do it, consumers included.

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, jetstream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

/// What a backup holds.
pub(crate) struct Backup {
    stream: String,
    description: Value,
    chunks: Vec<Bytes>,
}

impl Backup {
    /// Backs `stream` up.
    pub(crate) async fn of(jetstream: &jetstream::Context, stream: &str) -> Result<Self> {
        let client = jetstream.client();
        let inbox = client.new_inbox();
        let mut arriving = client.subscribe(inbox.clone()).await?;
        let request = json!({"deliver_subject": inbox, "chunk_size": 128 << 10});
        let subject = format!("$JS.API.STREAM.SNAPSHOT.{stream}");
        let description = ask(&client, subject, request.to_string().into()).await?;
        let mut chunks = Vec::new();
        loop {
            let message = arriving.next().await.context("the snapshot ended early")?;
            if message.payload.is_empty() {
                break;
            }
            chunks.push(message.payload);
            if let Some(ack) = message.reply {
                client.publish(ack, Bytes::new()).await?;
            }
        }
        Ok(Self {
            stream: stream.to_owned(),
            description,
            chunks,
        })
    }

    /// Brings it back; there must be no such stream.
    pub(crate) async fn restore(&self, jetstream: &jetstream::Context) -> Result<()> {
        let client = jetstream.client();
        let Value::Object(description) = &self.description else {
            anyhow::bail!("no description of a stream");
        };
        let request = json!({"config": description["config"], "state": description["state"]});
        let subject = format!("$JS.API.STREAM.RESTORE.{}", self.stream);
        let answer = ask(&client, subject, request.to_string().into()).await?;
        let deliver = answer["deliver_subject"].as_str().context("no subject")?;
        for chunk in &self.chunks {
            client.request(deliver.to_owned(), chunk.clone()).await?;
        }
        ask(&client, deliver.to_owned(), Bytes::new()).await?;
        Ok(())
    }
}

async fn ask(client: &Client, subject: String, body: Bytes) -> Result<Value> {
    let answer = client.request(subject.clone(), body).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    ensure!(answer["error"].is_null(), "{subject}: {}", answer["error"]);
    Ok(answer)
}
