//! Target `tls_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::tls_records(input));
