//! A gateway's HTTP API and NATS service, as a client sees them.

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use usersync_stack::{Service, Stack, http};

/// The control plane of one gateway.
pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
    nats: async_nats::Client,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The ETag, empty without one.
    pub(crate) etag: String,
    pub(crate) body: Value,
}

impl Answer {
    /// What is wrong, for an error.
    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

impl Api {
    pub(crate) async fn of(stack: &Stack) -> Result<Self> {
        Self::at(stack, stack.gateway()).await
    }

    pub(crate) async fn at(stack: &Stack, gateway: &Service) -> Result<Self> {
        Ok(Self {
            client: http::client(),
            base: gateway.url().to_owned(),
            nats: usersync_stack::connect(&stack.nats.test_url()).await?,
        })
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let etag = response.headers().get("etag");
        let etag = etag.map_or("", |etag| etag.to_str().unwrap_or_default());
        Ok(Answer {
            status,
            etag: etag.to_owned(),
            body: response.json().await.unwrap_or_default(),
        })
    }

    /// The body of a GET that succeeds.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.call(Method::GET, path, &[], None).await?;
        ensure!(answer.status == StatusCode::OK, "GET {path}: {answer:?}");
        Ok(answer.body)
    }

    /// The body of a POST that succeeds.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let answer = self.call(Method::POST, path, &[], Some(body)).await?;
        ensure!(answer.status == StatusCode::OK, "POST {path}: {answer:?}");
        Ok(answer.body)
    }

    /// PUT, whatever comes of it.
    pub(crate) async fn put(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Result<Answer> {
        self.call(Method::PUT, path, headers, Some(body)).await
    }

    /// DELETE, whatever comes of it.
    pub(crate) async fn delete(&self, path: &str) -> Result<Answer> {
        self.call(Method::DELETE, path, &[], None).await
    }

    /// The same by NATS: what the service answers, or code and text of its error.
    pub(crate) async fn request(&self, subject: &str, body: Value) -> Result<Value, (u16, String)> {
        let sent = self
            .nats
            .request(subject.to_owned(), body.to_string().into());
        let answer = sent.await.map_err(|error| (0, error.to_string()))?;
        let header = |name| {
            let headers = answer.headers.as_ref()?;
            headers.get(name).map(|value| value.as_str().to_owned())
        };
        match header("Nats-Service-Error-Code") {
            Some(code) => Err((
                code.parse().unwrap_or_default(),
                header("Nats-Service-Error").unwrap_or_default(),
            )),
            None => serde_json::from_slice(&answer.payload)
                .context("no JSON")
                .map_err(|error| (0, error.to_string())),
        }
    }

    /// The connection that requests go through.
    pub(crate) fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    /// How a target stands.
    pub(crate) async fn target(&self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/targets/{name}")).await
    }

    /// How a target stands with a user.
    pub(crate) async fn task(&self, user: u64, target: &str) -> Result<Value> {
        let tasks = self.get(&format!("/v1/users/{user}/targets")).await?;
        let tasks = tasks["targets"].as_array().cloned().unwrap_or_default();
        let task = tasks.into_iter().find(|task| task["target"] == target);
        task.with_context(|| format!("no task of {target}"))
    }
}
