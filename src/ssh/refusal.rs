//! Turns an agent away before anything is known of it: our version line, and a message that ends the
//! connection with words (RFC 4253, section 11.1). It needs no key exchange, so that it costs next
//! to nothing, and OpenSSH shows it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::greeting::VERSION;
use crate::net::Duplex;

/// The message number.
const DISCONNECT: u8 = 1;
/// Its code for who may not come from where they are.
pub const NOT_FROM_THERE: u32 = 1;
/// Its code for who may not come now.
pub const NOT_NOW: u32 = 12;
/// What packets are a multiple of before there is a cipher (RFC 4253, section 6).
const BLOCK: usize = 8;
/// Least octets of padding.
const PADDING_LEAST: usize = 4;
/// How long the agent has to take it, and to close.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take to close from this side, then.
const CLOSING: Duration = Duration::from_millis(500);
/// How much of what it sends is read meanwhile, so that it is not told of a reset instead.
const READ_MOST: u64 = 64 * 1024;

/// Sends the words, and waits until the agent has closed, for 3 s at most. Until then nothing is closed from
/// this side: the agent sends its own first packet before it reads this one, and the program that it sends that
/// through must still be there, or it tells of a broken pipe and not of the words.
pub async fn turn_away(mut io: impl Duplex, code: u32, words: &str) {
    let mut said = format!("{VERSION}\r\n").into_bytes();
    said.extend(packet(code, words));
    let tell = async {
        io.write_all(&said).await?;
        io.flush().await?;
        let (mut rest, mut heard) = ((&mut io).take(READ_MOST), [0; 1024]);
        while rest.read(&mut heard).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Who does not listen is not told.
    let _ = tokio::time::timeout(PATIENCE, tell).await;
    let _ = tokio::time::timeout(CLOSING, io.shutdown()).await;
}

fn packet(code: u32, words: &str) -> Vec<u8> {
    let words = words.as_bytes();
    let length = |octets: usize| u32::try_from(octets).unwrap_or_default().to_be_bytes();
    let mut payload = vec![DISCONNECT];
    payload.extend(code.to_be_bytes());
    payload.extend(length(words.len()));
    payload.extend(words);
    // No language.
    payload.extend(length(0));
    // In front of the payload: the length, and that of the padding.
    let bare = 4 + 1 + payload.len();
    let padding = BLOCK - (bare + PADDING_LEAST) % BLOCK + PADDING_LEAST;
    let mut packet = Vec::with_capacity(bare + padding);
    packet.extend(length(1 + payload.len() + padding));
    packet.push(u8::try_from(padding).unwrap_or_default());
    packet.extend(payload);
    packet.resize(bare + padding, 0);
    packet
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// How many octets are sent for these words.
    fn said(words: &str) -> usize {
        VERSION.len() + 2 + packet(NOT_FROM_THERE, words).len()
    }

    #[test]
    fn packets_are_whole_blocks() {
        for length in 0..40 {
            let packet = packet(NOT_NOW, &"x".repeat(length));
            assert_eq!(packet.len() % BLOCK, 0);
            let stated = u32::from_be_bytes(packet[..4].try_into().expect("four octets"));
            assert_eq!(usize::try_from(stated).expect("small") + 4, packet.len());
            assert!((4..=12).contains(&packet[4]), "{} octets of padding", packet[4]);
        }
    }

    #[tokio::test]
    async fn it_ends_whether_or_not_anybody_listens() {
        let (near, mut far) = tokio::io::duplex(4096);
        let listen = async {
            let mut heard = vec![0; said("not from there")];
            far.read_exact(&mut heard).await.expect("heard");
            // The other end is there until this one has gone.
            assert!(timeout(Duration::from_millis(50), far.read_u8()).await.is_err());
            drop(far);
            String::from_utf8_lossy(&heard).into_owned()
        };
        let ((), heard) = tokio::join!(turn_away(near, NOT_FROM_THERE, "not from there"), listen);
        assert!(heard.starts_with("SSH-2.0-oneport") && heard.contains("not from there"), "{heard}");
        let (near, _silent) = tokio::io::duplex(8);
        tokio::time::pause();
        turn_away(near, NOT_NOW, "not now").await;
    }
}
