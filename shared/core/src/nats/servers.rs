//! Which servers there are, and whether they will do.

use std::time::Duration;

use anyhow::ensure;
use async_nats::{Client, connection::State};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::timeout;

/// The oldest nats-server that will do. Before it a stream with one message per subject could refuse writes for good
/// (nats-io/nats-server#8378).
pub const OLDEST_SERVER: (u64, u64, u64) = (2, 14, 4);
/// Where every server says how it is, where nats.conf lets us ask.
const HEALTH: &str = "$SYS.REQ.SERVER.PING.HEALTHZ";
/// How long the first and the next of them may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// What one server says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    server: About,
    data: Data,
}

#[derive(Clone, Debug, Deserialize)]
struct About {
    name: String,
    ver: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Data {
    #[serde(default)]
    errors: Vec<Trouble>,
}

#[derive(Clone, Debug, Deserialize)]
struct Trouble {
    #[serde(default)]
    account: String,
    #[serde(default)]
    stream: String,
}

impl Server {
    /// Streams that the server has and can't show, each with its account: one without JetStream, say.
    pub fn hidden_streams(&self) -> impl Iterator<Item = (&str, &str)> {
        let errors = self.data.errors.iter();
        errors.map(|error| (error.account.as_str(), error.stream.as_str()))
    }
}

/// Waits for the connection.
///
/// # Errors
/// When the server is older than [`OLDEST_SERVER`].
pub async fn until_connected(client: &Client) -> anyhow::Result<()> {
    while client.connection_state() != State::Connected {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    supported(client)
}

/// Waits for a server that is too old, and says so; for ever where there is none.
pub async fn until_too_old(client: &Client) -> anyhow::Error {
    match until_connected(client).await {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}

/// Looks at the version of the server that `client` is connected to.
///
/// # Errors
/// When it is older than [`OLDEST_SERVER`].
pub(super) fn supported(client: &Client) -> anyhow::Result<()> {
    let server = client.server_info();
    new_enough(&server.server_name, &server.version)
}

/// Every server of the cluster that answers; none where nats.conf doesn't let us ask.
///
/// # Errors
/// When one is older than [`OLDEST_SERVER`], or the client is closed.
pub async fn servers(client: &Client) -> anyhow::Result<Vec<Server>> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let question = r#"{"details":true}"#;
    client
        .publish_with_reply(HEALTH, inbox, question.into())
        .await?;
    let mut servers = Vec::new();
    while let Ok(Some(answer)) = timeout(PATIENCE, answers.next()).await {
        // That nobody answers has no body.
        let Ok(server) = serde_json::from_slice::<Server>(&answer.payload) else {
            break;
        };
        new_enough(&server.server.name, &server.server.ver)?;
        servers.push(server);
    }
    Ok(servers)
}

fn new_enough(name: &str, version: &str) -> anyhow::Result<()> {
    let mut numbers = version
        .split(['.', '-'])
        .map_while(|number| number.parse().ok());
    let mut next = || numbers.next().unwrap_or(0);
    let found = (next(), next(), next());
    let (major, minor, patch) = OLDEST_SERVER;
    ensure!(
        found >= OLDEST_SERVER,
        "the NATS server {name} is nats-server {version}; {major}.{minor}.{patch} or newer is needed, for an older one can \
         refuse writes for good (nats-io/nats-server#8378): update it, every server of the cluster"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_server_is_refused_by_name_and_version() {
        for version in ["2.14.4", "2.14.10", "2.15.0", "2.15.1-RC.1", "3.0.0"] {
            assert!(new_enough("n1", version).is_ok(), "{version}");
        }
        for version in ["2.14.3", "2.9.10", "1.99.99", "2.14", "", "dev"] {
            let refused = new_enough("n1", version).unwrap_err().to_string();
            let told = format!("the NATS server n1 is nats-server {version}; 2.14.4 or newer");
            assert!(refused.starts_with(&told), "{refused}");
        }
    }

    #[test]
    fn a_stream_of_an_account_that_is_off_is_named() {
        let said = r#"{"server":{"name":"n1","ver":"2.15.1"},"data":{"status":"error","status_code":503,"errors":[
            {"type":"STREAM","account":"$G","stream":"USER_STATE","error":"could not be recovered"},{"type":"ACCOUNT","error":"?"}]}}"#;
        let server: Server = serde_json::from_str(said).unwrap();
        let hidden: Vec<_> = server.hidden_streams().collect();
        assert_eq!(hidden, [("$G", "USER_STATE"), ("", "")]);
    }
}
