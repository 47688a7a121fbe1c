//! Target `dispatch_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| moorline_fuzz::target::dispatch_answer(input));
