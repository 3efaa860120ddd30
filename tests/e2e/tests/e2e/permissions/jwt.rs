//! Accounts as JWTs: what docs/SECURITY.md has `nsc` make, made here and given to a server in operator mode.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::{Client, ConnectOptions, jetstream};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt as _;
use nkeys::KeyPair;
use serde_json::{Value, json};
use usersync_core::subjects::USER_EVENTS;
use usersync_stack::{Directory, Launch, NatsServer, Profile, eventually, free_port, tools};

use super::apart::{HOSTILE, QUESTIONS, standing};
use crate::support::{LATER, SOON};

const PAGE: &str = include_str!("../../../../../docs/SECURITY.md");
/// Takes the place of `nsc`: one line for each call, one tab after each argument.
const RECORDER: &str = r#"nsc() { printf '%s\t' "$@"; echo; }
"#;
const A_MOMENT: Duration = Duration::from_millis(500);

/// One account, and what its JWT says.
struct Account {
    key: KeyPair,
    exports: Vec<Value>,
    imports: Vec<Value>,
    users: BTreeMap<String, Value>,
}

/// What `nsc` keeps.
struct Store {
    operator: KeyPair,
    accounts: BTreeMap<String, Account>,
}

/// The JWT of `claims` about `subject` (NATS ADR-14).
fn sign(issuer: &KeyPair, subject: &str, claims: &Value) -> Result<String> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({"jti": subject, "iat": 1, "iss": issuer.public_key(), "sub": subject, "name": subject, "nats": claims});
    let text = format!("{}.{}", part(&head), part(&body));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes())?);
    Ok(format!("{text}.{signature}"))
}

/// The value of the option `name` among the arguments of one command.
fn option<'a>(arguments: &[&'a str], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| *argument == name)?;
    arguments.get(at + 1).copied()
}

impl Store {
    fn new() -> Self {
        let (operator, accounts) = (KeyPair::new_operator(), BTreeMap::new());
        let mut store = Self { operator, accounts };
        store.add("SYS");
        store
    }

    fn add(&mut self, name: &str) {
        let account = Account {
            key: KeyPair::new_account(),
            exports: Vec::new(),
            imports: Vec::new(),
            users: BTreeMap::new(),
        };
        self.accounts.insert(name.to_owned(), account);
    }

    fn account(&mut self, name: &str) -> Result<&mut Account> {
        self.accounts
            .get_mut(name)
            .with_context(|| format!("no account {name}"))
    }

    /// Does what one call of `nsc` does.
    fn call(&mut self, arguments: &[&str], token: &mut String) -> Result<()> {
        let needs = |name: &str| {
            option(arguments, name).with_context(|| format!("{name} in {arguments:?}"))
        };
        match arguments {
            ["add", "account", name] => self.add(name),
            ["edit", "account", name, ..] => ensure!(self.account(name)?.exports.is_empty()),
            ["add", "export", ..] => {
                let service = arguments.contains(&"--service");
                self.account(needs("--account")?)?.exports.push(json!({
                    "subject": needs("--subject")?,
                    "type": if service { "service" } else { "stream" },
                    "token_req": arguments.contains(&"--private"),
                    "response_type": option(arguments, "--response-type").unwrap_or_default(),
                }));
            }
            ["generate", "activation", ..] => {
                let subject = needs("--subject")?;
                let target = self.account(needs("--target-account")?)?.key.public_key();
                let from = self.account(needs("--account")?)?;
                let export = from
                    .exports
                    .iter()
                    .find(|export| export["subject"] == subject);
                let kind = &export.with_context(|| format!("{subject} isn't exported"))?["type"];
                let claims =
                    json!({"subject": subject, "kind": kind, "type": "activation", "version": 2});
                *token = sign(&from.key, &target, &claims)?;
            }
            ["add", "import", ..] => {
                let claims = token.split('.').nth(1).context("no token")?;
                let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
                self.account(needs("--account")?)?.imports.push(json!({
                    "subject": claims["nats"]["subject"], "type": claims["nats"]["kind"], "account": claims["iss"],
                    "local_subject": needs("--local-subject")?, "token": token,
                }));
            }
            ["add", "user", "--account", account, name, ..] => {
                let listed = |allow: &str, deny: &str| {
                    let lists = [("allow", allow), ("deny", deny)].into_iter();
                    let list = |(key, name): (&str, &str)| {
                        let list = option(arguments, name)?.split(',').collect::<Vec<_>>();
                        Some((key.to_owned(), json!(list)))
                    };
                    Value::Object(lists.filter_map(list).collect())
                };
                let claims = json!({
                    "pub": listed("--allow-pub", "--deny-pub"),
                    "sub": listed("--allow-sub", "--deny-sub"),
                    "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
                });
                self.account(account)?
                    .users
                    .insert((*name).to_owned(), claims);
            }
            ["push", ..] => {}
            other => bail!("docs/SECURITY.md calls nsc {other:?}, which this test doesn't know"),
        }
        Ok(())
    }

    /// Everything that the page has `nsc` do.
    fn of_page() -> Result<Self> {
        let (_, block) = PAGE
            .split_once("    nsc add account USERSYNC\n")
            .context("no nsc in the page")?;
        let (block, _) = block
            .split_once("nsc push --all\n")
            .context("no push in the page")?;
        let script = format!("{RECORDER}nsc add account USERSYNC\n{block}");
        let output = Command::new("sh").args(["-euc", &script]).output()?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && problem.is_empty(), "{problem}");
        let (mut store, mut token) = (Self::new(), String::new());
        for line in String::from_utf8(output.stdout)?.lines() {
            let arguments: Vec<&str> = line.trim_end_matches('\t').split('\t').collect();
            store.call(&arguments, &mut token)?;
        }
        Ok(store)
    }

    /// The configuration of a server that knows all accounts.
    fn conf(&self) -> Result<String> {
        let system = self.accounts["SYS"].key.public_key();
        let claims = json!({"type": "operator", "version": 2, "system_account": system});
        let operator = sign(&self.operator, &self.operator.public_key(), &claims)?;
        let mut conf = format!(
            "jetstream {{ max_file_store: 1GB }}\noperator: {operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n"
        );
        for (name, account) in &self.accounts {
            let storage = if name == "USERSYNC" { 1 << 30 } else { 0 };
            let claims = json!({
                "exports": account.exports, "imports": account.imports, "type": "account", "version": 2,
                "limits": {
                    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                    "disk_storage": storage, "mem_storage": storage, "streams": -1, "consumer": -1,
                },
            });
            let key = account.key.public_key();
            conf.push_str(&format!(
                "  {key}: {}\n",
                sign(&self.operator, &key, &claims)?
            ));
        }
        conf.push_str("}\n");
        Ok(conf)
    }

    /// A file of credentials for a user, as `nsc generate creds` prints it.
    fn credentials(&mut self, account: &str, user: &str) -> Result<String> {
        let account = self.account(account)?;
        let key = KeyPair::new_user();
        let jwt = sign(&account.key, &key.public_key(), &account.users[user])?;
        let seed = key.seed()?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ))
    }

    async fn connect(&mut self, nats: &NatsServer, account: &str, user: &str) -> Result<Client> {
        let credentials = self.credentials(account, user)?;
        let options = ConnectOptions::with_credentials(&credentials)?;
        Ok(options.connect(nats.url()).await?)
    }
}

#[tokio::test]
async fn accounts_as_jwts_keep_publishers_and_viewers_apart() -> Result<()> {
    let mut store = Store::of_page()?;
    // Those of USERSYNC have the lists of nats.conf, which other tests try; and a stranger takes what nobody gave it.
    let all = json!({"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2});
    for user in ["gateway", "test"] {
        store
            .account("USERSYNC")?
            .users
            .insert(user.to_owned(), all.clone());
    }
    store.add("STRANGER");
    let from = store.account("USERSYNC")?.key.public_key();
    let stranger = store.account("STRANGER")?;
    stranger.users.insert("stranger".to_owned(), all);
    stranger.imports = vec![json!({"subject": "user.created", "type": "service", "account": from})];
    let dir = Directory::temporary()?;
    let conf = dir.path().join("jwt.conf");
    fs::write(&conf, store.conf()?)?;
    let nats = NatsServer::start_with_conf(dir.path(), &conf).await?;
    let credentials = dir.path().join("gateway.creds");
    fs::write(&credentials, store.credentials("USERSYNC", "gateway")?)?;
    let program = tools::binary("usersync-gateway", Profile::own())?;
    let gateway = Launch::new("gateway", program, dir.path().join("gateway.log"))
        .args(["--listen", &format!("127.0.0.1:{}", free_port()?)])
        .env("USERSYNC_NATS__URL", nats.url())
        .env("USERSYNC_NATS__CREDENTIALS", &credentials);
    let gateway = gateway.spawn()?;

    let client = store.connect(&nats, "USERSYNC", "test").await?;
    let context = jetstream::new(client.clone());
    let publisher = store.connect(&nats, "PUBLISHER", "publisher").await?;
    let published = jetstream::new(publisher.clone());
    let event = || json!({"user_id": 1, "username": "ann"}).to_string();
    eventually(LATER, async || {
        let stored = published
            .publish("user.created", event().into())
            .await?
            .await;
        stored.with_context(|| gateway.log_tail()).map(drop)
    })
    .await?;
    let viewer = store.connect(&nats, "VIEWER", "viewer").await?;
    let ask = async |subject: &str, body: &str| {
        viewer
            .request(subject.to_owned(), body.to_owned().into())
            .await
    };
    eventually(LATER, async || {
        ensure!(
            !ask("$JS.API.DIRECT.GET.USER_STATE.user.state.1", "")
                .await?
                .payload
                .is_empty()
        );
        Ok(())
    })
    .await?;
    for (subject, body) in QUESTIONS {
        // There is no worker.
        if !subject.starts_with("usersync.worker") {
            ask(subject, body)
                .await
                .with_context(|| (*subject).to_owned())?;
        }
    }
    let refused = tokio::time::timeout(
        A_MOMENT,
        ask("$JS.API.STREAM.MSG.GET.KV_user_sources", r#"{"seq":1}"#),
    )
    .await;
    ensure!(!matches!(refused, Ok(Ok(_))), "{refused:?}");

    // Each answer of a batch comes, and what is watched.
    let mut states = viewer.subscribe("user.state.*").await?;
    let inbox = viewer.new_inbox();
    let mut answers = viewer.subscribe(inbox.clone()).await?;
    let batch = r#"{"multi_last":["user.state.*"]}"#;
    viewer
        .publish_with_reply("$JS.API.DIRECT.GET.USER_STATE", inbox, batch.into())
        .await?;
    for expected in [false, true] {
        let answer = tokio::time::timeout(SOON, answers.next()).await?;
        assert_eq!(answer.context("no answer")?.payload.is_empty(), expected);
    }
    published
        .publish(
            "user.updated",
            json!({"user_id": 1, "email": "a@x"}).to_string().into(),
        )
        .await?
        .await?;
    tokio::time::timeout(SOON, states.next())
        .await?
        .context("the watch ended")?;

    // Nobody changes anything by naming a reply, and the stranger reaches nothing.
    gateway.stop(SOON).await?;
    let before = standing(&context).await?;
    for reply in HOSTILE {
        for subject in ["user.created", "user.bogus"] {
            publisher
                .publish_with_reply(subject, *reply, event().into())
                .await?;
        }
        for (subject, body) in QUESTIONS {
            viewer
                .publish_with_reply(*subject, *reply, (*body).into())
                .await?;
        }
    }
    ask("$JS.API.INFO", "").await?;
    published
        .publish("user.created", event().into())
        .await?
        .await?;
    let stranger = store.connect(&nats, "STRANGER", "stranger").await?;
    let reached =
        tokio::time::timeout(A_MOMENT, stranger.request("user.created", event().into())).await;
    ensure!(
        !matches!(reached, Ok(Ok(_))),
        "the stranger publishes: {reached:?}"
    );
    let mut after = standing(&context).await?;
    let events = after.get_mut(USER_EVENTS).context("no events")?;
    let were = &before[USER_EVENTS];
    ensure!(events.1 > were.1 + 1, "the publisher was never heard");
    (events.1, events.2) = (were.1, were.2);
    assert_eq!(after, before);
    Ok(())
}
