//! The events that a state has merged within the duplicate window, so that a repeated one is recognised.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};

use crate::event_key::{EventKey, Remembered};

/// The most events of one user that are remembered.
pub const MOST_SEEN: usize = 256;
/// Characters of one remembered key.
const KEY: usize = Remembered::LENGTH;
const MINUTE_US: u64 = 60_000_000;
/// For how long events are known that v0.1.0 merged.
const FORMER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Keys by the minute (since 1970) in which USER_EVENTS stored their events, oldest first.
///
/// In JSON: `{"29912345": "<key><key>…"}`, 16 characters each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(Vec<(u64, String)>);

impl Seen {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many events are remembered.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, keys)| keys.len() / KEY).sum()
    }

    /// Whether the event was merged, as far as is remembered.
    pub fn contains(&self, key: &EventKey) -> bool {
        if self.is_empty() {
            return false;
        }
        let key = key.remembered();
        let keys = self.0.iter().map(|(_, keys)| keys.as_bytes());
        keys.flat_map(|keys| keys.chunks(KEY))
            .any(|known| known == key.as_str().as_bytes())
    }

    /// Remembers an event that was stored at `stored_us` (unix µs), and forgets those that lie more than `window` before
    /// it. Answers how many within the window had to be forgotten, for there were too many.
    pub fn remember(&mut self, key: &EventKey, stored_us: u64, window: Duration) -> usize {
        let oldest = stored_us.saturating_sub(micros(window)) / MINUTE_US;
        self.0.retain(|(minute, _)| *minute >= oldest);
        self.insert(key, stored_us / MINUTE_US);
        let surplus = self.len().saturating_sub(MOST_SEEN);
        for _ in 0..surplus {
            self.forget_oldest();
        }
        surplus
    }

    /// Remembers an event that v0.1.0 merged at `stored_us` (unix µs) for as long as old forms are known, however short
    /// the window is.
    pub fn remember_former(&mut self, key: &EventKey, stored_us: u64, window: Duration) {
        let longer = micros(FORMER.saturating_sub(window));
        self.insert(key, stored_us.saturating_add(longer) / MINUTE_US);
    }

    fn insert(&mut self, key: &EventKey, minute: u64) {
        let key = key.remembered();
        let place = self.0.partition_point(|(known, _)| *known < minute);
        match self.0.get_mut(place) {
            Some((known, keys)) if *known == minute => keys.push_str(key.as_str()),
            _ => self.0.insert(place, (minute, key.as_str().to_owned())),
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, keys)) = self.0.first_mut() {
            keys.drain(..KEY);
            if keys.is_empty() {
                self.0.remove(0);
            }
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Serialize for Seen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (minute, keys) in &self.0 {
            map.serialize_entry(minute, keys)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Seen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("minutes with keys of 16 characters each")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
                let mut seen = Vec::new();
                while let Some((minute, keys)) = map.next_entry::<u64, String>()? {
                    if keys.is_empty() || !keys.is_ascii() || keys.len() % KEY != 0 {
                        return Err(de::Error::custom("expected keys of 16 characters each"));
                    }
                    seen.push((minute, keys));
                }
                seen.sort_by_key(|(minute, _)| *minute);
                Ok(Seen(seen))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn key(number: usize) -> EventKey {
        EventKey::new(Some("s"), &number.to_string())
    }

    #[test]
    fn an_event_is_known_for_as_long_as_the_window() {
        let mut seen = Seen::default();
        seen.remember(&key(1), 0, WINDOW);
        seen.remember(&key(2), 9 * MINUTE_US, WINDOW);
        assert!(seen.contains(&key(1)) && seen.contains(&key(2)) && !seen.contains(&key(3)));
        seen.remember(&key(3), 11 * MINUTE_US, WINDOW);
        assert!(!seen.contains(&key(1)) && seen.contains(&key(2)) && seen.contains(&key(3)));
    }

    #[test]
    fn an_event_of_the_former_version_is_known_for_a_week() {
        const DAY: u64 = 24 * 60 * MINUTE_US;
        let mut seen = Seen::default();
        seen.remember_former(&key(1), 0, WINDOW);
        seen.remember(&key(2), 7 * DAY - 11 * MINUTE_US, WINDOW);
        assert!(seen.contains(&key(1)) && seen.contains(&key(2)));
        seen.remember(&key(3), 7 * DAY + MINUTE_US, WINDOW);
        assert!(!seen.contains(&key(1)) && !seen.contains(&key(2)) && seen.contains(&key(3)));
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_the_most_and_that_is_said() {
        let mut seen = Seen::default();
        let forgotten: usize = (0..MOST_SEEN + 10)
            .map(|number| seen.remember(&key(number), number as u64 * 1_000_000, WINDOW))
            .sum();
        assert_eq!((forgotten, seen.len()), (10, MOST_SEEN));
        assert!(!seen.contains(&key(9)) && seen.contains(&key(10)));
    }

    #[test]
    fn it_survives_its_own_json_and_nothing_else_is_taken() {
        let mut seen = Seen::default();
        seen.remember(&key(1), MINUTE_US, WINDOW);
        seen.remember(&key(2), MINUTE_US, WINDOW);
        seen.remember(&key(3), 3 * MINUTE_US, WINDOW);
        let json = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&json).unwrap(), seen);
        for json in [
            r#"{"a": ""}"#,
            r#"{"1": "short"}"#,
            r#"{"1": "ääääääää"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Seen>(json).is_err(), "{json}");
        }
    }
}
