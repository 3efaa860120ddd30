//! What is broken, one by one: its number and name in LIST.md, how it is done, what people should be told.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use anyhow::Result;

use crate::{list, world::World};

type Injecting<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// What NATS is while something is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broker {
    /// One server; streams have one replica.
    Alone,
    /// Three servers; streams have three replicas.
    Cluster,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "alone",
            Self::Cluster => "as a cluster of three",
        })
    }
}

/// One fault.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) broker: Broker,
    /// Breaks something while the load is on, and leaves it whole.
    pub(crate) inject: for<'a> fn(&'a mut World, &'a mut fastrand::Rng) -> Injecting<'a>,
    /// Kinds of alerts of which one has to be raised; none = it isn't looked at.
    pub(crate) alerts: &'static [&'static str],
    /// The load is ten times as fast.
    pub(crate) burst: bool,
    /// Every event comes three times, and not in order.
    pub(crate) repeated: bool,
    /// This many after the first user: at the HTTP targets that user is refused for good.
    pub(crate) poisoned: Option<u64>,
    /// Whether this machine lets it be done; an error says why not.
    pub(crate) needs: fn() -> Result<()>,
}

impl Fault {
    pub(crate) const fn new(
        number: u32,
        name: &'static str,
        inject: for<'a> fn(&'a mut World, &'a mut fastrand::Rng) -> Injecting<'a>,
    ) -> Self {
        Self {
            number,
            name,
            broker: Broker::Alone,
            inject,
            alerts: &[],
            burst: false,
            repeated: false,
            poisoned: None,
            needs: || Ok(()),
        }
    }

    /// It is left out where this machine lacks something.
    pub(crate) const fn needing(mut self, needs: fn() -> Result<()>) -> Self {
        self.needs = needs;
        self
    }

    pub(crate) const fn told(mut self, alerts: &'static [&'static str]) -> Self {
        self.alerts = alerts;
        self
    }

    pub(crate) const fn of_cluster(mut self) -> Self {
        self.broker = Broker::Cluster;
        self
    }

    /// All of them, in the order of LIST.md.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = [
            list::crash::FAULTS,
            list::broker::FAULTS,
            list::cluster::FAULTS,
            list::database::FAULTS,
            list::http::FAULTS,
            list::input::FAULTS,
            list::main::FAULTS,
        ]
        .concat();
        all.sort_by_key(|fault| fault.number);
        all
    }
}

/// How long something stays broken.
pub(crate) async fn a_while(dice: &mut fastrand::Rng) {
    tokio::time::sleep(Duration::from_millis(dice.u64(1_500..3_000))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list is what runs.
    #[test]
    fn the_list_names_every_fault_that_there_is() {
        let listed: Vec<(u32, String)> = include_str!("../LIST.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| "))
            .filter_map(|line| {
                let mut cells = line.split('|').map(str::trim);
                let number = cells.next()?.parse().ok()?;
                Some((number, cells.next()?.trim_matches('`').to_owned()))
            })
            .collect();
        let there: Vec<_> = Fault::all()
            .iter()
            .map(|fault| (fault.number, fault.name.to_owned()))
            .collect();
        assert_eq!(listed, there);
    }
}
