//! Where people may come from, and how often.

use super::super::{FailureSettings, NetworkSettings, NetworkSource, RateSettings, RequestLimits};
use super::{HOUR, Resolver, SECOND, WEEK, place};

impl Resolver {
    /// The two lists at these places.
    pub(super) fn networks(&mut self, allow: &'static str, deny: &'static str) -> NetworkSettings {
        NetworkSettings { allow: self.sources(allow), deny: self.sources(deny) }
    }

    fn sources(&mut self, path: &'static str) -> Vec<NetworkSource> {
        let folder = self.written.given.get(path).and_then(|given| given.folder.clone());
        self.items(path, |item| NetworkSource::read(item, |file| place(file, folder.as_deref())))
    }

    pub(super) fn requests(&mut self) -> RequestLimits {
        let target = RateSettings {
            per_second: self.rate("limits.tunnel_requests_per_second"),
            burst: self.rate("limits.tunnel_requests_burst"),
            running: self.count("limits.tunnel_requests_running", 0, 10_000_000),
        };
        let visitor = RateSettings {
            per_second: self.rate("limits.visitor_requests_per_second"),
            burst: self.rate("limits.visitor_requests_burst"),
            running: self.count("limits.visitor_requests_running", 0, 10_000_000),
        };
        RequestLimits { target, visitor }
    }

    pub(super) fn failures(&mut self) -> FailureSettings {
        FailureSettings {
            slow_after: self.rate("access.fail_slow_after"),
            most: self.rate("access.fail_max"),
            window: self.duration("access.fail_window", SECOND, WEEK),
            lockout: self.duration("access.fail_lockout", SECOND, 24 * HOUR),
        }
    }

    fn rate(&mut self, path: &'static str) -> u32 {
        u32::try_from(self.count(path, 0, 1_000_000)).unwrap_or(u32::MAX)
    }
}
