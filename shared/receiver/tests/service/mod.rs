//! A service that mounted the kit, on a free port of this machine, with its users in memory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, http::StatusCode};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use usersync_receiver::{
    Applied, Change, Delivery, HeldUser, Options, Senders, StoreError, UserId, UserStore,
};

const PATH: &str = "/api/v1/users/sync";
pub(crate) const MAX_BODY: usize = 2_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) username: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) data: Value,
    pub(crate) deleted: bool,
    pub(crate) version: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Rows {
    rows: Arc<Mutex<BTreeMap<String, Row>>>,
    /// Whether the store tells of all its users.
    pages: bool,
}

impl UserStore for Rows {
    async fn apply(&self, delivery: Delivery) -> Result<Applied, StoreError> {
        match &delivery.username {
            Change::Set(name) if name == "unavailable" => {
                return Err(StoreError::Unavailable("no disk".into()));
            }
            Change::Set(name) if name == "conflict" => {
                return Err(StoreError::Conflict("username".into()));
            }
            _ => {}
        }
        let mut rows = self.rows.lock().unwrap();
        let row = rows.entry(delivery.user_id.to_string()).or_default();
        if delivery.version < row.version {
            return Ok(Applied::AlreadyNewer);
        }
        if delivery.disable && (row.version == 0 || row.deleted) {
            (row.deleted, row.version) = (true, delivery.version);
            return Ok(Applied::Stored);
        }
        change(&mut row.username, delivery.username);
        change(&mut row.email, delivery.email);
        match delivery.data {
            Change::Keep => {}
            Change::Clear => row.data = Value::Null,
            Change::Set(data) => row.data = data,
        }
        (row.deleted, row.version) = (delivery.deleted, delivery.version);
        Ok(Applied::Stored)
    }

    async fn page(
        &self,
        after: Option<&UserId>,
        most: usize,
    ) -> Result<Option<Vec<HeldUser>>, StoreError> {
        if !self.pages {
            return Ok(None);
        }
        let rows = self.rows.lock().unwrap();
        if rows.contains_key("unreadable") {
            return Err(StoreError::Unavailable("no disk".into()));
        }
        let after = after.map(UserId::to_string).unwrap_or_default();
        let there = rows.iter().filter(|(id, row)| **id > after && !row.deleted);
        let held = there.map(|(id, row)| HeldUser {
            user_id: id.parse().unwrap(),
            username: row.username.clone(),
            email: row.email.clone(),
            data: row.data.clone(),
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

pub(crate) struct Service {
    address: SocketAddr,
    rows: Rows,
}

impl Service {
    pub(crate) async fn start(secrets: &[&str]) -> Self {
        Self::with(secrets, Rows::default()).await
    }

    /// One whose store tells of all its users.
    #[allow(dead_code, reason = "only checks need it")]
    pub(crate) async fn checked(secrets: &[&str]) -> Self {
        let rows = Rows {
            pages: true,
            ..Rows::default()
        };
        Self::with(secrets, rows).await
    }

    async fn with(secrets: &[&str], rows: Rows) -> Self {
        let senders = match secrets {
            [] => Senders::Unsigned,
            secrets => Senders::Signed(secrets.iter().map(|&secret| secret.into()).collect()),
        };
        let options = Options {
            senders,
            max_body: MAX_BODY,
        };
        let app = Router::new().nest(
            PATH,
            usersync_receiver::router(rows.clone(), options).unwrap(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, rows }
    }

    pub(crate) fn row(&self, user_id: &str) -> Option<Row> {
        self.rows.rows.lock().unwrap().get(user_id).cloned()
    }

    pub(crate) fn tamper(&self, user_id: &str, how: impl FnOnce(&mut Row)) {
        how(self.rows.rows.lock().unwrap().get_mut(user_id).unwrap());
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        self.send(&body.to_string(), &[]).await
    }

    /// One delivery.
    pub(crate) async fn send(&self, body: &str, headers: &[(&str, String)]) -> Answer {
        self.call("", body, headers).await
    }

    /// One call below the path of deliveries, on a connection of its own.
    pub(crate) async fn call(&self, below: &str, body: &str, headers: &[(&str, String)]) -> Answer {
        let mut request = format!(
            "POST {PATH}{below} HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        Answer::parse(&answer)
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            headers: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self
            .headers
            .lines()
            .filter_map(|line| line.split_once(": "));
        headers
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn result(&self) -> String {
        self.json()["result"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

/// The headers of a call signed at `at`, in unix seconds.
pub(crate) fn sign(secret: &str, at: i64, body: &str) -> Vec<(&'static str, String)> {
    let signature = Webhook::new(secret)
        .unwrap()
        .sign("task", at, body.as_bytes())
        .unwrap();
    vec![
        ("webhook-id", "task".to_owned()),
        ("webhook-timestamp", at.to_string()),
        ("webhook-signature", signature),
    ]
}
