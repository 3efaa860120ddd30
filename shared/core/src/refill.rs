//! Whether a cache still holds what it was told: a mark in it, which is lost with the rest (ADR 43).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A mark as it was read. A later one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// When it was made, in unix microseconds; 0 = there never was one.
    pub made: u64,
    /// How often it was looked at since.
    pub count: u64,
}

impl FromStr for Mark {
    type Err = ();

    /// Reads `<made> <count>`, as the cache holds it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (made, count) = text.split_once(' ').ok_or(())?;
        let number = |text: &str| text.parse().map_err(|_| ());
        Ok(Self {
            made: number(made)?,
            count: number(count)?,
        })
    }
}
