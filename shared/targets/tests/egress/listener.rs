//! Somebody who listens, and counts who comes.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use tokio::net::{TcpListener, UnixListener};

/// Counts connections, and closes each at once.
pub(crate) struct Listener {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
}

impl Listener {
    /// On every address of this machine, and on a socket in `folder` named as PostgreSQL's would be.
    pub(crate) async fn everywhere(folder: &Path) -> Result<Self> {
        let listener = Self::at("::".parse()?, 0).await?;
        let path = folder.join(format!(".s.PGSQL.{}", listener.port));
        let (socket, connections) = (UnixListener::bind(path)?, listener.connections.clone());
        tokio::spawn(async move {
            while socket.accept().await.is_ok() {
                connections.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(listener)
    }

    /// At one address; a port of 0 is a free one.
    pub(crate) async fn at(address: IpAddr, port: u16) -> Result<Self> {
        let socket = TcpListener::bind(SocketAddr::from((address, port))).await?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (port, counted) = (socket.local_addr()?.port(), connections.clone());
        tokio::spawn(async move {
            while socket.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { port, connections })
    }

    /// How many have come.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
