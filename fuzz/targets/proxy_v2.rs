//! Target `proxy_v2`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::proxy_v2(input));
