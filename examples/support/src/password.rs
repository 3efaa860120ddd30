//! Hashes and verifies passwords with Argon2id, off the async threads and a few at a time.

use std::sync::Arc;

use anyhow::Context as _;
use argon2::{
    Argon2, Params,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use axum::http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use usersync_receiver::Problem;

/// What OWASP's Password Storage Cheat Sheet asks for at least: 19 MiB, 2 passes, 1 lane.
pub const OWASP_MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// A hash that came from elsewhere may not cost more than this to verify.
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_PASSES: u32 = 16;

/// Hashes and verifies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Passwords {
    params: Params,
    /// Verified when there is no such user, so that the time taken doesn't tell.
    nobody: Arc<str>,
    /// Each hash takes its whole memory: no more at a time than there are cores.
    permits: Arc<Semaphore>,
}

impl Passwords {
    /// New hashes take `memory_kib` of memory.
    ///
    /// # Errors
    /// When Argon2 doesn't work with so little or so much.
    pub fn new(memory_kib: u32) -> anyhow::Result<Self> {
        let params = Params::new(memory_kib, PASSES, LANES, None);
        let params =
            params.with_context(|| format!("Argon2 can't use {memory_kib} KiB of memory"))?;
        let nobody = hash(&params, "nobody's password")?.into();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            params,
            nobody,
            permits: Arc::new(Semaphore::new(cores)),
        })
    }

    /// The hash of `password`, as a PHC string.
    ///
    /// # Errors
    /// 503 when hashing fails, for want of memory.
    pub async fn hash(&self, password: SecretString) -> Result<String, Problem> {
        let params = self.params.clone();
        self.off_thread(move || hash(&params, password.expose_secret()))
            .await?
            .inspect_err(|error| tracing::error!(%error, "hashing a password failed"))
            .map_err(|_| busy())
    }

    /// Whether `password` is the one `hash` was made from; takes its time also without a hash.
    ///
    /// # Errors
    /// 503 when verifying is not possible right now.
    pub async fn verify(
        &self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<bool, Problem> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let right = self
            .off_thread(move || verify(&hash, password.expose_secret()))
            .await?;
        Ok(known && right)
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let _permit = self.permits.acquire().await.map_err(|_| busy())?;
        tokio::task::spawn_blocking(work).await.map_err(|_| busy())
    }
}

fn busy() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "passwords can't be checked right now; try again",
    )
}

fn hash(params: &Params, password: &str) -> anyhow::Result<String> {
    let hash = Argon2::from(params.clone()).hash_password(password.as_bytes());
    Ok(hash.context("Argon2 failed")?.to_string())
}

fn verify(hash: &str, password: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        return false;
    };
    let affordable = Params::try_from(&hash)
        .is_ok_and(|params| params.m_cost() <= MOST_MEMORY_KIB && params.t_cost() <= MOST_PASSES);
    affordable
        && Argon2::default()
            .verify_password(password.as_bytes(), &hash)
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_is_right() {
        let passwords = Passwords::new(64).unwrap();
        let hash = passwords.hash("hunter22".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(
            passwords
                .verify("hunter22".into(), Some(hash.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("hunter23".into(), Some(hash))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("nobody's password".into(), None)
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("hunter22".into(), Some("no hash".into()))
                .await
                .unwrap()
        );
    }

    #[test]
    fn a_hash_that_asks_for_too_much_is_not_verified() {
        let cheap = hash(&Params::new(64, PASSES, LANES, None).unwrap(), "hunter22").unwrap();
        assert!(verify(&cheap, "hunter22"));
        assert!(!verify(&cheap.replace("m=64", "m=999999"), "hunter22"));
    }
}
