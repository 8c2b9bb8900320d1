//! File descriptors: takes all that the system allows, and keeps some of them from connections.
//! Files, keys and unread answers need theirs also when visitors hold all that they may.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the gateway needs for itself at the least, however small the limit.
const RESERVE_MIN: u64 = 32;

/// Raises the soft limit to the hard one, and says how many connections may be open at once:
/// as many as were `wanted`, or fewer, with a warning, where descriptors are too few for these
/// and for those `to_services` of routes.
pub fn slots(wanted: usize, to_services: usize) -> usize {
    let limit = raise();
    let slots = fitting(wanted, to_services, limit);
    if let Some(limit) = limit
        && slots < wanted
    {
        let needed = needed(wanted.saturating_add(to_services));
        tracing::warn!(
            "`limits.connections` is {wanted}, but this process may have only {limit} file descriptors; \
             taking {slots} connections at once. Raise the limit to {needed} (`LimitNOFILE={needed}` in a \
             systemd unit, `ulimit -n` in a shell), or lower `limits.connections` or `http.upstream_max`"
        );
    }
    slots
}

/// The limit after raising. `None`: without end.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => {
            tracing::debug!(from = current, to = maximum, "file descriptor limit raised");
            maximum
        }
        Err(error) => {
            tracing::debug!(from = current, to = maximum, %error, "file descriptor limit not raised");
            current
        }
    }
}

/// Where descriptors are too few, both kinds get less in the same measure.
fn fitting(wanted: usize, to_services: usize, limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return wanted };
    let most = limit.saturating_sub((limit / 4).max(RESERVE_MIN)).max(1);
    let (wanted, all) = (wanted as u64, (wanted as u64).saturating_add(to_services as u64).max(1));
    let fits = if all <= most { wanted } else { (wanted * most / all).max(1) };
    usize::try_from(fits).unwrap_or(usize::MAX)
}

/// The least limit that fits so many connections.
fn needed(wanted: usize) -> u64 {
    let wanted = wanted as u64;
    wanted.saturating_add((wanted.div_ceil(3)).max(RESERVE_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept_and_what_is_asked_for_is_enough() {
        assert_eq!(fitting(20_000, 0, None), 20_000);
        assert_eq!(fitting(20_000, 0, Some(1 << 20)), 20_000);
        assert_eq!(fitting(20_000, 0, Some(1024)), 768);
        assert_eq!(fitting(20_000, 0, Some(48)), 16);
        assert_eq!(fitting(20_000, 0, Some(8)), 1);
        assert_eq!(fitting(20_000, 4_000, Some(32_000)), 20_000);
        assert_eq!(fitting(20_000, 20_000, Some(20_000)), 7_500);
        for wanted in [1, 95, 96, 97, 1000, 20_000, 20_001] {
            assert_eq!(fitting(wanted, 0, Some(needed(wanted))), wanted);
            assert!(fitting(wanted + 1, 0, Some(needed(wanted))) <= wanted + 1);
        }
    }
}
