//! A configuration from the environment: settings, or faults with a place each.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let variables = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    if let Err(faults) = oneport::config::load(None, variables) {
        assert!(faults.0.iter().all(|fault| !fault.place.is_empty() && !fault.what.is_empty()));
    }
});
