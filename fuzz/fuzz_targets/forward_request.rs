//! Forward requests: understood, or refused in words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oneport::ssh::forward::parse;

fuzz_target!(|request: &str| {
    if let Err(error) = parse(request) {
        assert!(!error.to_string().is_empty());
    }
});
