//! What a request costs, in instructions of the gateway: a guard against becoming slower bit by
//! bit. A count hardly depends on the machine's other load, so a few per cent more can be seen
//! where no time could show them.
//!
//! It counts the program that all tests run, which is hardly optimised. A copy, a clone, an
//! allocation, a system call or a wake-up more a request is more there as well; how long
//! anything takes in a release build is for `./bench`.

#![allow(clippy::print_stdout)] // the figures are worth reading also when all is well

use std::env::consts::ARCH;
use std::path::PathBuf;
use std::process::Command;

use toml::Table;

use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::callgrind::Callgrind;
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::Kept;
use crate::support::test_file;

/// Requests before the first that counts: by then the way to the service is kept open.
const WARM_UP: usize = 20;
/// Requests in a round.
const REQUESTS: u64 = 60;
/// Rounds, whose median counts.
const ROUNDS: usize = 3;
/// How far a count may be from the one on record, as a part of it. Twenty runs on a busy machine lay
/// within 0.0025 of each other, and a task with a clone of the header map a request is 0.026. valgrind shows
/// programs the same processor wherever there is AVX2; without, both ways are 0.04 dearer.
const TOLERANCE: f64 = 0.02;
/// The same where compiler or processor are others than those on record.
const TOLERANCE_ELSEWHERE: f64 = 0.1;
/// What to do with counts that are meant to be other ones.
const HOW_TO_BLESS: &str =
    "BLESS=1 cargo nextest run a_request_costs_as_many, and say in the commit what changed them";
/// What stands above the figures.
const ABOUT: &str =
    "# Instructions that a small kept-alive HTTP/1.1 request costs the gateway, as built for tests.
# Checked by tests/it/instructions.rs; written by BLESS=1 cargo nextest run a_request_costs_as_many
";

#[test]
fn a_request_costs_as_many_instructions_as_on_record() {
    if !cfg!(debug_assertions) {
        panic!("the figures on record are those of a build for tests: run it without --release");
    }
    let backend = Backend::start();
    let mut callgrind = Callgrind::new();
    let mut setup = Setup::new();
    let mut route = Table::new();
    route.insert("host".to_owned(), "app.gw.test".into());
    route.insert("to".to_owned(), format!("http://{}", backend.address()).into());
    setup.set("routes", vec![toml::Value::from(route)]);
    let command = callgrind.wrap(&setup.command());
    let gateway = setup.start_with(command);
    let _agent = Agent::web(&gateway, backend.address());
    callgrind.start(gateway.pid());
    let found = [
        ("route", cost(&mut callgrind, &gateway, "app.gw.test")),
        ("tunnel", cost(&mut callgrind, &gateway, &host("web"))),
    ];
    println!("instructions a request: {found:?}");
    compare(&found);
}

/// The instructions of a request to this host.
fn cost(callgrind: &mut Callgrind, gateway: &Gateway, host: &str) -> u64 {
    let mut visitor = Kept::new(gateway, host);
    visitor.latency(WARM_UP);
    let mut rounds = [0; ROUNDS];
    for round in &mut rounds {
        let work = || (0..REQUESTS).for_each(|_| _ = visitor.small());
        *round = callgrind.count(gateway.pid(), work) / REQUESTS;
    }
    println!("{host}: {rounds:?}");
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}

/// Panics unless these are what is on record for this kind of processor.
fn compare(found: &[(&str, u64)]) {
    let path = test_file("golden/instructions.toml");
    let text = std::fs::read_to_string(&path).expect("the record is in the repository");
    let mut record: Table = text.parse().expect("the record is TOML");
    let compiler = format!("{}, {}", compiler(), processor());
    if std::env::var_os("BLESS").is_some() {
        let mut figures = Table::new();
        figures.insert("compiler".to_owned(), compiler.clone().into());
        for (what, count) in found {
            figures.insert((*what).to_owned(), i64::try_from(*count).expect("not that many").into());
        }
        record.insert(ARCH.to_owned(), figures.into());
        std::fs::write(&path, format!("{ABOUT}\n{record}")).expect("writable");
    }
    let Some(figures) = record.get(ARCH) else {
        panic!("{} says nothing of {ARCH}, found {found:?}: {HOW_TO_BLESS}", path.display());
    };
    let is_as_recorded = figures["compiler"].as_str() == Some(&*compiler);
    let tolerance = if is_as_recorded { TOLERANCE } else { TOLERANCE_ELSEWHERE };
    let faults: Vec<_> = found
        .iter()
        .filter_map(|(what, count)| {
            let wanted = figures.get(what).and_then(toml::Value::as_integer).expect("a figure on record");
            fault(what, *count as f64, wanted as f64, tolerance)
        })
        .collect();
    assert!(
        faults.is_empty(),
        "\n{}\nrecorded with {}, now with `{compiler}`: another compiler may be all there is to it\nif it is meant to be so: {HOW_TO_BLESS}",
        faults.join("\n"),
        figures["compiler"],
    );
}

/// What is wrong with a count; fewer instructions than on record are a fault of the record, which
/// would let the same number creep back in unseen.
fn fault(what: &str, count: f64, wanted: f64, tolerance: f64) -> Option<String> {
    let times = count / wanted;
    let hint = if times > 1.0 + tolerance {
        "what is it that the gateway does more for each request? docs/performance.md says how to find it"
    } else if times < 1.0 - tolerance {
        "well done, unless work was lost; put it on record"
    } else {
        return None;
    };
    Some(format!("{what}: {count} instructions a request, {times:.3} times the {wanted} on record: {hint}"))
}

#[test]
fn more_and_fewer_instructions_are_faults() {
    assert_eq!(fault("x", 1015.0, 1000.0, TOLERANCE), None);
    assert_eq!(fault("x", 985.0, 1000.0, TOLERANCE), None);
    let (more, fewer) = (fault("x", 1060.0, 1000.0, TOLERANCE), fault("x", 940.0, 1000.0, TOLERANCE));
    assert!(more.is_some_and(|words| words.contains("1.060 times the 1000 on record: what is it")));
    assert!(fewer.is_some_and(|words| words.contains("0.940 times the 1000 on record: well done")));
}

/// What valgrind shows programs of the processor, as far as the counts depend on it.
fn processor() -> &'static str {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if flags.split_ascii_whitespace().any(|flag| flag == "avx2") { "AVX2" } else { "no AVX2" }
}

/// What builds the program: another compiler, other instructions.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let said = Command::new(&rustc).arg("--version").output();
    said.map_or_else(
        |error| error.to_string(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}
