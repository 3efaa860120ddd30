//! Where in a trace something happens (W3C Trace Context): read from headers, handed on with what follows.

/// The header that names the trace and the span it comes from.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what tracing systems add for themselves.
pub const TRACESTATE: &str = "tracestate";

/// The length of version 00: `00-TRACE ID-SPAN ID-FLAGS`.
const PARENT_LEN: usize = 55;
/// The most of a traceparent of a later version, which may say more, that is handed on.
const MOST_PARENT_LEN: usize = 128;
/// The most of a tracestate that is handed on, as the specification asks for.
const MOST_STATE_LEN: usize = 512;

/// A place in a trace: a `traceparent` that is well-formed, and the `tracestate` beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// Reads it with `header`, which gives what a header holds. `None` without a `traceparent` that is one:
    /// a broken one is a broken hint, and no reason to refuse anything.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let parent = header(TRACEPARENT).filter(|parent| is_traceparent(parent))?;
        let state = header(TRACESTATE).filter(|state| is_tracestate(state));
        Some(Self {
            parent: parent.to_owned(),
            state: state.map(str::to_owned),
        })
    }

    /// The `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The headers that hand it on.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let state = self.state().map(|state| (TRACESTATE, state));
        std::iter::once((TRACEPARENT, self.parent())).chain(state)
    }
}

fn is_traceparent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |range: std::ops::Range<usize>| {
        let digits = &bytes[range];
        digits
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == b'0');
    (PARENT_LEN..=MOST_PARENT_LEN).contains(&bytes.len())
        && [2, 35, 52].iter().all(|dash| bytes[*dash] == b'-')
        && hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && !zero(3..35)
        && !zero(36..52)
        && match &bytes[..2] {
            b"ff" => false,
            b"00" => bytes.len() == PARENT_LEN,
            _ => {
                bytes[PARENT_LEN..].iter().all(u8::is_ascii_graphic)
                    && bytes.get(PARENT_LEN).is_none_or(|byte| *byte == b'-')
            }
        }
}

fn is_tracestate(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MOST_STATE_LEN
        && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(parent: &str, state: &str) -> Option<TraceContext> {
        TraceContext::read(|name| match name {
            TRACEPARENT => Some(parent),
            TRACESTATE => Some(state),
            _ => None,
        })
    }

    #[test]
    fn a_context_is_handed_on_as_it_came() {
        let context = read(PARENT, "vendor=1").unwrap();
        let headers: Vec<_> = context.headers().collect();
        assert_eq!(
            headers,
            [("traceparent", PARENT), ("tracestate", "vendor=1")]
        );
    }

    #[test]
    fn a_later_version_may_say_more() {
        let later = PARENT.replacen("00-", "cc-", 1);
        assert!(read(&later, "").is_some());
        assert!(read(&format!("{later}-more"), "").is_some());
        assert!(read(&format!("{later}more"), "").is_none());
        assert!(read(&format!("{PARENT}-more"), "").is_none());
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for broken in [
            "",
            "00-1",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7+01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-0",
        ] {
            assert_eq!(read(broken, ""), None, "{broken}");
        }
        assert_eq!(read(&"0".repeat(4_000), ""), None);
    }

    #[test]
    fn a_tracestate_that_is_none_is_left_out() {
        for state in ["", "a=\u{1}", &"a".repeat(513)] {
            assert_eq!(read(PARENT, state).unwrap().state(), None, "{state:?}");
        }
    }
}
