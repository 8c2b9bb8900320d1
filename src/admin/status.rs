//! The status as JSON: what runs now. Secrets, and what agents attach to their tunnels, stay out.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::Admin;
use crate::certs::Served;
use crate::registry::Tunnel;
use crate::ssh::SessionFacts;

impl Admin {
    /// Everything that is told of this moment.
    pub(super) fn status(&self) -> Value {
        let now = self.now();
        let (connections, per_address) = self.slots.limits();
        let (ssh, limits) = (&self.settings.ssh, &self.settings.limits);
        let sessions: Vec<Value> = self.ssh.sessions().iter().map(session).collect();
        let certificates: Vec<Value> = self.certs.all().iter().map(|served| certificate(served)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().unwrap_or_default().as_secs(),
            "draining": self.draining.is_cancelled(),
            "connections": now.connections,
            "tunnels": now.tunnels,
            "channels": now.ssh.channels,
            "spill_disk_bytes": now.ssh.disk,
            "limits": {
                "connections": connections,
                "connections_per_address": per_address,
                "forwards_per_session": ssh.max_forwards,
                "channels_per_session": ssh.max_channels,
                "buffer_memory_bytes": limits.buffer_memory,
                "buffer_disk_per_stream_bytes": limits.buffer_disk_per_stream,
                "buffer_disk_bytes": limits.buffer_disk,
            },
            "certificates": certificates,
            "sessions": sessions,
        })
    }
}

fn certificate(served: &Served) -> Value {
    json!({
        "names": &*served.names,
        "not_after": served.not_after.format(&Rfc3339).unwrap_or_default(),
    })
}

fn session(facts: &SessionFacts) -> Value {
    let identity = facts.identity.as_ref();
    json!({
        "connection": facts.conn.to_string(),
        "peer": facts.peer.to_string(),
        "user": facts.user.as_deref(),
        "key": identity.map(|identity| &*identity.fingerprint),
        "client_id": identity.map(|identity| identity.client_id.as_str()),
        "software": facts.software,
        "seconds": facts.age.as_secs(),
        "channels": facts.channels,
        "received_bytes": facts.received,
        "sent_bytes": facts.sent,
        "tunnels": facts.tunnels.iter().map(|held| tunnel(held)).collect::<Vec<_>>(),
    })
}

fn tunnel(tunnel: &Tunnel) -> Value {
    json!({ "name": tunnel.name.as_str(), "access": tunnel.access.to_string() })
}
