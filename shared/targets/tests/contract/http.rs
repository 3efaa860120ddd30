//! HTTP's side of the contract: services that mounted the receiver kit, or something without a guard.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Bound,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use async_trait::async_trait;
use axum::{Router, extract::Request, middleware, response::Response};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use usersync_receiver::{
    Applied, Change, GUARD_HEADER, HeldUser, Options, Senders, StoreError, UserId, UserStore,
};
use usersync_stack::Directory;
use usersync_targets::Delivery;

use crate::{
    deliveries::user,
    peer::{Can, Held, Peer},
};

const RIGHT: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";
const WRONG: &str = "whsec_d3JvbmcgMDEyMzQ1Njc4OWFiY2RlZjAx";

#[derive(Clone, Default)]
struct Row {
    held: Held,
    deleted: bool,
    version: u64,
}

/// Places and users, in memory.
#[derive(Clone)]
struct Rows {
    rows: Arc<Mutex<BTreeMap<(String, String), Row>>>,
    place: String,
    guard: bool,
}

impl UserStore for Rows {
    async fn apply(&self, delivery: usersync_receiver::Delivery) -> Result<Applied, StoreError> {
        let mut rows = self.rows.lock().expect("a lock");
        let key = (self.place.clone(), delivery.user_id.to_string());
        let row = rows.entry(key).or_default();
        if self.guard && delivery.version < row.version {
            return Ok(Applied::AlreadyNewer);
        }
        if delivery.disable && (row.version == 0 || row.deleted) {
            (row.deleted, row.version) = (true, delivery.version);
            return Ok(Applied::Stored);
        }
        change(&mut row.held.username, delivery.username);
        change(&mut row.held.email, delivery.email);
        match delivery.data {
            Change::Keep => {}
            Change::Clear => row.held.data = Value::Null,
            Change::Set(Value::Object(told))
                if (delivery.partial || delivery.disable) && row.held.data.is_object() =>
            {
                for (name, value) in told {
                    row.held.data[name] = value;
                }
            }
            Change::Set(data) => row.held.data = data,
        }
        row.held.status = row.held.data["status"].as_str().map(str::to_owned);
        (row.deleted, row.version) = (delivery.deleted, delivery.version);
        Ok(Applied::Stored)
    }

    async fn page(
        &self,
        after: Option<&UserId>,
        most: usize,
    ) -> Result<Option<Vec<HeldUser>>, StoreError> {
        let rows = self.rows.lock().expect("a lock");
        let after = after.map(UserId::to_string).unwrap_or_default();
        let from = (
            Bound::Excluded((self.place.clone(), after)),
            Bound::Unbounded,
        );
        let here = rows
            .range(from)
            .take_while(|((place, _), _)| *place == self.place);
        let held = here
            .filter(|(_, row)| !row.deleted)
            .map(|((_, id), row)| HeldUser {
                user_id: id.parse().expect("an id"),
                username: row.held.username.clone(),
                email: row.held.email.clone(),
                data: row.held.data.clone(),
            });
        Ok(Some(held.take(most).collect()))
    }
}

fn change(member: &mut Option<String>, change: Change<String>) {
    match change {
        Change::Keep => {}
        Change::Clear => *member = None,
        Change::Set(value) => *member = Some(value),
    }
}

pub(crate) struct Http {
    rows: Rows,
    places: Vec<String>,
    address: SocketAddr,
    paused: watch::Sender<bool>,
    serving: JoinHandle<()>,
    dir: Directory,
}

impl Http {
    pub(crate) async fn start(guard: bool) -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("right"), RIGHT)?;
        std::fs::write(dir.path().join("wrong"), WRONG)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self {
            address: listener.local_addr()?,
            rows: Rows {
                rows: Arc::default(),
                place: String::new(),
                guard,
            },
            places: Vec::new(),
            paused: watch::Sender::new(false),
            serving: tokio::spawn(async {}),
            dir,
        })
    }

    async fn serve(&mut self) -> Result<()> {
        self.serving.abort();
        let mut app = Router::new();
        for place in &self.places {
            let rows = Rows {
                place: place.clone(),
                ..self.rows.clone()
            };
            let options = Options::new(Senders::Signed(vec![RIGHT.into()]));
            app = app.nest(
                &format!("/{place}"),
                usersync_receiver::router(rows, options)?,
            );
        }
        let (paused, guard) = (self.paused.subscribe(), self.rows.guard);
        let app = app.layer(middleware::from_fn(
            move |request: Request, next: middleware::Next| {
                let mut paused = paused.clone();
                async move {
                    let _ = paused.wait_for(|paused| !paused).await;
                    let mut response: Response = next.run(request).await;
                    if !guard {
                        response.headers_mut().remove(GUARD_HEADER);
                    }
                    response
                }
            },
        ));
        let listener = usersync_stack::eventually(std::time::Duration::from_secs(10), async || {
            Ok(TcpListener::bind(self.address).await?)
        })
        .await?;
        self.serving = tokio::spawn(async {
            let _ = axum::serve(listener, app).await;
        });
        Ok(())
    }
}

#[async_trait(?Send)]
impl Peer for Http {
    fn can(&self) -> Can {
        Can {
            guard: self.rows.guard,
            keep: true,
            merge: true,
            disable: self.rows.guard,
            unique_email: false,
            verify: false,
        }
    }

    async fn prepare(&mut self, place: &str) -> Result<()> {
        self.places.push(place.to_owned());
        self.serve().await
    }

    fn entry(&self, place: &str, right: bool) -> Value {
        let secret: PathBuf = self.dir.path().join(if right { "right" } else { "wrong" });
        json!({
            "url": format!("http://{}/{place}", self.address),
            "secret": format!("file:{}", secret.display()),
        })
    }

    async fn held(&mut self, place: &str, id: &str) -> Result<Option<Held>> {
        let key = (place.to_owned(), id.to_owned());
        let row = self.rows.rows.lock().expect("a lock").get(&key).cloned();
        Ok(row.filter(|row| !row.deleted).map(|row| row.held))
    }

    async fn tamper(&mut self, place: &str, id: &str) -> Result<()> {
        let key = (place.to_owned(), id.to_owned());
        if let Some(row) = self.rows.rows.lock().expect("a lock").get_mut(&key) {
            row.held.username = Some("mallory".to_owned());
        }
        Ok(())
    }

    async fn remove(&mut self, place: &str, id: &str) -> Result<()> {
        let key = (place.to_owned(), id.to_owned());
        self.rows.rows.lock().expect("a lock").remove(&key);
        Ok(())
    }

    async fn refused(&mut self, _place: &str, id: &str) -> Result<Delivery> {
        // A version that the kit doesn't take.
        Ok(user(id, 1 << 53, "refused"))
    }

    async fn kill(&mut self) -> Result<()> {
        self.serving.abort();
        let _ = (&mut self.serving).await;
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.serve().await
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        self.paused.send_replace(paused);
        Ok(())
    }
}
