//! One question to one DNS server: over UDP, and over TCP when the answer does not fit or none
//! comes.
//!
//! Keeps nothing and follows nothing: what an answer means is the asker's to say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// How long one try over UDP waits.
const UDP_WAIT: Duration = Duration::from_secs(2);
/// Tries over UDP.
const UDP_TRIES: usize = 2;
/// How long it may take over TCP, from the connection to the answer.
const TCP_WAIT: Duration = Duration::from_secs(5);
/// Octets of an answer over UDP that fit into any path's packets (as the DNS flag day 2020 agreed).
pub(super) const UDP_MAX: u16 = 1232;
/// Octets of any answer over UDP that is read.
const DATAGRAM_MAX: usize = 4096;

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Not within the time.
    #[error("no answer")]
    Silent,
    /// This machine cannot send there.
    #[error("{0}")]
    Unreachable(io::Error),
    /// It answered something else.
    #[error("an answer that is not DNS")]
    Malformed,
}

/// An answer, as it came and as it was understood.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) message: Message,
}

/// Asks for records. `recurse`: the server is asked to ask others. Cancel safe.
pub(super) async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recurse: bool,
) -> Result<Message, AskError> {
    Ok(exchange(server, &question(name, kind, recurse)?).await?.message)
}

/// What a question goes over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// Asks over one of the two only, and not others. Cancel safe.
pub(super) async fn ask_over(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    over: Over,
) -> Result<Answer, AskError> {
    let request = question(name, kind, false)?;
    match over {
        Over::Udp => over_udp(server, &request).await,
        Over::Tcp => over_tcp_in_time(server, &request).await,
    }
}

fn question(name: &Name, kind: RecordType, recurse: bool) -> Result<Vec<u8>, AskError> {
    let mut message = Message::query();
    message.metadata.recursion_desired = recurse;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX);
    message.set_edns(edns);
    message.to_vec().map_err(|_| AskError::Malformed)
}

/// Sends a whole message, and waits for the answer to it. Cancel safe.
pub(super) async fn exchange(server: SocketAddr, request: &[u8]) -> Result<Answer, AskError> {
    match over_udp(server, request).await {
        Ok(answer) if !answer.message.metadata.truncation => Ok(answer),
        Err(error @ AskError::Unreachable(_)) => Err(error),
        // It may be that only TCP gets through.
        Ok(_) | Err(_) => over_tcp_in_time(server, request).await,
    }
}

async fn over_tcp_in_time(server: SocketAddr, request: &[u8]) -> Result<Answer, AskError> {
    match tokio::time::timeout(TCP_WAIT, over_tcp(server, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if is_unreachable(&error) => Err(AskError::Unreachable(error)),
        Ok(Err(_)) | Err(_) => Err(AskError::Silent),
    }
}

async fn over_udp(server: SocketAddr, request: &[u8]) -> Result<Answer, AskError> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(AskError::Unreachable)?;
    // Connected, so that the kernel lets nobody else's answer in.
    socket.connect(server).await.map_err(AskError::Unreachable)?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    for _ in 0..UDP_TRIES {
        match socket.send(request).await {
            Err(error) if is_unreachable(&error) => return Err(AskError::Unreachable(error)),
            _ => {}
        }
        let heard = tokio::time::timeout(UDP_WAIT, async {
            loop {
                let count = socket.recv(&mut datagram).await?;
                if let Some(answer) = understand(request, &datagram[..count]) {
                    return io::Result::Ok(answer);
                }
            }
        });
        match heard.await {
            Ok(Ok(answer)) => return Ok(answer),
            // Nobody listens there; TCP will tell.
            Ok(Err(_)) => return Err(AskError::Silent),
            Err(_) => {}
        }
    }
    Err(AskError::Silent)
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Result<Answer, AskError>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + request.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(request);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(understand(request, &answer).ok_or(AskError::Malformed))
}

/// The answer, if it is one to this request.
fn understand(request: &[u8], answer: &[u8]) -> Option<Answer> {
    if answer.len() < 12 || request.get(..2) != answer.get(..2) || answer[2] & 0x80 == 0 {
        return None;
    }
    let message = Message::from_vec(answer).ok()?;
    let asked = Message::from_vec(request).ok()?;
    // Servers that cannot read a request, or refuse an update, may leave the question out.
    let is_same = message.queries == asked.queries
        || message.queries.is_empty()
            && (asked.metadata.op_code == OpCode::Update
                || message.metadata.response_code != hickory_proto::op::ResponseCode::NoError);
    is_same.then(|| Answer { bytes: answer.to_vec(), message })
}

/// Whether this machine has no way there, such as for IPv6 where it has none.
fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable)
}
