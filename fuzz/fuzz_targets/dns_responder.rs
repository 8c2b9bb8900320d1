//! What comes to the gateway's own DNS port: no request panics, none gets more than three times its
//! length over UDP, and none is answered that is an answer.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oneport::certs::dns::Answers;
use oneport::name::HostName;

static ANSWERS: LazyLock<Answers> = LazyLock::new(|| {
    let base = HostName::parse("preview.test").expect("a host name");
    Answers::of(&base, "value").expect("a name that the DNS can hold")
});

fuzz_target!(|request: &[u8]| {
    let is_answer = request.get(2).is_some_and(|octet| octet & 0x80 != 0);
    if let Some(answer) = ANSWERS.over_udp(request) {
        assert!(request.len() >= 12 && !is_answer);
        // A fault has a header alone; whoever sends no more gets no more.
        assert!(answer.len() <= 1232.min(3 * request.len()));
        assert_eq!(answer[..2], request[..2]);
    }
    if let Some(answer) = ANSWERS.over_tcp(request) {
        assert!(answer.len() <= usize::from(u16::MAX) && answer[2] & 0x80 != 0);
    }
});
