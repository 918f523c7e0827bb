//! `files` of the targets, by libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz_targets::files(data));
