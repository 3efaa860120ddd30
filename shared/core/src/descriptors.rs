//! How many files and connections this process may have open at once.

/// What a process needs beside the connections of its work: NATS, its listener and who asks for its health, certificates
/// while they are read, names while they are looked up.
const RESERVED: u64 = 32;

/// Raises the limit as far as the system allows. Where it doesn't, what there was stays.
pub fn raise() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// How many connections there may be for the work itself; at least one.
pub fn for_connections() -> usize {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1_024);
    usize::try_from(limit.saturating_sub(RESERVED).max(1)).unwrap_or(usize::MAX)
}

/// How many connections there may be of callers of this process: less than what is reserved where there are few.
pub fn for_callers() -> usize {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1_024);
    usize::try_from(limit / 4)
        .unwrap_or(usize::MAX)
        .clamp(8, 2_048)
}
