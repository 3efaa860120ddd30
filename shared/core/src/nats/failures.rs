//! Why a server can't be connected to, in full: the client's events tell no more than `IO error`.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{ClientError, ConnectOptions, Server};

use super::tls;

/// What each server's last attempt ended with; clones share it.
#[derive(Clone, Default)]
pub(super) struct Failures(Arc<Mutex<Vec<String>>>);

impl Failures {
    /// Has the client tell before every attempt how the ones before ended. Which server is next stays its own choice.
    pub(super) fn of(&self, options: ConnectOptions) -> ConnectOptions {
        let failures = self.clone();
        options.reconnect_to_server_callback(move |servers, _| {
            failures.note(&servers);
            std::future::ready(None)
        })
    }

    /// `error` in full, and what to do about it.
    pub(super) fn explain(&self, error: &ClientError) -> String {
        let ClientError::Other(kind) = error else {
            return error.to_string();
        };
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = last.iter().find(|failure| failure.starts_with(kind));
        let whole = whole.unwrap_or(kind);
        match tls::hint(whole) {
            Some(hint) => format!("{whole}; {hint}"),
            None => whole.clone(),
        }
    }

    fn note(&self, servers: &[Server]) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = servers
            .iter()
            .filter_map(|server| server.last_error.clone())
            .collect();
    }
}
