//! A way to a server that can be told to stop in the middle of an answer.

use std::sync::Arc;

use anyhow::Result;
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Passes on what it is given, both ways, until it is told to stop; closed on drop.
pub(crate) struct Stall {
    port: u16,
    /// How many more octets of answers pass before everything stops; `None` while all of them do.
    left: Arc<watch::Sender<Option<usize>>>,
    serving: JoinHandle<()>,
}

impl Stall {
    /// A way to what listens on loopback at `port`.
    pub(crate) async fn before(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let left = Arc::new(watch::Sender::new(None));
        let known = left.clone();
        Ok(Self {
            port: listener.local_addr()?.port(),
            left,
            serving: tokio::spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn(pass(client, port, known.clone()));
                    while connections.try_join_next().is_some() {}
                }
            }),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// After so many octets of answers nothing comes any more, and nothing is closed.
    pub(crate) fn after(&self, octets: usize) {
        self.left.send_replace(Some(octets));
    }

    /// Whether it has come to that.
    pub(crate) fn is_stalled(&self) -> bool {
        *self.left.borrow() == Some(0)
    }

    /// Everything passes again.
    pub(crate) fn go_on(&self) {
        self.left.send_replace(None);
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(
    client: TcpStream,
    port: u16,
    left: Arc<watch::Sender<Option<usize>>>,
) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut asks, asked) = client.into_split();
    let (answers, mut server) = server.into_split();
    tokio::select! {
        ended = io::copy(&mut asks, &mut server) => ended.map(drop),
        ended = answer(answers, asked, &left) => ended,
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    left: &watch::Sender<Option<usize>>,
) -> io::Result<()> {
    let mut octets = [0; 4_096];
    loop {
        let mut rest = match from.read(&mut octets).await? {
            0 => return Ok(()),
            count => &octets[..count],
        };
        while !rest.is_empty() {
            let mut now = rest.len();
            left.send_if_modified(|left| {
                let Some(left) = left else { return false };
                now = now.min(*left);
                *left -= now;
                true
            });
            if now == 0 {
                let again = left.subscribe().wait_for(Option::is_none).await.map(drop);
                again.map_err(io::Error::other)?;
                continue;
            }
            to.write_all(&rest[..now]).await?;
            rest = &rest[now..];
        }
    }
}
