//! A line to a server that somebody listens in on: what the client says is kept.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Passes on what is said to and by the server at `port`.
pub(crate) struct Tap {
    pub(crate) port: u16,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub(crate) async fn before(server: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (port, said) = (listener.local_addr()?.port(), Arc::default());
        let kept: Arc<Mutex<Vec<u8>>> = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, server, kept.clone()));
            }
        });
        Ok(Self { port, said })
    }

    /// How many bytes clients have said, and which of `texts` are among them.
    pub(crate) fn heard<'a>(&self, texts: &[&'a str]) -> (usize, Vec<&'a str>) {
        let said = self.said.lock().expect("a lock");
        let among = |text: &&str| said.windows(text.len()).any(|part| part == text.as_bytes());
        (
            said.len(),
            texts.iter().copied().filter(|text| among(text)).collect(),
        )
    }
}

async fn pass_on(client: TcpStream, server: u16, said: Arc<Mutex<Vec<u8>>>) -> Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server)).await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        to_client.shutdown().await
    });
    let mut part = [0; 4096];
    loop {
        let length = from_client.read(&mut part).await?;
        if length == 0 {
            return Ok(to_server.shutdown().await?);
        }
        said.lock().expect("a lock").extend(&part[..length]);
        to_server.write_all(&part[..length]).await?;
    }
}
