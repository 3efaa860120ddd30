//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{Instant, sleep, timeout};

/// The pause between two looks: short at first, because most conditions hold at once.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Asks `condition` again and again until it answers `Ok`, which is returned.
///
/// Its error describes what it saw instead: `anyhow::ensure!(n == 3, "{n} users")` says it all.
///
/// # Errors
/// When the condition does not hold within `deadline`, with what was seen last.
pub async fn eventually<T>(
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    let mut last: Option<anyhow::Error> = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = Some(seen),
            // Cut off: what was seen before says more.
            Err(_) => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seen = last.unwrap_or_else(|| anyhow!("the first look never answered"));
            return Err(seen).with_context(|| format!("still not so after {deadline:?}"));
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    #[tokio::test]
    async fn the_value_is_returned_once_the_condition_holds() {
        let mut looks = 0;
        let seen = eventually(Duration::from_secs(5), async || {
            looks += 1;
            ensure!(looks == 3, "look {looks}");
            Ok(looks)
        })
        .await
        .unwrap();
        assert_eq!(seen, 3);
    }

    #[tokio::test]
    async fn the_last_thing_seen_is_in_the_error() {
        let result: Result<()> =
            eventually(Duration::from_millis(30), async || bail!("2 of 3 users")).await;
        let message = format!("{:#}", result.unwrap_err());
        assert_eq!(message, "still not so after 30ms: 2 of 3 users");
    }

    #[tokio::test]
    async fn a_look_that_never_answers_is_cut_off() {
        let result: Result<()> = eventually(Duration::from_millis(30), std::future::pending).await;
        let message = format!("{:#}", result.unwrap_err());
        assert!(message.contains("never answered"), "{message}");
    }
}
