//! Access tokens by OAuth 2.0 client credentials (RFC 6749 section 4.4): fetched once for all calls, again before they
//! expire, and once more when the target doesn't take them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Client, Method, Request, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::form_urlencoded;
use usersync_core::{auth::OAuth2, json};

use super::{
    answer::{self, Body},
    client::basic,
};
use crate::{ConfigError, Failure, way::Way};

/// The longest answer read.
const ANSWER_BYTES: usize = 64 * 1024;
/// How long a token is good for when the server doesn't say.
const LIFETIME: Duration = Duration::from_secs(300);
/// A token isn't trusted for longer, whatever the server says.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// A token is fetched again this long before it expires, or when a tenth of its life is left.
const EARLY: Duration = Duration::from_secs(60);
/// A server that gave no token is left alone for as long.
const AGAIN: Duration = Duration::from_secs(1);

/// The tokens of one target.
pub(super) struct Tokens {
    client: Client,
    way: Way,
    url: Url,
    form: String,
    credentials: HeaderValue,
    held: Mutex<Held>,
}

/// What came last.
enum Held {
    Nothing,
    Token(Arc<Token>),
    Failed(Failure, Instant),
}

/// One token.
pub(super) struct Token {
    header: HeaderValue,
    good_until: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    token_type: String,
    expires_in: Option<u64>,
}

/// RFC 6749 section 5.2.
#[derive(Deserialize)]
struct Denied {
    error: String,
}

impl Token {
    /// The value of `Authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

impl Tokens {
    /// `client` sends none of the target's own headers.
    pub(super) fn new(config: &OAuth2, client: Client, way: Way) -> Result<Self, ConfigError> {
        let secret = config.client_secret.resolve();
        let secret = secret.map_err(|error| ConfigError::Secret {
            key: "auth.oauth2.client_secret".to_owned(),
            error,
        })?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        let more = [("scope", &config.scope), ("audience", &config.audience)];
        for (key, value) in more {
            if let Some(value) = value {
                form.append_pair(key, value);
            }
        }
        // Section 2.3.1: both are encoded as in a form first.
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let (id, secret): (String, String) =
            (encoded(&config.client_id), encoded(secret.expose_secret()));
        Ok(Self {
            client,
            way,
            url: config.token_url.clone(),
            form: form.finish(),
            credentials: basic(&id, &secret),
            held: Mutex::new(Held::Nothing),
        })
    }

    /// A token that is good, and another than `refused`.
    ///
    /// # Errors
    /// When the server gives none.
    pub(super) async fn get(&self, refused: Option<&Arc<Token>>) -> Result<Arc<Token>, Failure> {
        // Held while fetching: who comes meanwhile waits for the token instead of asking too.
        let mut held = self.held.lock().await;
        match &*held {
            Held::Token(token)
                if token.good_until > Instant::now()
                    && refused.is_none_or(|refused| !Arc::ptr_eq(refused, token)) =>
            {
                return Ok(token.clone());
            }
            Held::Failed(failure, since) if since.elapsed() < AGAIN => return Err(failure.clone()),
            Held::Token(_) | Held::Failed(..) | Held::Nothing => {}
        }
        match self.fetch().await {
            Ok(token) => {
                let token = Arc::new(token);
                *held = Held::Token(token.clone());
                Ok(token)
            }
            Err(reason) => {
                let failure =
                    Failure::new(format!("no token from auth.oauth2.token_url: {reason}"));
                *held = Held::Failed(failure.clone(), Instant::now());
                Err(failure)
            }
        }
    }

    async fn fetch(&self) -> Result<Token, String> {
        let checked = self.way.check_literal(&self.url);
        checked.map_err(|refused| refused.to_string())?;
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(AUTHORIZATION, self.credentials.clone());
        *request.body_mut() = Some(self.form.clone().into());
        let asked = Instant::now();
        let response = self.client.execute(request).await;
        let granted = granted(response.map_err(|error| answer::describe(&error))?).await?;
        let told = granted.expires_in.map(Duration::from_secs);
        let lifetime = told.unwrap_or(LIFETIME).min(LONGEST);
        let text = format!("Bearer {}", granted.access_token.expose_secret());
        let mut header = HeaderValue::try_from(text)
            .map_err(|_| "the token has characters HTTP can't carry".to_owned())?;
        header.set_sensitive(true);
        Ok(Token {
            header,
            good_until: asked + lifetime.saturating_sub(EARLY.min(lifetime / 10)),
        })
    }
}

/// Reads what the server gave. What it says beside the codes of the RFC isn't repeated: it may hold what was sent.
async fn granted(response: Response) -> Result<Granted, String> {
    let status = response.status();
    let body = match answer::read(response, ANSWER_BYTES).await {
        Ok(Body::Whole(body)) => body,
        Ok(Body::TooLong) => return Err("its answer is too long".to_owned()),
        Err(error) => return Err(answer::describe(&error)),
    };
    if !status.is_success() {
        let denied: Option<Denied> = json::read(&body).ok();
        let code = denied.and_then(|denied| known(&denied.error));
        return Err(format!("it answered {status} {}", code.unwrap_or_default()));
    }
    let granted: Granted =
        json::read(&body).map_err(|_| "its answer is none of RFC 6749 section 5.1".to_owned())?;
    match granted.token_type.eq_ignore_ascii_case("bearer") {
        true => Ok(granted),
        false => Err("its token is no bearer token".to_owned()),
    }
}

fn known(code: &str) -> Option<&'static str> {
    let codes = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    codes.into_iter().find(|known| *known == code)
}
