//! What a gateway without keys takes for the request of a page in somebody's browser: pages of anywhere can have a browser
//! on this machine call it, by a name that leads to loopback (DNS rebinding) or by forms that need nobody's leave.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header, uri::Authority};

/// Why a request isn't one of a program on this machine, if so; `local` where nobody else can be.
pub(super) fn suspicion(local: bool, headers: &HeaderMap, uri: &Uri) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key(header::ORIGIN) {
        return Some("it comes from a page in a browser (Origin)");
    }
    if !matches!(text("sec-fetch-site"), None | Some("none" | "same-origin")) {
        return Some("a page in a browser has sent it (Sec-Fetch-Site)");
    }
    let named = text(header::HOST.as_str()).or(uri.authority().map(Authority::as_str));
    let elsewhere = local && named.is_some_and(|host| !is_here(host));
    elsewhere.then_some("its Host is another name than those of this machine's loopback")
}

/// Whether `host`, with its port, names loopback.
fn is_here(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    let address = name.parse::<IpAddr>();
    let is_name = || {
        let name = name.to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost")
    };
    address.map_or_else(|_| is_name(), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspected(local: bool, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        suspicion(local, &headers.collect(), &Uri::from_static("/v1/users/1")).is_some()
    }

    #[test]
    fn programs_of_this_machine_are_let_in() {
        for host in [
            "localhost",
            "LocalHost:8090",
            "127.0.0.1:8090",
            "127.1.2.3",
            "[::1]:8090",
            "usersync.localhost:8090",
        ] {
            assert!(!suspected(true, &[("host", host)]), "{host}");
        }
        assert!(!suspected(true, &[]));
        let by_hand = [("host", "localhost"), ("sec-fetch-site", "none")];
        assert!(!suspected(true, &by_hand));
        // Where others may call, they know it by other names.
        assert!(!suspected(false, &[("host", "usersync.internal")]));
    }

    #[test]
    fn pages_of_browsers_are_not() {
        for host in [
            "evil.example",
            "evil.example:8090",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "10.0.0.1",
            "",
            "a b",
        ] {
            assert!(suspected(true, &[("host", host)]), "{host}");
        }
        for local in [true, false] {
            for (name, value) in [
                ("origin", "https://evil.example"),
                ("origin", "http://localhost:8090"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
            ] {
                let sent = [("host", "localhost"), (name, value)];
                assert!(suspected(local, &sent), "{name}: {value}");
            }
        }
    }
}
