//! Target `link_host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::link_host(input));
