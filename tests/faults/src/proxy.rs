//! A TCP proxy between a worker and its target, which breaks what passes through it.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// They pass.
    Good,
    /// Each piece waits.
    Slow(Duration),
    /// No more than so many bytes a second, each way.
    Throttled(usize),
    /// They are read, and none is passed on; connections stay.
    BlackHole,
    /// Answers are cut off after so many bytes, and the connection with them.
    Cut(usize),
    /// Once the request has passed, this side is closed for writing; answers are still read.
    HalfClosed,
    /// Connections are taken, and closed at once.
    Refused,
}

/// A running proxy; ends with this program.
#[derive(Clone)]
pub(crate) struct Proxy {
    port: u16,
    line: Arc<Mutex<Line>>,
    /// Ends every connection there is.
    ended: Arc<watch::Sender<u64>>,
}

impl Proxy {
    /// One in front of the port `to` of this machine.
    pub(crate) async fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self {
            port: listener.local_addr()?.port(),
            line: Arc::new(Mutex::new(Line::Good)),
            ended: Arc::new(watch::Sender::new(0)),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = accepting.clone();
                tokio::spawn(async move { proxy.serve(client, to).await });
            }
        });
        Ok(proxy)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on it is so, for connections that are there, too.
    pub(crate) fn is(&self, line: Line) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }

    /// Resets every connection that is there.
    pub(crate) fn reset(&self) {
        self.ended.send_modify(|times| *times += 1);
    }

    fn line(&self) -> Line {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, client: TcpStream, to: u16) -> std::io::Result<()> {
        if self.line() == Line::Refused {
            return Ok(());
        }
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let mut ended = self.ended.subscribe();
        ended.mark_unchanged();
        tokio::select! {
            passed = async {
                tokio::try_join!(
                    self.pass(from_client, to_server, true),
                    self.pass(from_server, to_client, false),
                )
            } => passed.map(drop),
            _ = ended.changed() => Ok(()),
        }
    }

    async fn pass(
        &self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        request: bool,
    ) -> std::io::Result<()> {
        let mut piece = vec![0; 16 * 1024];
        let mut passed = 0;
        loop {
            let read = from.read(&mut piece).await?;
            if read == 0 {
                return to.shutdown().await;
            }
            passed += read;
            match self.line() {
                Line::Good | Line::Refused => {}
                Line::Slow(wait) => tokio::time::sleep(wait).await,
                Line::Throttled(rate) => {
                    tokio::time::sleep(Duration::from_secs(1) * read as u32 / rate as u32).await;
                }
                Line::BlackHole => continue,
                Line::Cut(most) if !request && passed > most => {
                    return Err(std::io::Error::other("cut"));
                }
                Line::Cut(_) => {}
                Line::HalfClosed if request => {
                    to.write_all(&piece[..read]).await?;
                    to.shutdown().await?;
                    continue;
                }
                Line::HalfClosed => {}
            }
            if to.write_all(&piece[..read]).await.is_err() && request {
                continue;
            }
        }
    }
}
