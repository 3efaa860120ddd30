//! A client of one role, which finds out whether the server lets it do something.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions, Event};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use usersync_stack::NatsServer;

/// How long the server may take to do something, or to refuse it.
const SOON: Duration = Duration::from_secs(10);

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub(super) enum Try<'a> {
    /// Publish; it arrives at the tests' own client.
    Publish(&'a str),
    /// Acknowledge the message with this reply subject; likewise.
    Acknowledge(&'a str),
    /// Subscribe; what the tests' own client publishes there arrives.
    Subscribe(&'a str),
    /// Send a request with a body; it is answered.
    Request(&'a str, &'a str),
}

/// A connection as one user.
pub(super) struct Peer {
    pub(super) client: Client,
    refusals: UnboundedReceiver<String>,
}

impl Peer {
    /// Connects as `user`, with replies under `inbox`.
    pub(super) async fn connect(
        nats: &NatsServer,
        user: &str,
        password: &str,
        inbox: &str,
    ) -> Result<Self> {
        let (sender, refusals) = unbounded_channel();
        let options = ConnectOptions::with_user_and_password(user.into(), password.into());
        let client = options
            .custom_inbox_prefix(inbox)
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        // Nobody listens any more at the end of a test.
                        let _ = sender.send(error.to_string());
                    }
                }
            })
            .connect(nats.url())
            .await
            .with_context(|| format!("connecting as {user}"))?;
        Ok(Self { client, refusals })
    }

    /// Whether the server allows it. Either shows: by what follows, or by the server's error.
    pub(super) async fn may(&mut self, attempt: Try<'_>, other: &Client) -> Result<bool> {
        let (Try::Publish(subject)
        | Try::Acknowledge(subject)
        | Try::Subscribe(subject)
        | Try::Request(subject, _)) = attempt;
        let client = self.client.clone();
        let effect = async {
            match attempt {
                Try::Publish(subject) => published(&client, subject, "{}", other).await,
                Try::Acknowledge(subject) => published(&client, subject, "+ACK", other).await,
                Try::Subscribe(subject) => subscribed(&client, subject, other).await,
                Try::Request(subject, body) => answered(&client, subject, body).await,
            }
        };
        let told = format!("\"{subject}\"");
        let seen = async {
            tokio::select! {
                done = effect => done.map(|()| true),
                () = refused(&mut self.refusals, &told) => Ok(false),
            }
        };
        let seen = tokio::time::timeout(SOON, seen).await;
        seen.with_context(|| format!("{attempt:?} is neither done nor refused"))?
    }
}

async fn refused(refusals: &mut UnboundedReceiver<String>, told: &str) {
    while let Some(refusal) = refusals.recv().await {
        if refusal.contains("Permissions Violation") && refusal.contains(told) {
            return;
        }
    }
    std::future::pending().await
}

async fn published(client: &Client, subject: &str, body: &str, other: &Client) -> Result<()> {
    let mut seen = usersync_stack::subscribe(other, subject).await?;
    client
        .publish(subject.to_owned(), body.to_owned().into())
        .await?;
    seen.next().await.context("the subscription ended")?;
    Ok(())
}

async fn subscribed(client: &Client, subject: &str, other: &Client) -> Result<()> {
    let mut seen = client.subscribe(subject.to_owned()).await?;
    client.flush().await?;
    loop {
        other.publish(subject.to_owned(), "{}".into()).await?;
        let again = Duration::from_millis(50);
        if let Ok(message) = tokio::time::timeout(again, seen.next()).await {
            return message.map(drop).context("the subscription ended");
        }
    }
}

async fn answered(client: &Client, subject: &str, body: &str) -> Result<()> {
    // Not by the client's own way: a message that is asked for comes under its own subject.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply(subject.to_owned(), inbox, body.to_owned().into())
        .await?;
    // That nobody serves it is an answer too: the request went through.
    let answer = answers.next().await.context("the subscription ended")?;
    let text = String::from_utf8_lossy(&answer.payload);
    ensure!(!text.contains("\"error\":"), "{subject}: {text}");
    Ok(())
}
