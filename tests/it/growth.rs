//! What a look-up, the list of a profile, a claim and a request cost does not depend on how many tunnels there are.
//! Counted in instructions, in one process that is told when to do what; the time that they take
//! is for `cargo bench --bench registry`.

#![allow(clippy::print_stdout)] // figures, and the worker's answers

use std::io::BufRead as _;
use std::process::Command;

use crate::support::SOON;
use crate::support::callgrind::Callgrind;
use crate::support::crowd::Crowd;
use crate::support::process::Process;

/// How many tunnels.
const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// What is done, and how often for one figure.
const WORK: [(&str, u64); 4] = [("look-up", 1_000), ("list", 1_000), ("claim", 500), ("request", 50)];
/// How much more anything may cost among many tunnels than among few. A hash table that is nearly
/// full is searched a little longer; what looks at all tunnels, or at a tree of them, is beyond.
const FLAT: f64 = 1.3;

#[test]
fn cost_does_not_grow_with_the_tunnels() {
    let mut callgrind = Callgrind::new();
    let mut worker = Worker::start(&callgrind);
    let mut figures = [[0; SIZES.len()]; WORK.len()];
    for (at, size) in SIZES.into_iter().enumerate() {
        worker.order("grow", size as u64);
        let pid = worker.process.pid();
        callgrind.start(pid);
        for (row, (what, times)) in WORK.into_iter().enumerate() {
            worker.order(what, 5);
            figures[row][at] = callgrind.count(pid, || worker.order(what, times)) / times;
        }
        callgrind.stop(pid);
    }
    for ((what, _), counts) in WORK.iter().zip(figures) {
        println!("{what}: {counts:?} instructions with {SIZES:?} tunnels");
        let (few, most) = (counts[0] as f64, counts.into_iter().max().expect("some") as f64);
        assert!(few > 100.0, "a {what} is not counted: {counts:?}");
        assert!(
            most <= FLAT * few,
            "a {what} takes {counts:?} instructions with {SIZES:?} tunnels: what looks at all of them?"
        );
    }
}

/// This program again, under callgrind, doing what it is told.
struct Worker {
    process: Process,
    orders: usize,
}

impl Worker {
    #[track_caller]
    fn start(callgrind: &Callgrind) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "growth::worker", "--ignored", "--nocapture", "--test-threads=1"]);
        let process = Process::start(&mut callgrind.wrap(&command));
        process.out.wait_for("ready\n", SOON);
        Self { process, orders: 0 }
    }

    #[track_caller]
    fn order(&mut self, what: &str, times: u64) {
        self.orders += 1;
        self.process.write(format!("{what} {times}\n").as_bytes());
        self.process.out.wait_for(&format!("done {}\n", self.orders), SOON);
    }
}

/// No test: does what is written on standard input, line by line, to its end.
#[test]
#[ignore = "the test above starts it"]
fn worker() {
    let mut crowd = Crowd::of(SIZES[0]);
    println!("\nready");
    for (index, line) in std::io::stdin().lock().lines().map_while(Result::ok).enumerate() {
        let (what, times) = line.split_once(' ').expect("two words");
        let times = times.parse().expect("a number");
        match what {
            "grow" => crowd.grow_to(times),
            "look-up" => (0..times).for_each(|_| drop(std::hint::black_box(crowd.look_up()))),
            "list" => (0..times).for_each(|_| drop(std::hint::black_box(crowd.list()))),
            "claim" => (0..times).for_each(|_| crowd.claim()),
            "request" => (0..times).for_each(|_| crowd.request()),
            _ => panic!("`{what}`?"),
        }
        println!("done {}", index + 1);
    }
}
