//! Who calls the gateway's API without being known costs next to nothing, and holds up nobody.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use usersync_core::descriptors;
use usersync_stack::{Stack, eventually, free_port, http};

use crate::{
    access::{Guarded, new_key},
    support::{LATER, SOON, only},
};

/// More than a gateway keeps.
const MANY: usize = 2_300;
/// A whole body, in bytes.
const BODY: usize = 8 << 20;
/// How long an answer takes that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The entry of a caller that signs.
const CRM: &str = "[http.keys.crm]\nsecrets = [\"env:CRM_SECRET\"]\nscopes = [\"publish\"]\n";
const SECRET: (&str, &str) = (
    "CRM_SECRET",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr",
);

async fn connection(stack: &Stack) -> Result<TcpStream> {
    let url = stack.gateway().url();
    let address = url.strip_prefix("http://").context("no address")?;
    Ok(timeout(SOON, TcpStream::connect(address)).await??)
}

/// The headers of a request that `caller` signed at `second`, with a body of so many bytes.
fn signed(caller: &str, second: i64, bytes: usize) -> String {
    format!(
        "POST /v1/events?caller={caller} HTTP/1.1\r\nhost: usersync\r\ncontent-type: application/json\r\n\
         content-length: {bytes}\r\nwebhook-id: m\r\nwebhook-timestamp: {second}\r\nwebhook-signature: v1,AAAA\r\n\r\n"
    )
}

/// The beginning of the answer.
async fn answered(stream: &mut TcpStream) -> Result<String> {
    let mut buffer = vec![0; 4096];
    let read = timeout(SOON, stream.read(&mut buffer)).await??;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

#[tokio::test]
async fn half_requests_hold_up_nobody_and_are_ended() -> Result<()> {
    let stack = only("").start().await?;
    let mut halves = Vec::new();
    // Where there are fewer files, the gateway keeps fewer.
    descriptors::raise();
    for _ in 0..MANY.min(descriptors::for_connections() / 2) {
        let mut half = connection(&stack).await?;
        half.write_all(b"GET /livez HTTP/1.1\r\nhost: use").await?;
        halves.push(half);
    }
    let client = http::client();
    for path in ["/livez", "/readyz", "/v1/targets"] {
        let url = format!("{}{path}", stack.gateway().url());
        let response = timeout(Duration::from_secs(2), client.get(url).send()).await??;
        assert_eq!(response.status(), 200, "{path}");
    }
    for half in &mut halves {
        let ended = timeout(LATER, half.read(&mut [0])).await?;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_read_of_a_body_that_nobody_can_have_signed() -> Result<()> {
    let guarded = Guarded::start(CRM, &[SECRET]).await?;
    let now = Timestamp::now().as_second();
    let long_ago = now - 301;
    for (caller, second) in [("nobody", now), ("crm", long_ago), ("crm", now + 600)] {
        let mut stream = connection(&guarded.stack).await?;
        let headers = signed(caller, second, BODY);
        stream.write_all(headers.as_bytes()).await?;
        let answer = answered(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 401"), "{caller}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn bodies_whose_signature_is_not_proven_have_room_together() -> Result<()> {
    let publisher = new_key(&["--name", "pub", "--scope", "publish"])?;
    let guarded = Guarded::start(&format!("{CRM}{}", publisher.entry), &[SECRET]).await?;
    let most = vec![b' '; BODY - 1];
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = connection(&guarded.stack).await?;
        let headers = signed("crm", Timestamp::now().as_second(), BODY);
        stream.write_all(headers.as_bytes()).await?;
        timeout(SOON, stream.write_all(&most)).await??;
        waiting.push(stream);
    }
    let mut last = connection(&guarded.stack).await?;
    let headers = signed("crm", Timestamp::now().as_second(), BODY);
    let half = format!("{headers}{}", " ".repeat(BODY / 2));
    eventually(SOON, async || {
        // Until all that the others have sent is read.
        let mut late = connection(&guarded.stack).await?;
        // Who is refused reads no more.
        let _ = timeout(SOON, late.write_all(half.as_bytes())).await?;
        // Who is let in is waited for, until the others are given up.
        let answer = timeout(AT_ONCE, answered(&mut late)).await??;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(answer.contains("retry-after: 1"), "{answer}");
        Ok(())
    })
    .await?;
    // Whoever has a key isn't concerned, and there is room again once the others are told.
    let event = r#"{"id":"1","type":"user.created","user_id":1}"#;
    let post = guarded.request(&publisher.key, Method::POST, "/v1/events");
    let post = post.header("content-type", "application/json").body(event);
    assert_eq!(post.send().await?.status(), 202);
    for mut stream in waiting {
        stream.write_all(b" ").await?;
        let answer = answered(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    last.write_all(headers.as_bytes()).await?;
    // One that doesn't come is waited for no longer than it would have been.
    let answer = answered(&mut last).await?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn health_has_an_address_of_its_own_where_that_is_wished() -> Result<()> {
    let own = format!("127.0.0.1:{}", free_port()?);
    let stack = only("")
        .env("USERSYNC_HTTP__HEALTH_LISTEN", &own)
        .start()
        .await?;
    let client = http::client();
    eventually(SOON, async || {
        for (path, status) in [("/livez", 200), ("/readyz", 200), ("/v1/targets", 404)] {
            let response = client.get(format!("http://{own}{path}")).send().await?;
            ensure!(response.status() == status, "{path}: {response:?}");
        }
        Ok(())
    })
    .await?;
    let response = client.get(format!("{}/livez", stack.gateway().url()));
    assert_eq!(response.send().await?.status(), 200);
    Ok(())
}
