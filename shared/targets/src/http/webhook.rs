//! A webhook that is no target: a signed call with anything in it, made as the calls of HTTP targets are.

use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;
use usersync_core::{egress::Egress, target::TargetConfig};

use super::{
    answer,
    call::{self, Caller},
    client::HttpClient,
    no_user,
    signer::Signer,
};
use crate::{
    ConfigError, Outcome,
    way::{System, Way},
};

/// Makes signed calls to one URL.
pub struct Webhook {
    client: HttpClient,
    caller: Caller,
}

impl Webhook {
    /// Of `config` it takes where to call, how long that may take, and what lets it in and signs; its secrets are
    /// read now. No connection is made to where it may not be by `config` and `egress`.
    ///
    /// # Errors
    /// What doesn't fit, beginning with the key.
    pub fn new(config: &TargetConfig, egress: &Egress) -> Result<Self, ConfigError> {
        no_user(&config.url)?;
        let way = Way::new(egress.of(config), Arc::new(System));
        let caller = Caller {
            method: Method::POST,
            url: config.url.clone(),
            signer: Signer::new(config)?,
            ids: config.ids,
        };
        let client = HttpClient::new(config, call::headers(config)?, 1, way)?;
        Ok(Self { client, caller })
    }

    /// Posts `body` under the id that tells a repeat.
    pub async fn call(&self, id: &str, body: &impl Serialize) -> Outcome {
        let request = match self.caller.request(id, body, Signer::sign) {
            Ok(request) => request,
            Err(failure) => return Outcome::Permanent(failure),
        };
        answer::of(self.client.send(request).await).await
    }
}
