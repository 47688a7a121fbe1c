//! Target `backend_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::backend_files(input));
