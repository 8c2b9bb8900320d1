//! The closed list of why something ended or was refused. The same word stands in the error
//! page, in the log and in what an agent is told, so that a person can search for it.

use std::fmt;

/// Whose doing an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one who calls a public name.
    Visitor,
    /// The one who offers it.
    Agent,
    /// What runs behind a tunnel or a route.
    Service,
    /// The gateway.
    Gateway,
    /// Nobody: an ordinary end.
    Nobody,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident $word:literal $side:ident)*) => {
        /// Why something ended or was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)* }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word that stands for it everywhere.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Whose doing it is: who has to change something.
            #[must_use]
            pub const fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)* }
            }
        }
    };
}

reasons! {
    // Connections.
    /// The client closed, or the exchange was complete.
    Finished "finished" Nobody
    /// Nothing moved for the idle time.
    Idle "idle" Nobody
    /// The gateway is shutting down.
    Draining "draining" Gateway
    /// No connection slot was free.
    TooManyConnections "too-many-connections" Visitor
    /// Nobody may come from this address.
    NetworkDenied "network-denied" Visitor
    /// Not handshaken and classified within the deadline.
    HandshakeTimeout "handshake-timeout" Visitor
    /// The client closed before it said what it wanted.
    ClosedEarly "closed-early" Visitor
    /// The first bytes are neither TLS nor anything else that this port speaks.
    UnknownProtocol "unknown-protocol" Visitor
    /// TLS was begun but not by the rules, or with nothing in common.
    TlsFailed "tls-failed" Visitor
    /// The client's ALPN list has nothing that the gateway speaks.
    NoCommonProtocol "no-common-protocol" Visitor
    /// There is no certificate for the name asked for, or not yet.
    NoCertificate "no-certificate" Visitor
    /// A certificate authority's probe, while no certificate is being ordered.
    NoSuchChallenge "no-such-challenge" Visitor
    /// Plain HTTP where only HTTPS is served.
    PlainHttp "plain-http" Visitor
    /// Plain SSH where it is only served within TLS.
    PlainSsh "plain-ssh" Visitor
    /// A read or write failed.
    ConnectionLost "connection-lost" Visitor
    /// A task panicked.
    Panic "panic" Gateway

    // Sessions of agents.
    /// The key is not one that may connect.
    KeyNotAllowed "key-not-allowed" Agent
    /// The key may connect no longer.
    KeyRemoved "key-removed" Agent
    /// Not authenticated in time.
    LoginTimeout "login-timeout" Agent
    /// Too many authentication attempts.
    TooManyAttempts "too-many-attempts" Agent
    /// Too many logins from this address have failed.
    TooManyFailures "too-many-failures" Visitor
    /// The key has as many sessions as one may.
    TooManySessions "too-many-sessions" Agent
    /// The key offers as many tunnels as one may, over all of its sessions.
    TooManyTunnels "too-many-tunnels" Agent
    /// Keep-alives went unanswered.
    AgentSilent "agent-silent" Agent
    /// The agent took nothing off the connection for too long.
    AgentStalled "agent-stalled" Agent
    /// A newer session of the same key took the name over from a dead one.
    TakenOver "taken-over" Agent
    /// The agent broke the SSH protocol.
    SshFailed "ssh-failed" Agent
    /// The public name is held by another live session.
    NameTaken "name-taken" Agent
    /// The forward request could not be understood.
    BadForward "bad-forward" Agent
    /// The same request came twice on one connection.
    DuplicateForward "duplicate-forward" Agent
    /// A TCP forward for another port than 0, 80 or 443.
    PortNotOffered "port-not-offered" Agent
    /// As many of its channels were closed by the gateway before the agent did as may be.
    SessionUsedUp "session-used-up" Gateway
    /// More forwards than a session may hold.
    TooManyForwards "too-many-forwards" Agent

    // Requests of visitors.
    /// Answered by the upstream, whatever its status.
    Answered "answered" Nobody
    /// Answered by the gateway itself, as asked.
    OwnAnswer "own-answer" Nobody
    /// The visitor went away before the answer was complete.
    VisitorLeft "visitor-left" Visitor
    /// The rest of the request's body did not come, and the service waited for it.
    UploadStalled "upload-stalled" Visitor
    /// The request breaks HTTP, or could be read in two ways.
    BadRequest "bad-request" Visitor
    /// The certificate of this connection does not cover the host asked for.
    WrongHost "wrong-host" Visitor
    /// Nothing here under this path.
    NotFound "not-found" Visitor
    /// The method is not for this path.
    MethodNotAllowed "method-not-allowed" Visitor
    /// The tunnel is private, and the visitor has not shown who they are.
    LoginRequired "login-required" Visitor
    /// The token that the visitor showed does not hold.
    BadToken "bad-token" Visitor
    /// The token that the visitor showed holds, but not for this tunnel.
    NotAllowed "not-allowed" Visitor
    /// Another site's page sent it, with what the browser keeps for the preview.
    OtherSite "other-site" Visitor
    /// What the visit was allowed by has ended meanwhile: a token, a login or a link.
    PermitExpired "permit-expired" Visitor
    /// The issuer's key that the visitor's token is signed with was withdrawn meanwhile.
    IssuerKeyRemoved "issuer-key-removed" Visitor
    /// The keys of the token's issuer could not be fetched yet.
    IssuerUnreachable "issuer-unreachable" Gateway
    /// The login that allowed the visit was ended meanwhile by a logout.
    LoginEnded "login-ended" Visitor
    /// The guest link that allowed the visit was taken back, or has ended.
    LinkEnded "link-ended" Visitor
    /// A guest link is not whole, or not for this preview.
    BadLink "bad-link" Visitor
    /// The secret was removed that a login's cookie or a guest link is sealed with.
    SecretRemoved "secret-removed" Visitor
    /// A login with a browser was not completed.
    LoginFailed "login-failed" Visitor
    /// The identity provider cannot be asked, or is set up otherwise than the gateway.
    ProviderUnusable "provider-unusable" Gateway
    /// More requests, in a second or at the same time, than there may be.
    TooManyRequests "too-many-requests" Visitor
    /// No agent offers this name now.
    NoTunnel "no-tunnel" Agent
    /// The agent did not answer the channel open in time.
    AgentNotAnswering "agent-not-answering" Agent
    /// The agent refused the channel: it could not reach its service.
    ServiceUnreachable "service-unreachable" Agent
    /// A route's service refused the connection, or its address does not exist.
    BackendUnreachable "backend-unreachable" Service
    /// A route's service did not accept the connection in time.
    BackendNotAnswering "backend-not-answering" Service
    /// A route's service has as many connections open as it may.
    BackendFull "backend-full" Service
    /// The gateway has no file descriptor left.
    NoDescriptors "no-descriptors" Gateway
    /// The agent's session ended meanwhile.
    AgentGone "agent-gone" Agent
    /// The agent has as many channels open as it may.
    TooManyChannels "too-many-channels" Agent
    /// The service closed the connection before it answered.
    ServiceClosed "service-closed" Service
    /// What the service sent is not HTTP.
    ServiceNotHttp "service-not-http" Service
    /// The answer was cut because the visitor took nothing of it for too long; or for longest, and
    /// the gateway's space for unread answers was used up.
    VisitorTooSlow "visitor-too-slow" Visitor
    /// The gateway could not keep the unread part of an answer: its disk is full or failed.
    NoSpace "no-space" Gateway
}

impl Side {
    /// The word for it in records.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Agent => "agent",
            Self::Service => "service",
            Self::Gateway => "gateway",
            Self::Nobody => "nobody",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_searchable() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        words.sort_unstable();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count, "two reasons share a word");
        assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }
}
