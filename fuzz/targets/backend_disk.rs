//! Target `backend_disk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::backend_disk(input));
