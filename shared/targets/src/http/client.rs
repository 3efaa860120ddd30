//! The one client that makes an HTTP target's calls: no redirects, no proxies, nowhere the target may not be.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Request, Response, header::HeaderMap, redirect};
use usersync_core::{egress::Refused, target::TargetConfig};

use super::answer;
use crate::{ConfigError, way::Way};

/// How long connecting may take, where calls may take longer.
const CONNECT: Duration = Duration::from_secs(5);

/// Makes the calls of one target.
pub(super) struct HttpClient {
    client: Client,
    way: Way,
}

/// Why a call has no answer.
pub(super) enum Unanswered {
    /// It was not made.
    Refused(Refused),
    /// It failed, or took too long.
    Failed(reqwest::Error),
}

impl From<reqwest::Error> for Unanswered {
    fn from(error: reqwest::Error) -> Self {
        Self::Failed(error)
    }
}

impl HttpClient {
    /// At most `idle` connections are kept open; `headers` go with every call.
    pub(super) fn new(
        config: &TargetConfig,
        headers: HeaderMap,
        idle: usize,
        way: Way,
    ) -> Result<Self, ConfigError> {
        // Only the first call in a process installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("usersync/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names by itself.
            .no_proxy()
            .dns_resolver(Arc::new(way.clone()))
            .timeout(config.timeout)
            .connect_timeout(config.timeout.min(CONNECT))
            .pool_max_idle_per_host(idle)
            .build()
            .map_err(|error| ConfigError::Url(answer::describe(&error)))?;
        Ok(Self { client, way })
    }

    /// Makes a call.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn send(&self, request: Request) -> Result<Response, Unanswered> {
        let checked = self.way.check_literal(request.url());
        checked.map_err(Unanswered::Refused)?;
        Ok(self.client.execute(request).await?)
    }
}
