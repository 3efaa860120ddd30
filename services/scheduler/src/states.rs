//! USER_STATE, read from one end to the other.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    Message,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        message::Info,
    },
};
use tokio::time::{Instant, sleep, timeout};
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    pull::{Pull, Stopped},
    subjects::USER_STATE,
};

/// States on their way, at most.
const WINDOW: usize = 2_000;
/// States handed out at once, at most: no more are to be had before others get their turn (tokio's budget of a task).
const PAGE: usize = 128;
/// How long one request for states lasts.
const EXPIRES: Duration = Duration::from_secs(10);
/// How long the server keeps the consumer of a reader that never comes to its end.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How long the next states may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it rests before it is opened again, at first and at most.
const REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(4);

/// Everything that is in USER_STATE when it is opened, each once. What is written meanwhile may be missed: whoever asks
/// looks again, user by user, at what makes a difference.
pub(crate) struct States {
    jetstream: jetstream::Context,
    pull: Pull,
    /// How many there are.
    count: u64,
    /// Where it ends, in the stream.
    last: u64,
    /// Up to where it has been read, in the stream.
    read: u64,
    /// How many this consumer has handed out.
    taken: u64,
    /// Whether there is nothing more.
    ended: bool,
}

impl States {
    /// Opens a reader before the first state.
    ///
    /// # Errors
    /// When the server refuses, or doesn't answer.
    pub(crate) async fn open(jetstream: &jetstream::Context) -> anyhow::Result<Self> {
        let opening = async {
            let stream = jetstream.get_stream(USER_STATE).await?;
            let state = &stream.cached_info().state;
            let (pull, pending) = consumer(jetstream, 0).await?;
            Ok(Self {
                jetstream: jetstream.clone(),
                pull,
                count: state.messages,
                last: state.last_sequence,
                read: 0,
                taken: 0,
                ended: pending == 0,
            })
        };
        let opened = timeout(2 * REQUEST_TIMEOUT, opening).await;
        opened.context("USER_STATE can't be opened in time")?
    }

    /// How many there were when it was opened.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The next states, as the stream has them; `None` after the last.
    ///
    /// # Errors
    /// When the server doesn't go on, and not after opening it again either.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Message>>> {
        let end = Instant::now() + 2 * PATIENCE;
        let (mut rest, mut broken) = (REST, false);
        while !self.ended {
            let done = match broken {
                false => self.page().await.map(Some),
                true => self.open_again().await.map(|()| None),
            };
            match done {
                Ok(None) => broken = false,
                Ok(page) => return Ok(page),
                Err(error) if Instant::now() + rest > end => return Err(error),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "reading USER_STATE broke off; going on behind it");
                    sleep(rest).await;
                    rest = LONGEST_REST.min(rest * 2);
                    broken = true;
                }
            }
        }
        Ok(None)
    }

    async fn open_again(&mut self) -> anyhow::Result<()> {
        let opened = timeout(REQUEST_TIMEOUT, consumer(&self.jetstream, self.read)).await;
        let (pull, pending) = opened.context("USER_STATE can't be opened in time")??;
        self.pull = pull;
        self.taken = 0;
        self.ended = pending == 0;
        Ok(())
    }

    async fn page(&mut self) -> anyhow::Result<Vec<Message>> {
        let mut page = self.taken().await?;
        let Some(newest) = page.last() else {
            bail!("nothing came");
        };
        let newest = self.about(newest)?;
        // Without acknowledgements nothing comes again: what wasn't counted is lost.
        self.taken += page.len() as u64;
        ensure!(
            newest.consumer == self.taken,
            "some states got lost on the way"
        );
        self.read = newest.stream;
        self.ended = newest.pending == 0 || newest.stream >= self.last;
        if newest.stream > self.last {
            // Somebody's older state may have been handed out before.
            let mut older = Vec::with_capacity(page.len());
            for message in page {
                if self.about(&message)?.stream <= self.last {
                    older.push(message);
                }
            }
            page = older;
        }
        Ok(page)
    }

    /// What comes next, asking for more ahead of it.
    async fn taken(&mut self) -> anyhow::Result<Vec<Message>> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let outstanding = self.pull.outstanding();
            if outstanding <= WINDOW / 2 {
                self.pull.ask(WINDOW - outstanding, None).await?;
            }
            match self.pull.page(PAGE).await {
                Ok(page) if page.is_empty() => {}
                Ok(page) => return Ok(page),
                // A busy server; or what was on its way got lost, which shows.
                Err(Stopped::Silent) => self.pull.renew(),
                Err(stopped) => return Err(stopped.into()),
            }
        }
        bail!("the next states did not come in time")
    }

    fn about(&self, message: &Message) -> anyhow::Result<Place> {
        let message = jetstream::Message {
            message: message.clone(),
            context: self.jetstream.clone(),
        };
        let about = message.info().map_err(anyhow::Error::from_boxed)?;
        Ok(Place::of(&about))
    }
}

/// Where a message stands.
struct Place {
    stream: u64,
    consumer: u64,
    pending: u64,
}

impl Place {
    fn of(about: &Info<'_>) -> Self {
        Self {
            stream: about.stream_sequence,
            consumer: about.consumer_sequence,
            pending: about.pending,
        }
    }
}

/// A consumer of what comes behind sequence `read`, and how much that is. It takes every subject: with a filter the
/// server would look at each.
async fn consumer(jetstream: &jetstream::Context, read: u64) -> anyhow::Result<(Pull, u64)> {
    let stream = jetstream.get_stream_no_info(USER_STATE).await?;
    let consumer: PullConsumer = stream
        .create_consumer(pull::Config {
            deliver_policy: match read {
                0 => DeliverPolicy::All,
                read => DeliverPolicy::ByStartSequence {
                    start_sequence: read + 1,
                },
            },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: FORGOTTEN,
            ..pull::Config::default()
        })
        .await?;
    let info = consumer.cached_info();
    let pull = Pull::open(jetstream, USER_STATE, &info.name, EXPIRES).await?;
    Ok((pull, info.num_pending))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anyhow::Result;
    use futures_util::TryStreamExt;
    use usersync_core::{
        streams,
        subjects::{self, STATES},
        user_id::UserId,
    };
    use usersync_stack::{Directory, NatsServer};

    use super::*;

    const USERS: u64 = 3 * WINDOW as u64;

    /// A server with a state of each of [`USERS`].
    async fn started() -> Result<(NatsServer, jetstream::Context, Directory)> {
        let directory = Directory::temporary()?;
        let nats = NatsServer::start(directory.path()).await?;
        let client = usersync_stack::connect(&nats.test_url()).await?;
        let jetstream = jetstream::new(client);
        let all = streams::all(1).into_iter();
        for config in all.filter(|config| config.name == USER_STATE) {
            jetstream.create_stream(config).await?;
        }
        for user in 0..USERS {
            publish(&jetstream, user).await?;
        }
        Ok((nats, jetstream, directory))
    }

    async fn publish(jetstream: &jetstream::Context, user: u64) -> Result<()> {
        let subject = subjects::state(&UserId::from(user));
        jetstream.publish(subject, "{}".into()).await?.await?;
        Ok(())
    }

    /// Reads on to the end: who came, each once.
    async fn rest(states: &mut States) -> Result<BTreeSet<UserId>> {
        let mut users = BTreeSet::new();
        while let Some(page) = states.next().await? {
            for message in page {
                let user = subjects::user_of_state(&message.subject);
                let user =
                    user.with_context(|| format!("{} is none of {STATES}", message.subject))?;
                ensure!(users.insert(user), "{} came twice", message.subject);
            }
        }
        Ok(users)
    }

    #[tokio::test]
    async fn what_is_there_is_read_once_and_what_comes_later_is_not() -> Result<()> {
        let (_nats, jetstream, _directory) = started().await?;
        let mut states = States::open(&jetstream).await?;
        assert_eq!(states.count(), USERS);
        let first = states.next().await?.context("nothing is there")?;
        let before = first.len();
        // One who has been read changes, and one is new: neither may keep it from ending.
        publish(&jetstream, 0).await?;
        publish(&jetstream, USERS).await?;
        let users = rest(&mut states).await?;
        assert_eq!(before + users.len(), USERS as usize);
        assert!(!users.contains(&UserId::from(0)) && !users.contains(&UserId::from(USERS)));
        Ok(())
    }

    #[tokio::test]
    async fn it_goes_on_behind_what_was_read_when_its_consumer_is_lost() -> Result<()> {
        let (_nats, jetstream, _directory) = started().await?;
        let stream = jetstream.get_stream(USER_STATE).await?;
        let mut states = States::open(&jetstream).await?;
        let first = states.next().await?.context("nothing is there")?;
        let names: Vec<String> = stream.consumer_names().try_collect().await?;
        assert_eq!(names.len(), 1);
        stream.delete_consumer(&names[0]).await?;
        let users = rest(&mut states).await?;
        assert_eq!(first.len() + users.len(), USERS as usize);
        // The window was out when the consumer went, and more than that was to come.
        let names: Vec<String> = stream.consumer_names().try_collect().await?;
        assert_eq!(names.len(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn nothing_is_read_twice_or_missed_when_messages_get_lost() -> Result<()> {
        let (_nats, jetstream, _directory) = started().await?;
        let mut states = States::open(&jetstream).await?;
        let first = states.next().await?.context("nothing is there")?;
        let lost = states.taken().await?;
        assert!(!lost.is_empty());
        let users = rest(&mut states).await?;
        assert_eq!(first.len() + users.len(), USERS as usize);
        Ok(())
    }

    #[tokio::test]
    async fn an_empty_stream_ends_at_once() -> Result<()> {
        let (_nats, jetstream, _directory) = started().await?;
        jetstream.get_stream(USER_STATE).await?.purge().await?;
        let mut states = States::open(&jetstream).await?;
        assert_eq!(states.count(), 0);
        assert!(states.next().await?.is_none());
        Ok(())
    }
}
