//! Answers of HTTP targets that few servers give: many headers, a byte order mark before the JSON.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use usersync_targets::{Outcome, Standing, Target};

use crate::{
    clauses::{is_delivered, one},
    deliveries::user,
    peer::open,
};

const MARK: &str = "\u{feff}";

/// A server that gives every call the same answer; ends on drop.
struct Answering {
    url: String,
    task: JoinHandle<()>,
}

impl Answering {
    async fn start(headers: usize, body: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/users", listener.local_addr()?);
        let more = (0..headers).map(|number| format!("X-Header-{number}: {number}\r\n"));
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            more.collect::<String>(),
            body.len()
        );
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut call = [0; 64 * 1024];
                let _ = stream.read(&mut call).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Ok(Self { url, task })
    }

    fn target(&self, more: Value) -> Result<Box<dyn Target>> {
        open(json!({"url": self.url}), more)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn an_answer_may_have_hundreds_of_headers() -> Result<()> {
    for headers in [97, 98, 150, 500] {
        let server = Answering::start(headers, String::new()).await?;
        let target = server.target(json!({}))?;
        let outcome = one(&*target, user("1", 5, "ann")).await;
        is_delivered(&outcome).with_context(|| format!("{headers} headers"))?;
        target.probe().await?;
    }
    let server = Answering::start(3_000, String::new()).await?;
    let outcome = one(&*server.target(json!({}))?, user("1", 5, "ann")).await;
    let Outcome::Transient(failure) = outcome else {
        anyhow::bail!("{outcome:?}");
    };
    ensure!(failure.reason.contains("head is too large"), "{failure}");
    Ok(())
}

#[tokio::test]
async fn a_byte_order_mark_before_the_results_of_a_batch_is_overlooked() -> Result<()> {
    let batch = [user("1", 5, "ann"), user("2", 5, "ben")];
    for results in [r#"[{"status":200},{"status":422}]"#, ""] {
        let server = Answering::start(0, format!("{MARK}{results}")).await?;
        let target = server.target(json!({"batch": 10}))?;
        let outcomes = target.deliver(&batch).await;
        is_delivered(&outcomes[0])?;
        match results {
            "" => is_delivered(&outcomes[1])?,
            _ => ensure!(matches!(outcomes[1], Outcome::Permanent(_)), "{outcomes:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_byte_order_mark_before_a_user_that_is_read_is_overlooked() -> Result<()> {
    let shown = json!({"user_id": "1", "username": "ann", "email": "1@example.com",
                       "data": {"phone": "1", "status": "active"}});
    let server = Answering::start(120, format!("{MARK}{shown}")).await?;
    let read_url = format!("{}/{{id}}", server.url);
    let target = server.target(json!({"read_url": read_url, "verify": true}))?;
    let standings = target
        .compare(&[user("1", 5, "ann")])
        .await
        .context("it compares")?;
    ensure!(standings == [Standing::Same], "{standings:?}");
    Ok(())
}

#[tokio::test]
async fn a_byte_order_mark_before_a_token_is_overlooked() -> Result<()> {
    let granted = json!({"access_token": "t", "token_type": "Bearer", "expires_in": 300});
    let tokens = Answering::start(120, format!("{MARK}{granted}")).await?;
    let server = Answering::start(0, String::new()).await?;
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), "s")?;
    let oauth2 = json!({"token_url": tokens.url, "client_id": "c",
                        "client_secret": format!("file:{}", secret.path().display())});
    let target = server.target(json!({"auth": {"oauth2": oauth2}}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)
}
