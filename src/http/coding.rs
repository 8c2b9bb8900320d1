//! Content codings, off and on again: what browsers display can be taken apart, also where it
//! breaks the rules.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_compression::tokio::bufread::{BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder};
use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZlibEncoder};
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// What a gzip member begins with (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950, or by mistake RFC 1951.
    Deflate,
    /// RFC 7932.
    Brotli,
}

impl Coding {
    /// Reads it from an answer's headers. `None`: it is none of these.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Some(Self::Identity) };
        if values.next().is_some() {
            return None;
        }
        match value.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            _ => None,
        }
    }
}

/// Where a packed body comes from.
pub(super) type Source = Pin<Box<dyn AsyncBufRead + Send>>;
/// The octets that were looked at, and all others.
type Wire = tokio::io::Chain<io::Cursor<Vec<u8>>, Source>;

/// Takes a coding off. More forgiving than the rules, as browsers are: `deflate` may lack its
/// zlib wrapping, gzip may be followed by anything, and a packed body may have no octet at all.
pub(super) struct Decoder {
    coding: Coding,
    stage: Stage,
}

enum Stage {
    /// The first octets, as far as they came, of the body or (`false`) of what follows a member.
    Start(Vec<u8>, Source, bool),
    Identity(Source),
    /// Does not have the coding that it claims.
    Untouched(Wire),
    Gzip(GzipDecoder<Wire>),
    Zlib(ZlibDecoder<Wire>),
    Deflate(DeflateDecoder<Wire>),
    Brotli(Box<BrotliDecoder<Wire>>),
    Ended,
}

impl Decoder {
    /// Takes `coding` off what `source` gives.
    pub(super) fn new(coding: Coding, source: Source) -> Self {
        let stage = match coding {
            Coding::Identity => Stage::Identity(source),
            _ => Stage::Start(Vec::new(), source, true),
        };
        Self { coding, stage }
    }

    /// Whether the body does not have the coding that it claims, and comes as it is.
    pub(super) fn is_untouched(&self) -> bool {
        matches!(self.stage, Stage::Untouched(_))
    }

    /// The next octets; none at the end. Octets may stand in `buf` when there is an error too.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            match &mut self.stage {
                Stage::Ended => return Poll::Ready(Ok(())),
                Stage::Start(seen, source, first) => {
                    ready!(poll_first(seen, source, cx))?;
                    let is_next_member = !*first && *seen == GZIP_MAGIC;
                    self.begin();
                    if is_next_member {
                        // A member costs more than its octets: thousands must not come in one turn.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Stage::Gzip(decoder) => {
                    ready!(Pin::new(decoder).poll_read(cx, buf))?;
                    if buf.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                    self.end_member();
                }
                Stage::Identity(source) => return source.as_mut().poll_read(cx, buf),
                Stage::Untouched(wire) => return Pin::new(wire).poll_read(cx, buf),
                Stage::Zlib(decoder) => return Pin::new(decoder).poll_read(cx, buf),
                Stage::Deflate(decoder) => return Pin::new(decoder).poll_read(cx, buf),
                Stage::Brotli(decoder) => return Pin::new(decoder).poll_read(cx, buf),
            }
        }
    }

    /// Goes on from the start, by what the first octets are.
    fn begin(&mut self) {
        let Stage::Start(seen, source, first) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return;
        };
        let (is_gzip, is_zlib) = (seen == GZIP_MAGIC, is_zlib(&seen));
        if seen.is_empty() || !(first || is_gzip) {
            return;
        }
        let wire = io::Cursor::new(seen).chain(source);
        self.stage = match self.coding {
            Coding::Gzip if is_gzip => Stage::Gzip(GzipDecoder::new(wire)),
            Coding::Gzip | Coding::Identity => Stage::Untouched(wire),
            Coding::Deflate if is_zlib => Stage::Zlib(ZlibDecoder::new(wire)),
            Coding::Deflate => Stage::Deflate(DeflateDecoder::new(wire)),
            Coding::Brotli => Stage::Brotli(Box::new(BrotliDecoder::new(wire))),
        };
    }

    fn end_member(&mut self) {
        if let Stage::Gzip(decoder) = std::mem::replace(&mut self.stage, Stage::Ended) {
            let (_, source) = decoder.into_inner().into_inner();
            self.stage = Stage::Start(Vec::new(), source, false);
        }
    }
}

/// Waits for two octets, or for the end.
fn poll_first(seen: &mut Vec<u8>, source: &mut Source, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while seen.len() < 2 {
        let Some(octet) = ready!(source.as_mut().poll_fill_buf(cx))?.first().copied() else { break };
        seen.push(octet);
        source.as_mut().consume(1);
    }
    Poll::Ready(Ok(()))
}

/// Whether these octets are a header of RFC 1950, section 2.2.
fn is_zlib(first: &[u8]) -> bool {
    let [method, flags] = *first else { return false };
    method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([method, flags]) % 31 == 0
}

/// Puts a coding on: writers into memory, which never wait.
pub(super) enum Encoder {
    /// As it is.
    Identity(Vec<u8>),
    /// RFC 1952.
    Gzip(GzipEncoder<Vec<u8>>),
    /// RFC 1950.
    Deflate(ZlibEncoder<Vec<u8>>),
    /// RFC 7932.
    Brotli(Box<BrotliEncoder<Vec<u8>>>),
}

impl Encoder {
    /// Puts `coding` on.
    pub(super) fn new(coding: Coding) -> Self {
        match coding {
            Coding::Identity => Self::Identity(Vec::new()),
            Coding::Gzip => Self::Gzip(GzipEncoder::new(Vec::new())),
            Coding::Deflate => Self::Deflate(ZlibEncoder::new(Vec::new())),
            Coding::Brotli => {
                // The best quality, the default, takes seconds for a page.
                let quick = async_compression::Level::Precise(4);
                Self::Brotli(Box::new(BrotliEncoder::with_quality(Vec::new(), quick)))
            }
        }
    }

    fn with<T>(&mut self, job: impl FnOnce(&mut (dyn AsyncWrite + Unpin + Send)) -> T) -> T {
        match self {
            Self::Identity(writer) => job(writer),
            Self::Gzip(writer) => job(writer),
            Self::Deflate(writer) => job(writer),
            Self::Brotli(writer) => job(writer),
        }
    }

    /// Takes octets; what they come to may stay inside for now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|writer| writer.write_all(bytes).now_or_never()).unwrap_or_else(would_wait)
    }

    /// Brings out everything that was taken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.with(|writer| writer.flush().now_or_never()).unwrap_or_else(would_wait)
    }

    /// Brings out the end.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.with(|writer| writer.shutdown().now_or_never()).unwrap_or_else(would_wait)
    }

    /// What came out.
    pub(super) fn output(&self) -> &Vec<u8> {
        match self {
            Self::Identity(output) => output,
            Self::Gzip(writer) => writer.get_ref(),
            Self::Deflate(writer) => writer.get_ref(),
            Self::Brotli(writer) => writer.get_ref(),
        }
    }

    /// What came out, to be taken away.
    pub(super) fn output_mut(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Identity(output) => output,
            Self::Gzip(writer) => writer.get_mut(),
            Self::Deflate(writer) => writer.get_mut(),
            Self::Brotli(writer) => writer.get_mut(),
        }
    }
}

/// Writing to memory does not wait; should it ever, that is an error and not a hang.
fn would_wait() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}
