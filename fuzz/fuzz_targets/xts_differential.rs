#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmseal_xts::fuzzing::differential(input));
