//! `Host` and `:authority`: whatever comes, a name that was taken reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oneport::name::HostName;

fuzz_target!(|text: &str| {
    let Ok((host, _)) = HostName::parse_authority(text) else { return };
    assert!(host.as_str().len() <= 253);
    assert_eq!(HostName::parse(host.as_str()).as_ref(), Ok(&host));
});
