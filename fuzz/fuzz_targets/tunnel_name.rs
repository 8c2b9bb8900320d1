//! Whatever an agent asks for, its public name is one DNS label that can be looked up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oneport::name::{ClientId, TunnelName};

fuzz_target!(|input: (&[u8], &str)| {
    let (blob, requested) = input;
    let client = ClientId::from_key_blob(blob);
    let name = TunnelName::derive(requested, &client);
    assert!(name.as_str().ends_with(client.as_str()));
    assert_eq!(TunnelName::from_label(name.as_str()), Some(name));
});
