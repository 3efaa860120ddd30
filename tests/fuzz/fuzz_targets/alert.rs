#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    usersync_malformed::alert(input);
});
