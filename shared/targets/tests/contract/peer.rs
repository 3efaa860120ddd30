//! What the contract's clauses need of a kind: a server, a place for users, and a look into it from outside.

use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use serde_json::{Value, json};
use usersync_core::{catalogue, target::TargetConfig};
use usersync_targets::{Delivery, Target};

/// A user as the server holds it, seen by a client that isn't ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Held {
    pub(crate) username: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) status: Option<String>,
    /// Null when there is none.
    pub(crate) data: Value,
}

/// What a kind can, beyond holding users.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Can {
    /// It refuses older versions.
    pub(crate) guard: bool,
    /// It keeps what a partial user isn't told.
    pub(crate) keep: bool,
    /// It merges what a partial user is told of `data`.
    pub(crate) merge: bool,
    /// It disables users.
    pub(crate) disable: bool,
    /// Two users can't have the same email there.
    pub(crate) unique_email: bool,
    /// It reads users back.
    pub(crate) verify: bool,
}

/// A server of one kind, with as many places for users as are asked for.
#[async_trait(?Send)]
pub(crate) trait Peer {
    fn can(&self) -> Can;

    /// Makes `place`, empty.
    async fn prepare(&mut self, place: &str) -> Result<()>;

    /// The catalogue's entry for `place`, by a name and password that are right or wrong.
    fn entry(&self, place: &str, right: bool) -> Value;

    /// What is held of a user; `None` when there is none, or a deleted one.
    async fn held(&mut self, place: &str, id: &str) -> Result<Option<Held>>;

    /// Makes the user's name `mallory`, behind our back.
    async fn tamper(&mut self, place: &str, id: &str) -> Result<()>;

    /// Takes the user away, as if they had never been there.
    async fn remove(&mut self, place: &str, id: &str) -> Result<()>;

    /// A user that the server refuses for good.
    async fn refused(&mut self, place: &str, id: &str) -> Result<Delivery>;

    /// Kills the server.
    async fn kill(&mut self) -> Result<()>;

    /// Starts it again.
    async fn restart(&mut self) -> Result<()>;

    /// Stops it in its tracks, or lets it go on.
    async fn pause(&mut self, paused: bool) -> Result<()>;
}

/// The target at `place`, with more keys in its entry.
pub(crate) fn connect(peer: &dyn Peer, place: &str, more: Value) -> Result<Box<dyn Target>> {
    open(peer.entry(place, true), more)
}

/// The target that `entry` with `more` keys describes.
pub(crate) fn open(entry: Value, more: Value) -> Result<Box<dyn Target>> {
    let config = config(entry, more)?;
    usersync_targets::connect(&config, &usersync_stack::egress()).context("connecting")
}

/// The entry with more keys, as a catalogue would read it.
pub(crate) fn config(mut entry: Value, more: Value) -> Result<TargetConfig> {
    let members = entry.as_object_mut().context("an entry is an object")?;
    members.entry("timeout").or_insert(json!("5s"));
    for (key, value) in more.as_object().context("more keys are an object")? {
        members.insert(key.clone(), value.clone());
    }
    catalogue::entry("contract", entry).map_err(|problems| anyhow!(problems.join("; ")))
}
