//! The version lines, and whether an OpenSSH client can do without ChaCha20.
//!
//! The client's order decides on the cipher (RFC 4253, section 7.1), and OpenSSH asks for
//! ChaCha20 before AES-GCM whatever its processor, at several times the cost for both ends. A
//! server has a say only in what it offers. So for OpenSSH, which sends its list without waiting
//! for ours, that list is read before ours is sent: who has AES-GCM as well is offered nothing
//! else. Whoever was told to use ChaCha20 only, and all other clients, are offered everything.
//!
//! Refuses nothing: what it cannot make sense of is left to the SSH library.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::net::Duplex;

/// Our version, without the end of its line. Existing agents' library sends OpenSSH's extensions
/// only to a version that begins like OpenSSH's or has two digits in a row.
pub const VERSION: &str = "SSH-2.0-oneport_10";
/// Octets of our version line: what the library writes first.
pub const VERSION_LINE: usize = VERSION.len() + 2;

/// What OpenSSH's version line begins with.
const OPENSSH: &[u8] = b"SSH-2.0-OpenSSH_";
/// How long the list is waited for once the version line came: more than a round trip, and no
/// harm to who waits for ours first.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most octets that are read ahead: several times what any client lists.
const MOST: usize = 16 * 1024;
/// The message number of a list of algorithms (RFC 4253, section 7.1).
const KEXINIT: u8 = 20;
/// Length of its cookie.
const COOKIE: usize = 16;

/// What was learned from a client's first octets.
#[derive(Debug)]
pub struct Greeting {
    /// What was read ahead: the library's to read again.
    pub head: Bytes,
    /// Whether it is an OpenSSH client.
    pub is_openssh: bool,
    /// Whether it is one that has AES-GCM in both directions.
    pub has_aes_gcm: bool,
}

/// What the octets say so far.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Not enough of them.
    Nothing,
    /// An OpenSSH client's version line; its list has yet to come.
    OpenSsh,
    /// All that there is to know.
    Enough { has_aes_gcm: bool },
}

/// Sends our version line, and reads the client's; from OpenSSH also its list of algorithms, if
/// it comes within a second. The caller sets the deadline for the version line. Not cancel safe:
/// what was read is lost.
///
/// # Errors
/// When the stream fails or ends.
pub async fn greet(io: &mut impl Duplex) -> io::Result<Greeting> {
    io.write_all(VERSION.as_bytes()).await?;
    io.write_all(b"\r\n").await?;
    io.flush().await?;
    let mut head = BytesMut::new();
    while look(&head) == Seen::Nothing {
        if io.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let more = async {
        while look(&head) == Seen::OpenSsh {
            // The library meets an end or a failure again, and knows what to make of it.
            if !matches!(io.read_buf(&mut head).await, Ok(count) if count > 0) {
                break;
            }
        }
    };
    // Without the list in time, everything is offered.
    let _ = tokio::time::timeout(PATIENCE, more).await;
    let has_aes_gcm = look(&head) == Seen::Enough { has_aes_gcm: true };
    let is_openssh = head.starts_with(OPENSSH);
    Ok(Greeting { head: head.freeze(), is_openssh, has_aes_gcm })
}

fn look(head: &[u8]) -> Seen {
    const OTHERWISE: Seen = Seen::Enough { has_aes_gcm: false };
    let Some(end) = head.iter().position(|&octet| octet == b'\n') else {
        // The longest line (RFC 4253, section 4.2).
        return if head.len() < 255 { Seen::Nothing } else { OTHERWISE };
    };
    if !head.starts_with(OPENSSH) {
        return OTHERWISE;
    }
    let mut packet = &head[end + 1..];
    let Ok(length) = packet.try_get_u32() else { return Seen::OpenSsh };
    let length = length as usize;
    match packet.get(..length) {
        Some(packet) => Seen::Enough { has_aes_gcm: lists_aes_gcm(packet).unwrap_or(false) },
        None if length <= MOST => Seen::OpenSsh,
        None => OTHERWISE,
    }
}

/// Whether this packet (from its padding length on) is a list of algorithms that has AES-GCM in
/// both directions; `None` when it is no such list.
fn lists_aes_gcm(mut packet: &[u8]) -> Option<bool> {
    let _padding = packet.try_get_u8().ok()?;
    if packet.try_get_u8().ok()? != KEXINIT {
        return None;
    }
    packet = packet.get(COOKIE..)?;
    let mut name_list = || {
        let length = packet.try_get_u32().ok()? as usize;
        let list = packet.get(..length)?;
        packet = &packet[length..];
        Some(list)
    };
    let (_kex, _host_keys, forth, back) = (name_list()?, name_list()?, name_list()?, name_list()?);
    let has = |list: &[u8]| {
        list.split(|&octet| octet == b',')
            .any(|name| name == b"aes128-gcm@openssh.com" || name == b"aes256-gcm@openssh.com")
    };
    Some(has(forth) && has(back))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(version: &str, ciphers: &str) -> Vec<u8> {
        let mut packet = vec![4, KEXINIT];
        packet.extend([7; COOKIE]);
        for list in ["kex", "ssh-ed25519", ciphers, ciphers] {
            packet.extend(u32::try_from(list.len()).expect("short").to_be_bytes());
            packet.extend(list.as_bytes());
        }
        packet.extend([0; 4]);
        let mut all = version.as_bytes().to_vec();
        all.extend(u32::try_from(packet.len()).expect("short").to_be_bytes());
        all.extend(packet);
        all
    }

    const LINE: &str = "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n";
    const USUAL: &str = "chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com";

    #[test]
    fn the_list_is_needed_whole_and_only_from_openssh() {
        let all = opening(LINE, USUAL);
        for length in 0..all.len() - 1 {
            let expected = if length < LINE.len() { Seen::Nothing } else { Seen::OpenSsh };
            assert_eq!(look(&all[..length]), expected, "{length} octets");
        }
        assert_eq!(look(&all), Seen::Enough { has_aes_gcm: true });
        let other = |version, ciphers| look(&opening(version, ciphers));
        let otherwise = Seen::Enough { has_aes_gcm: false };
        assert_eq!(other(LINE, "chacha20-poly1305@openssh.com"), otherwise);
        assert_eq!(other("SSH-2.0-ssh2js1.16.0\r\n", USUAL), otherwise);
        assert_eq!(look(&[b'x'; 255]), otherwise);
    }

    #[test]
    fn nonsense_after_the_version_is_left_alone() {
        let otherwise = Seen::Enough { has_aes_gcm: false };
        let with = |rest: &[u8]| look(&[LINE.as_bytes(), rest].concat());
        assert_eq!(with(&u32::MAX.to_be_bytes()), otherwise);
        assert_eq!(with(&[0, 0, 0, 0]), otherwise);
        assert_eq!(with(&[0, 0, 0, 3, 1, KEXINIT, 0]), otherwise);
        let mut cut_short = opening(LINE, USUAL);
        let kex = LINE.len() + 4 + 2 + COOKIE;
        cut_short[kex..kex + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(look(&cut_short), otherwise);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_our_list_gets_it_after_a_moment() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(LINE.as_bytes()).await.expect("open");
        let greeting = greet(&mut near).await.expect("open");
        assert!(greeting.is_openssh && !greeting.has_aes_gcm && greeting.head == LINE.as_bytes());
        let mut line = [0; VERSION_LINE];
        far.read_exact(&mut line).await.expect("sent");
        assert_eq!(&line, b"SSH-2.0-oneport_10\r\n");
    }
}
