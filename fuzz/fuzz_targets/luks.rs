#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vmseal_formats::fuzzing::luks(data));
