//! Who may come from where, and how often: what the settings say of it.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::value::parse_network;

/// What stands in front of a file's path in a list of networks.
const FILE: &str = "file:";

/// Two lists of networks. What is in neither may come if nothing is allowed by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Who may come.
    pub allow: Vec<NetworkSource>,
    /// Who may not.
    pub deny: Vec<NetworkSource>,
}

impl NetworkSettings {
    /// Whether nothing is listed, so that everybody may come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// One item of a list of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkSource {
    /// A network.
    Network(IpNet),
    /// All those in this file.
    File(PathBuf),
}

impl NetworkSource {
    /// Reads `10.0.0.0/8`, one address, or `file:PATH`. `relative` places a path.
    pub(super) fn read(item: &str, relative: impl Fn(&str) -> PathBuf) -> Result<Self, String> {
        match item.strip_prefix(FILE) {
            Some("") => Err(format!("`{item}` names no file; write such as `file:office.txt`")),
            Some(path) => Ok(Self::File(relative(path))),
            None => {
                parse_network(item).map(Self::Network).map_err(|fault| format!("{fault}, or `file:PATH`"))
            }
        }
    }
}

/// How many requests there may be. 0 stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSettings {
    /// In a second, in the long run.
    pub per_second: u32,
    /// At once after a pause. 0: what may come in [`RateSettings::BURST_SECONDS`].
    pub burst: u32,
    /// That run at the same time.
    pub running: usize,
}

impl RateSettings {
    /// How many seconds' worth may come at once where nothing else is said.
    pub const BURST_SECONDS: u32 = 5;

    /// Whether there is no limit at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.per_second == 0 && self.running == 0
    }

    /// How many may come at once.
    #[must_use]
    pub fn burst(&self) -> u32 {
        if self.burst == 0 { self.per_second.saturating_mul(Self::BURST_SECONDS) } else { self.burst }
    }
}

/// How many requests there may be to one target, and from one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLimits {
    /// To one tunnel or route.
    pub target: RateSettings,
    /// From one visitor's address (one /64 for IPv6).
    pub visitor: RateSettings,
}

/// What a route says of its own about [`RateSettings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnRate {
    /// In a second.
    pub per_second: Option<u32>,
    /// At once after a pause.
    pub burst: Option<u32>,
    /// That run at the same time.
    pub running: Option<usize>,
}

impl OwnRate {
    /// What holds for the route where `general` does for all.
    #[must_use]
    pub fn over(&self, general: RateSettings) -> RateSettings {
        // A burst that was meant for another rate means nothing for this one.
        let burst = if self.per_second.is_some() { 0 } else { general.burst };
        RateSettings {
            per_second: self.per_second.unwrap_or(general.per_second),
            burst: self.burst.unwrap_or(burst),
            running: self.running.unwrap_or(general.running),
        }
    }
}

/// What a route's visitors are held to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteBounds {
    /// Where they may come from.
    pub networks: NetworkSettings,
    /// How many requests there may be to it.
    pub target: OwnRate,
    /// How many there may be to it from one address.
    pub visitor: OwnRate,
}

/// What becomes of an address that fails to show who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureSettings {
    /// Failures after which each further answer takes longer.
    pub slow_after: u32,
    /// Failures after which the address is refused. 0: none are counted.
    pub most: u32,
    /// How long a failure counts.
    pub window: Duration,
    /// How long the address is refused.
    pub lockout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_networks_or_files() {
        let read = |item| NetworkSource::read(item, |path| PathBuf::from("/etc").join(path));
        assert_eq!(read("10.0.0.0/8"), Ok(NetworkSource::Network("10.0.0.0/8".parse().expect("literal"))));
        assert_eq!(read("::1"), Ok(NetworkSource::Network("::1/128".parse().expect("literal"))));
        assert_eq!(read("file:a.txt"), Ok(NetworkSource::File("/etc/a.txt".into())));
        for bad in ["", "file:", "10.0.0.0/33", "example.com", "10.0.0"] {
            let fault = read(bad).expect_err(bad);
            assert!(fault.contains("write such as"), "{fault}");
        }
    }

    #[test]
    fn a_route_says_only_what_differs() {
        let general = RateSettings { per_second: 10, burst: 30, running: 7 };
        assert_eq!(OwnRate::default().over(general), general);
        let own = OwnRate { per_second: Some(2), running: Some(0), ..OwnRate::default() };
        assert_eq!(own.over(general), RateSettings { per_second: 2, burst: 0, running: 0 });
        assert_eq!(own.over(general).burst(), 10);
    }
}
