//! The demo's traffic: what is sent where, and which users there have to be in the end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::{ConnectOptions, jetstream};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};
use usersync_stack::{Stack, eventually, http};

const NAMES: [&str; 10] = [
    "ann", "ben", "cleo", "dan", "eve", "finn", "gia", "hugo", "ida", "jon",
];
const CITIES: [&str; 4] = ["Ulm", "Lyon", "Porto", "Turku"];
const PASSWORD: &str = "correct horse battery staple";

/// How many users are worked on at the same time.
const AT_ONCE: usize = 4;
/// A new user comes this often, so that one sees how fast a change arrives and not how long a queue gets;
/// many users come faster, for it all to end soon.
const PACE: Duration = Duration::from_millis(25);
const WHOLE: Duration = Duration::from_secs(20);
/// How long a change may take to get from one service to another.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// What was sent so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// How many events.
    pub(super) events: u64,
    /// The users as they have to be, by id; `None` = deleted.
    pub(super) users: BTreeMap<String, Option<Value>>,
}

/// Sends the traffic and keeps the books.
#[derive(Debug)]
pub(super) struct Traffic {
    client: Client,
    jetstream: jetstream::Context,
    basic_server: String,
    user_service: String,
    unified_auth: String,
    sent: Mutex<Sent>,
}

impl Traffic {
    pub(super) async fn new(stack: &Stack) -> Result<Self> {
        let password = stack.nats.password_file("publisher");
        let password = std::fs::read_to_string(&password)
            .with_context(|| format!("reading {}", password.display()))?;
        let publisher = ("publisher".to_owned(), password.trim().to_owned());
        let nats = ConnectOptions::with_user_and_password(publisher.0, publisher.1)
            .custom_inbox_prefix("_INBOX_publisher")
            .connect(stack.nats.url())
            .await
            .context("connecting to NATS")?;
        Ok(Self {
            client: http::client(),
            jetstream: jetstream::new(nats),
            basic_server: stack.example("basic-server").url().to_owned(),
            user_service: stack.example("user-service").url().to_owned(),
            unified_auth: stack.example("unified-auth").url().to_owned(),
            sent: Mutex::default(),
        })
    }

    /// What was sent so far.
    pub(super) fn sent(&self) -> Sent {
        self.books().clone()
    }

    /// Sends everything: `count` users through basic-server, and a tenth of that straight to NATS.
    pub(super) async fn run(&self, count: usize) -> Result<()> {
        let numbers = stream::unfold((0, ticks(count)), |(number, mut ticks)| async move {
            ticks.tick().await;
            Some((number, (number + 1, ticks)))
        });
        let registered = numbers
            .take(count)
            .map(|number| self.life_of(number))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>();
        let published = stream::iter(0..count.div_ceil(10))
            .map(Ok)
            .try_for_each(|number| self.publish(number));
        tokio::try_join!(registered, published)?;
        Ok(())
    }

    /// Registers somebody at basic-server and logs in at unified-auth as soon as that works.
    pub(super) async fn log_in_elsewhere(&self) -> Result<Duration> {
        let id = self.register("newcomer").await?;
        let start = Instant::now();
        eventually(ARRIVES_WITHIN, async || {
            let credentials = json!({ "username": "newcomer", "password": PASSWORD });
            let url = format!("{}/api/v1/auth/login", self.unified_auth);
            self.call(Method::POST, &url, &credentials).await.map(drop)
        })
        .await
        .with_context(|| format!("logging in at unified-auth as user {id}"))?;
        Ok(start.elapsed())
    }

    /// One user at basic-server: everybody registers, some change, some are deleted.
    async fn life_of(&self, number: usize) -> Result<()> {
        let name = format!("{}{number}", NAMES[number % NAMES.len()]);
        let id = self.register(&name).await?;
        match number % 10 {
            1 | 4 | 7 => {
                self.change(&id, json!({ "email": format!("{name}@example.org") }))
                    .await
            }
            2 | 5 => self.change(&id, json!({ "phone": null })).await,
            3 => self.delete(&id).await,
            6 => {
                self.change_profile(&id, CITIES[number % CITIES.len()])
                    .await
            }
            _ => Ok(()),
        }
    }

    async fn register(&self, name: &str) -> Result<String> {
        let email = format!("{name}@example.com");
        let phone = "+49 731 5550100";
        let url = format!("{}/api/v1/auth/register", self.basic_server);
        let body =
            json!({ "username": name, "email": email, "password": PASSWORD, "phone": phone });
        let answer = self.call(Method::POST, &url, &body).await?;
        let id = answer["id"].to_string();
        let data = json!({ "status": "active", "phone": phone });
        let user = json!({ "username": name, "email": email, "data": data });
        self.book(&id, |known| *known = Some(user));
        Ok(id)
    }

    /// Changes a user at basic-server.
    async fn change(&self, id: &str, changes: Value) -> Result<()> {
        let url = format!("{}/api/v1/users/{id}", self.basic_server);
        self.call(Method::PUT, &url, &changes).await?;
        self.book(id, |known| {
            let Some(user) = known else { return };
            if let Some(email) = changes.get("email") {
                user["email"] = email.clone();
            }
            if let (Some(Value::Null), Some(data)) =
                (changes.get("phone"), user["data"].as_object_mut())
            {
                data.remove("phone");
            }
        });
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let url = format!("{}/api/v1/users/{id}", self.basic_server);
        self.call(Method::DELETE, &url, &Value::Null).await?;
        self.book(id, |known| *known = None);
        Ok(())
    }

    /// Changes a user at user-service, which is a target and a source, once the user has arrived there.
    async fn change_profile(&self, id: &str, city: &str) -> Result<()> {
        let url = format!("{}/api/v1/users/{id}/profile", self.user_service);
        eventually(ARRIVES_WITHIN, async || {
            self.call(Method::PUT, &url, &json!({ "city": city }))
                .await
                .map(drop)
        })
        .await?;
        self.book(id, |known| {
            if let Some(user) = known {
                user["data"]["city"] = json!(city);
            }
        });
        Ok(())
    }

    /// One user of a service that speaks to NATS directly: created, moved, and some suspended or deleted.
    async fn publish(&self, number: usize) -> Result<()> {
        let id = format!("crm-{number}");
        let name = format!("{}.{number}", NAMES[number % NAMES.len()]);
        let email = format!("{name}@crm.example.com");
        let city = CITIES[number % CITIES.len()];
        let user = json!({ "username": name, "email": email, "data": { "status": "active" } });
        self.event("created", &id, &user, |known| *known = Some(user.clone()))
            .await?;

        let moved = json!({ "data": { "city": city } });
        self.event("updated", &id, &moved, |known| {
            if let Some(user) = known {
                user["data"]["city"] = json!(city);
            }
        })
        .await?;
        match number % 5 {
            1 => {
                let suspended = json!({ "data": { "status": "suspended" } });
                self.event("status_changed", &id, &suspended, |known| {
                    if let Some(user) = known {
                        user["data"]["status"] = json!("suspended");
                    }
                })
                .await
            }
            2 => {
                self.event("deleted", &id, &json!({}), |known| *known = None)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Publishes one event and waits until JetStream has stored it.
    async fn event(
        &self,
        kind: &str,
        id: &str,
        members: &Value,
        change: impl FnOnce(&mut Option<Value>),
    ) -> Result<()> {
        let mut event = members.clone();
        event["user_id"] = json!(id);
        event["source"] = json!("crm");
        let subject = format!("user.{kind}");
        let publish = async {
            let stored = self
                .jetstream
                .publish(subject.clone(), event.to_string().into())
                .await?;
            stored.await
        };
        publish
            .await
            .with_context(|| format!("publishing {subject} of {id}"))?;
        self.book(id, change);
        Ok(())
    }

    async fn call(&self, method: Method, url: &str, body: &Value) -> Result<Value> {
        let request = self.client.request(method.clone(), url).json(body);
        let answer = request
            .send()
            .await
            .with_context(|| format!("{method} {url}"))?;
        let status = answer.status();
        let text = answer
            .text()
            .await
            .with_context(|| format!("{method} {url}"))?;
        if !status.is_success() {
            bail!("{method} {url} answers {status}: {text}");
        }
        if status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("the answer to {method} {url}"))
    }

    /// Notes one event about a user.
    fn book(&self, id: &str, change: impl FnOnce(&mut Option<Value>)) {
        let mut books = self.books();
        books.events += 1;
        change(books.users.entry(id.to_owned()).or_default());
    }

    fn books(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ticks(count: usize) -> Interval {
    let share = WHOLE / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let mut ticks = interval(share.clamp(Duration::from_micros(1), PACE));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
