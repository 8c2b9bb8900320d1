//! The words that an agent hears when the gateway ends its session.

use crate::observe::Reason;

/// What is said with the reason itself behind it.
pub fn goodbye(reason: Reason) -> &'static str {
    match reason {
        Reason::KeyRemoved => "your key may connect no longer; ask the operator of this gateway",
        Reason::NetworkDenied => {
            "agents may no longer come from your address; ask the operator of this gateway"
        }
        Reason::TooManySessions => {
            "your key has as many sessions as one may; end one of them, or ask the operator of this gateway"
        }
        Reason::LoginTimeout => "no key was accepted in time",
        Reason::TakenOver => {
            "a newer session of the same key took your name over, because this one did not answer"
        }
        Reason::Draining => "the gateway is shutting down; connect again in a moment",
        Reason::SessionUsedUp => {
            "this session has carried as many visitors and commands as one may; connect again"
        }
        _ => "the gateway ends this session",
    }
}
