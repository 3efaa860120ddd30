#![no_main]

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().build();
    runtime.expect("a runtime can be made")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| RUNTIME.block_on(usersync_malformed::signature(input)));
