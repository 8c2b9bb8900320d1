//! What the tests share: the gateway, agents, visitors and backends, all of them real programs
//! or real servers, each on a port of its own and gone when its value is dropped.

pub mod agent;
pub mod backend;
pub mod ca;
pub mod callgrind;
pub mod crowd;
pub mod front;
pub mod gateway;
pub mod library_agent;
pub mod load;
pub mod machine;
pub mod named;
pub mod pebble;
pub mod person;
pub mod process;
pub mod visitor;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that should happen soon.
pub const SOON: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer; panics with `what` after `limit`.
#[track_caller]
pub fn poll<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "within {limit:?}, no {what}");
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// A file below `tests/`.
pub fn test_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// The test vectors of the agent contract.
pub fn vectors() -> Value {
    let path = test_file("vectors/tunnel-protocol.json");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
