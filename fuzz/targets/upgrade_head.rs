//! Target `upgrade_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::upgrade_head(input));
