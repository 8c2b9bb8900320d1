//! The status as JSON: what runs now. Secrets, and what agents attach to their tunnels, stay out.

use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Admin;
use crate::certs::Served;
use crate::certs::acme::{Ordered, VaultError};
use crate::config::watch::off_thread;
use crate::name::CertName;
use crate::registry::Tunnel;
use crate::ssh::SessionFacts;

impl Admin {
    /// Everything that is told of this moment.
    pub(super) async fn status(self: Arc<Self>) -> Value {
        let admin = self.clone();
        let orders = off_thread(move || admin.orders()).await;
        let now = self.now();
        let (connections, per_address) = self.of.slots.limits();
        let (ssh, limits) = (&self.of.settings.ssh, &self.of.settings.limits);
        let sessions: Vec<Value> = self.of.ssh.sessions().iter().map(session).collect();
        let certificates: Vec<Value> = self.of.certs.all().iter().map(|served| certificate(served)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().unwrap_or_default().as_secs(),
            "draining": self.of.draining.is_cancelled(),
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
            "orders": orders,
            "sessions": sessions,
        })
    }

    /// The names that certificates are ordered for. Reads files.
    fn orders(&self) -> Vec<Value> {
        let (Some(vault), Some(acme)) = (&self.of.vault, &self.of.settings.acme) else { return Vec::new() };
        let names = vault.ordered_names(&acme.names).into_iter();
        names
            .map(|name| vault.ordered(name.clone()).map_or_else(|error| unread(&name, &error), order))
            .collect()
    }
}

fn order(ordered: Ordered) -> Value {
    let Ordered { name, kept, status } = ordered;
    let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
    json!({
        "name": name.to_string(),
        "issuer": kept.as_ref().map(|kept| &*kept.served.issuer),
        "proof": kept.as_ref().map(|kept| &*kept.about.way),
        "not_after": kept.as_ref().map(|kept| time(kept.served.not_after)),
        "renewal": status.renew_at.filter(|_| kept.is_some()).map(time),
        "failures": status.failures,
        "retry": status.retry_at.filter(|_| status.fault.is_some()).map(time),
        "fault": status.fault.map(|fault| json!({
            "at": time(fault.at),
            "fault": fault.word,
            "text": fault.text,
        })),
    })
}

fn unread(name: &CertName, error: &VaultError) -> Value {
    json!({ "name": name.to_string(), "fault": { "fault": "local", "text": error.to_string() } })
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
