//! A Redis Cluster: who has which slot, one connection to each, and calls that follow their slots.
//!
//! Calls of one node go as one pipeline; nodes are asked at the same time. A node that says that a slot is elsewhere is
//! believed, and everybody's slots are asked for again before the next calls.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use redis::{
    Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value, aio::MultiplexedConnection,
};

use super::{
    errors::late,
    key::SLOTS,
    server::{Node, Server},
};

/// How often a call is sent: as often as slots may move on meanwhile.
const TURNS: u32 = 6;
/// How long a slot is waited for that is just moving, the first time; each further time twice as long.
const PAUSE: Duration = Duration::from_millis(20);

/// One answer of the server.
pub(super) type Answer = Result<Value, RedisError>;

/// A cluster as far as it is known.
pub(super) struct Cluster {
    state: Mutex<State>,
    /// How long one node may take, so that one that hangs leaves time for what the others say.
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// By slot: the place of its master in `nodes`.
    masters: Vec<Option<usize>>,
    nodes: Vec<Node>,
    connections: HashMap<Node, MultiplexedConnection>,
    /// Somebody has said that it isn't as it was.
    is_outdated: bool,
}

/// A call on its way.
#[derive(Clone)]
struct Pending {
    /// Which call it is.
    index: usize,
    /// The node that is to be asked once, while the slot moves there.
    asked: Option<Node>,
}

impl Cluster {
    /// The cluster of the server that `connection` leads to.
    pub(super) async fn of(
        server: &Server,
        connection: MultiplexedConnection,
        timeout: Duration,
    ) -> Result<Self, RedisError> {
        let seed = server.node();
        let mut state = State::default();
        state.learn(&seed, slots(&mut connection.clone()).await?);
        state.connections.insert(seed, connection);
        Ok(Self {
            state: Mutex::new(state),
            patience: timeout - timeout / 5,
        })
    }

    /// Every master, with the first of its slots.
    ///
    /// # Errors
    /// When they don't have all slots.
    pub(super) fn masters(&self) -> Result<Vec<(Node, u16)>, RedisError> {
        let state = self.state();
        let mut firsts = BTreeMap::new();
        for slot in 0..SLOTS {
            let place = state.place_of(slot).ok_or_else(unserved)?;
            firsts.entry(place).or_insert(slot);
        }
        let node = |(place, slot): (usize, u16)| (state.nodes[place].clone(), slot);
        Ok(firsts.into_iter().map(node).collect())
    }

    /// The connection to a node.
    pub(super) async fn connection(
        &self,
        server: &Server,
        node: &Node,
    ) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = self.state().connections.get(node) {
            return Ok(connection.clone());
        }
        let opened = server.open(Some(node)).await?;
        let mut state = self.state();
        Ok(state
            .connections
            .entry(node.clone())
            .or_insert(opened)
            .clone())
    }

    /// Makes one call for each of `slots` and gives the answers in their order. `command` makes a call of its place;
    /// `script` is loaded where a call finds it missing.
    pub(super) async fn call(
        &self,
        server: &Server,
        slots: &[u16],
        command: impl Fn(usize) -> Cmd,
        script: Option<&Script>,
    ) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = vec![None; slots.len()];
        let all = (0..slots.len()).map(|index| Pending { index, asked: None });
        let mut pending: Vec<Pending> = all.collect();
        for turn in 0..TURNS {
            self.look_again(server).await;
            let (sent, lost) = self.by_node(slots, &pending);
            for Pending { index, .. } in lost {
                answers[index] = Some(Err(unserved()));
            }
            let sent = sent.into_iter().map(async |(node, calls)| {
                let said = self.send(server, &node, &calls, &command, script).await;
                (node, calls, said)
            });
            let (mut again, mut is_moving) = (Vec::new(), false);
            for (node, calls, said) in join_all(sent).await {
                for (call, answer) in calls.into_iter().zip(said) {
                    let next = self.next(&node, &answer);
                    is_moving |= matches!(next, Some(Next::Later));
                    answers[call.index] = Some(answer);
                    match next {
                        Some(Next::At(asked)) => again.push(Pending { asked, ..call }),
                        // Its master knows how far it has come meanwhile.
                        Some(Next::Later) => again.push(Pending {
                            asked: None,
                            ..call
                        }),
                        None => {}
                    }
                }
            }
            pending = again;
            if pending.is_empty() {
                break;
            }
            if is_moving && turn + 1 < TURNS {
                tokio::time::sleep(PAUSE * 2_u32.pow(turn)).await;
            }
        }
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.unwrap_or_else(|| Err(unserved())))
            .collect()
    }

    /// Forgets a connection: its node is no master any more, or doesn't answer.
    pub(super) fn forget(&self, node: &Node) {
        let mut state = self.state();
        state.connections.remove(node);
        state.is_outdated = true;
    }

    /// Asks the nodes for everybody's slots, where somebody has said that they aren't as they were. Where nobody can
    /// say, what was known stays.
    pub(super) async fn look_again(&self, server: &Server) {
        let known = {
            let mut state = self.state();
            if !std::mem::take(&mut state.is_outdated) {
                return;
            }
            let mut known = state.nodes.clone();
            // Those that answer come first.
            known.sort_by_key(|node| !state.connections.contains_key(node));
            known.push(server.node());
            known
        };
        for node in known {
            let asking = async {
                let mut connection = self.connection(server, &node).await?;
                slots(&mut connection).await
            };
            match tokio::time::timeout(self.patience / 4, asking).await {
                Ok(Ok(told)) => return self.state().learn(&node, told),
                _ => self.state().connections.remove(&node),
            };
        }
        self.state().is_outdated = true;
    }

    /// The calls by the nodes that get them, and those that nobody has the slot of.
    fn by_node(
        &self,
        slots: &[u16],
        pending: &[Pending],
    ) -> (BTreeMap<Node, Vec<Pending>>, Vec<Pending>) {
        let state = self.state();
        let (mut sent, mut lost) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for call in pending {
            let master = || state.master(slots[call.index]).cloned();
            match call.asked.clone().or_else(master) {
                Some(node) => sent.entry(node).or_default().push(call.clone()),
                None => lost.push(call.clone()),
            }
        }
        (sent, lost)
    }

    /// Sends calls to one node, all at once. A script that is missing there is loaded, and they are sent again.
    async fn send(
        &self,
        server: &Server,
        node: &Node,
        calls: &[Pending],
        command: &impl Fn(usize) -> Cmd,
        script: Option<&Script>,
    ) -> Vec<Answer> {
        let sending = async {
            let mut connection = self.connection(server, node).await?;
            let answers = exchange(&mut connection, calls, command).await?;
            let Some(script) = script.filter(|_| answers.iter().any(is_script_missing)) else {
                return Ok(answers);
            };
            let _: String = script.load_async(&mut connection).await?;
            exchange(&mut connection, calls, command).await
        };
        let sent = tokio::time::timeout(self.patience, sending).await;
        let sent = sent.unwrap_or_else(|_| Err(late()));
        sent.unwrap_or_else(|error: RedisError| {
            self.forget(node);
            vec![Err(error); calls.len()]
        })
    }

    /// What is to be done about an answer; nothing where it is one.
    fn next(&self, node: &Node, answer: &Answer) -> Option<Next> {
        let error = answer.as_ref().err()?;
        let ErrorKind::Server(kind) = error.kind() else {
            return None;
        };
        match kind {
            ServerErrorKind::Moved | ServerErrorKind::Ask => {
                let (address, slot) = error.redirect_node()?;
                let other = place(address, node)?;
                if kind == ServerErrorKind::Ask {
                    return Some(Next::At(Some(other)));
                }
                let mut state = self.state();
                state.is_outdated = true;
                state.moved(slot, other);
                Some(Next::At(None))
            }
            // Some of a user's keys have moved, and some haven't yet.
            ServerErrorKind::TryAgain => Some(Next::Later),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    /// At the slot's master, or once at the node that it is moving to.
    At(Option<Node>),
    Later,
}

impl State {
    fn place_of(&self, slot: u16) -> Option<usize> {
        self.masters.get(usize::from(slot)).copied().flatten()
    }

    fn master(&self, slot: u16) -> Option<&Node> {
        self.nodes.get(self.place_of(slot)?)
    }

    /// Takes over what `teller` has told.
    fn learn(&mut self, teller: &Node, told: Vec<Range>) {
        self.masters = vec![None; usize::from(SLOTS)];
        self.nodes.clear();
        for Range {
            first,
            last,
            host,
            port,
        } in told
        {
            // It doesn't know how it is called itself.
            let host = host.unwrap_or_else(|| teller.0.clone());
            let place = self.place((host, port));
            for slot in first..=last.min(SLOTS - 1) {
                self.masters[usize::from(slot)] = Some(place);
            }
        }
        let nodes = std::mem::take(&mut self.nodes);
        self.connections.retain(|node, _| nodes.contains(node));
        self.nodes = nodes;
    }

    fn moved(&mut self, slot: u16, node: Node) {
        let place = self.place(node);
        if let Some(master) = self.masters.get_mut(usize::from(slot)) {
            *master = Some(place);
        }
    }

    fn place(&mut self, node: Node) -> usize {
        let known = self.nodes.iter().position(|known| *known == node);
        known.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }
}

/// Slots of one master.
struct Range {
    first: u16,
    last: u16,
    host: Option<String>,
    port: u16,
}

/// What a node answers to `CLUSTER SLOTS`: of each range the first and the last slot, and its servers, the master first.
async fn slots(connection: &mut MultiplexedConnection) -> Result<Vec<Range>, RedisError> {
    let mut asked = redis::cmd("CLUSTER");
    let told: Vec<Vec<Value>> = asked.arg("SLOTS").query_async(connection).await?;
    Ok(told.into_iter().filter_map(range).collect())
}

fn range(told: Vec<Value>) -> Option<Range> {
    let mut told = told.into_iter();
    let (first, last, master) = (told.next()?, told.next()?, told.next()?);
    let master: Vec<Value> = redis::from_redis_value(master).ok()?;
    let mut master = master.into_iter();
    let host: Option<String> = redis::from_redis_value(master.next()?).ok()?;
    Some(Range {
        first: redis::from_redis_value(first).ok()?,
        last: redis::from_redis_value(last).ok()?,
        host: host.filter(|host| !host.is_empty() && host != "?"),
        port: redis::from_redis_value(master.next()?).ok()?,
    })
}

/// Sends calls in one go and reads all answers.
async fn exchange(
    connection: &mut MultiplexedConnection,
    calls: &[Pending],
    command: &impl Fn(usize) -> Cmd,
) -> Result<Vec<Answer>, RedisError> {
    let mut pipeline = redis::pipe();
    for call in calls {
        if call.asked.is_some() {
            pipeline.cmd("ASKING").ignore();
        }
        pipeline.add_command(command(call.index));
    }
    pipeline.ignore_errors().query_async(connection).await
}

fn is_script_missing(answer: &Answer) -> bool {
    let missing = ErrorKind::Server(ServerErrorKind::NoScript);
    answer.as_ref().is_err_and(|error| error.kind() == missing)
}

/// `HOST:PORT` as a redirection names it; without a host it is that of the one who says so.
fn place(address: &str, teller: &Node) -> Option<Node> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = match host {
        "" | "?" => teller.0.as_str(),
        host => host,
    };
    Some((host.to_owned(), port.parse().ok()?))
}

/// No master has the slot.
fn unserved() -> RedisError {
    let kind = ErrorKind::Server(ServerErrorKind::ClusterDown);
    (kind, "no master has the slot").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_a_host_or_mean_their_own() {
        let teller = ("10.0.0.1".to_owned(), 7000);
        for (address, expected) in [
            ("10.0.0.2:7001", Some(("10.0.0.2", 7001))),
            (":7001", Some(("10.0.0.1", 7001))),
            ("?:7001", Some(("10.0.0.1", 7001))),
            ("fd00::2:7001", Some(("fd00::2", 7001))),
            ("[fd00::2]:7001", Some(("fd00::2", 7001))),
            ("node-2.internal:7001", Some(("node-2.internal", 7001))),
            ("nonsense", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(place(address, &teller), expected, "{address}");
        }
    }
}
