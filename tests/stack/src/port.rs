//! Ports nobody listens on.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below the range that the kernel hands to outgoing connections, so that none of those can take a port
/// between the moment it is found free and the moment a server listens on it.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// Counts through the ports, so that tests running side by side in one process never get the same one.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback port that nobody listens on and that this process has not handed out lately.
///
/// # Errors
/// When every port is taken.
pub fn free_port() -> Result<u16> {
    // Another test process starts somewhere else in the range.
    let start = (process::id().wrapping_mul(7919) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + turn) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("every port from {FIRST} to {} is taken", FIRST + COUNT);
}

/// `preferred` when nobody listens there, else any free port.
///
/// # Errors
/// When every port is taken.
pub fn free_port_or(preferred: u16) -> Result<u16> {
    if is_free(preferred) {
        Ok(preferred)
    } else {
        free_port()
    }
}

/// Both addresses are tried: a server that listens on all of them doesn't always stop a bind to one.
fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn ports_are_free_and_never_the_same_twice() {
        let mut ports: Vec<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        for port in &ports {
            // A child that another test starts has our sockets for a moment, until it is another program.
            let end = Instant::now() + Duration::from_secs(5);
            while !is_free(*port) {
                assert!(Instant::now() < end, "{port} is taken");
                thread::sleep(Duration::from_millis(5));
            }
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 100);
    }

    #[test]
    fn a_taken_port_is_not_preferred() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().port();
        assert_ne!(free_port_or(taken).unwrap(), taken);
        drop(listener);
        let free = free_port().unwrap();
        assert_eq!(free_port_or(free).unwrap(), free);
    }
}
