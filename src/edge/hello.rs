//! Reading what a client says first: the opening bytes, and the TLS ClientHello.

use std::io;

use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::classify::{Opening, by_first_bytes};
use crate::observe::Reason;

/// Largest ClientHello, in octets with its record headers. Post-quantum hellos are under 2 KiB;
/// the TLS library's own limit for a handshake message is 64 KiB.
const HELLO_MAX: usize = 64 * 1024 + 1024;
/// TLS alert `unrecognized_name` (RFC 6066, section 3).
const UNRECOGNIZED_NAME: u8 = 112;
/// TLS alert `no_application_protocol` (RFC 7301, section 3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Reads until the opening bytes tell what this is; they stay in `seen`. Gives up only when the
/// client closes: the deadline is the caller's. Cancel safe: what was read is in `seen`.
pub async fn read_opening(io: &mut (impl AsyncRead + Unpin), seen: &mut BytesMut) -> Result<Opening, Reason> {
    loop {
        match by_first_bytes(seen) {
            Opening::NeedMore => {}
            opening => return Ok(opening),
        }
        if read_some(io, seen).await? == 0 {
            return Err(Reason::ClosedEarly);
        }
    }
}

/// Reads one more piece.
pub async fn read_some(io: &mut (impl AsyncRead + Unpin), seen: &mut BytesMut) -> Result<usize, Reason> {
    seen.reserve(4096);
    io.read_buf(seen).await.map_err(|_| Reason::ConnectionLost)
}

/// Reads the rest of a ClientHello whose first bytes are in `seen`, through the TLS library's
/// own parser, so that it may be split over any number of records and segments.
///
/// A hello that breaks the rules is answered with the alert that the library names.
pub async fn read_hello<S>(
    io: &mut S,
    mut seen: BytesMut,
) -> Result<Accepted, (Reason, Option<rustls::Error>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut total = 0;
    loop {
        total += seen.len();
        let mut rest = &seen[..];
        while !rest.is_empty() {
            // Reading from memory fails only when the library's buffer is full.
            if acceptor.read_tls(&mut rest).is_err() {
                return Err((Reason::TlsFailed, None));
            }
            match acceptor.accept() {
                Ok(Some(accepted)) if rest.is_empty() => return Ok(accepted),
                // More than a hello may come before the answer only as early data, which is
                // never offered here.
                Ok(Some(_)) => return Err((Reason::TlsFailed, None)),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    if alert.write_all(&mut bytes).is_ok() {
                        say_last(io, &bytes).await;
                    }
                    return Err((Reason::TlsFailed, Some(error)));
                }
            }
        }
        if total > HELLO_MAX {
            return Err((Reason::TlsFailed, None));
        }
        seen.clear();
        match read_some(io, &mut seen).await {
            Ok(0) => return Err((Reason::ClosedEarly, None)),
            Ok(_) => {}
            Err(reason) => return Err((reason, None)),
        }
    }
}

/// Refuses a name that no certificate here covers.
pub async fn refuse_name(io: &mut (impl AsyncWrite + Unpin)) {
    fatal_alert(io, UNRECOGNIZED_NAME).await;
}

/// Refuses an ALPN list.
pub async fn refuse_protocol(io: &mut (impl AsyncWrite + Unpin)) {
    fatal_alert(io, NO_APPLICATION_PROTOCOL).await;
}

/// A fatal alert in a plain record (RFC 8446, sections 5.1 and 6): nothing is encrypted yet.
async fn fatal_alert(io: &mut (impl AsyncWrite + Unpin), description: u8) {
    say_last(io, &[0x15, 3, 3, 0, 2, 2, description]).await;
}

/// Writes a last word. A client that is gone does not hear it.
async fn say_last(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let said: io::Result<()> = async {
        io.write_all(bytes).await?;
        io.shutdown().await
    }
    .await;
    if let Err(error) = said {
        tracing::debug!(%error, "a client left before the alert reached it");
    }
}
