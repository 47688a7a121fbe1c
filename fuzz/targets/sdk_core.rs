//! Target `sdk_core`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::sdk_core(input));
