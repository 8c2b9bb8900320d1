//! How much of the machine others take: a test that measures time must know.

use std::collections::BTreeMap;
use std::time::Instant;

/// What one tick of the kernel's accounts is, in seconds.
const TICK: f64 = 0.01;

/// The part of the machine that others may take for a measure of time to say anything.
pub const TOO_BUSY: f64 = 0.5;

/// The processors' accounts at a moment.
pub struct Machine {
    at: Instant,
    all: u64,
    ours: u64,
}

impl Machine {
    /// Now.
    pub fn look() -> Self {
        Self { at: Instant::now(), all: busy(), ours: ours() }
    }

    /// The part of all processors, from 0 to 1, that was taken since then by processes that this one
    /// has not started.
    pub fn others(&self) -> f64 {
        let now = Self::look();
        let others = (now.all - self.all).saturating_sub(now.ours.saturating_sub(self.ours));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let span = (now.at - self.at).as_secs_f64() * processors as f64;
        (others as f64 * TICK / span.max(TICK)).clamp(0.0, 0.9)
    }
}

/// Ticks in which any processor worked.
fn busy() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("this is Linux");
    let line = stat.lines().next().expect("the sum of all processors");
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // All but what was spent idle and waiting for disks; what guests took is in the first already.
    ticks.iter().take(8).sum::<u64>() - ticks[3] - ticks[4]
}

/// Ticks that this process and all below it have taken, those that have ended already as well.
fn ours() -> u64 {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("this is Linux").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name of the program, which may hold anything, ends with the last bracket.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        // The parent; user and system time, and those of children that were waited for.
        if let (Some(&parent), Some(times)) = (fields.first(), fields.get(10..14)) {
            processes.insert(pid, (u32::try_from(parent).unwrap_or(0), times.iter().sum::<u64>()));
        }
    }
    let is_ours = |mut pid: u32| loop {
        if pid == std::process::id() {
            return true;
        }
        match processes.get(&pid) {
            Some(&(parent, _)) if parent != pid => pid = parent,
            _ => return false,
        }
    };
    processes.iter().filter(|&(&pid, _)| is_ours(pid)).map(|(_, &(_, ticks))| ticks).sum()
}

#[test]
fn what_children_took_is_ours_when_they_have_ended() {
    let before = ours();
    let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; cut -d' ' -f14 /proc/$$/stat";
    let output = std::process::Command::new("sh").args(["-c", script]).output().expect("a shell");
    let took: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("ticks");
    assert!(took > 0 && ours() - before >= took, "{took} ticks were taken");
}
