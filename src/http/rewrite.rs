//! Takes an HTML body apart as it streams by, puts elements in, and packs it again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder};
use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZlibEncoder};
use bytes::{Bytes, BytesMut};
use encoding_rs::Encoding;
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use lol_html::html_content::{ContentType, Element};
use lol_html::send::{EndTagHandler, HtmlRewriter, Settings};
use lol_html::{AsciiCompatibleEncoding, MemorySettings, element};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::io::StreamReader;

/// Octets of HTML taken at a time.
const STEP: usize = 16 * 1024;
/// Octets that one document's rewriter may hold; past it the document goes on unchanged.
const REWRITER_MAX: usize = 1024 * 1024;

/// How a body is to be taken apart.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    charset: Charset,
    coding: Coding,
}

impl Plan {
    /// Reads it from an answer's headers. `None`: this is no HTML, or it cannot be taken apart.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let charset = html_charset(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)?;
        Some(Self { charset, coding: Coding::of(headers)? })
    }
}

/// The charset of an HTML page; `None` when it is no HTML, or cannot be rewritten.
fn html_charset(content_type: &str) -> Option<Charset> {
    let mut parts = content_type.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("text/html") {
        return None;
    }
    let label = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    match label {
        None => Some(Charset { encoding: AsciiCompatibleEncoding::utf_8(), declared: false }),
        Some(label) => {
            let encoding = AsciiCompatibleEncoding::new(Encoding::for_label(label.as_bytes())?)?;
            Some(Charset { encoding, declared: true })
        }
    }
}

#[derive(Clone, Copy)]
struct Charset {
    encoding: AsciiCompatibleEncoding,
    /// Whether the headers said it; else the document may.
    declared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Option<Self> {
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

type Source = Pin<Box<dyn AsyncRead + Send + Sync>>;
type Sink = Box<dyn FnMut(&[u8]) + Send>;
type Rewriter = HtmlRewriter<'static, Sink>;

/// A body with scripts put in. Gives out what it has whenever nothing more comes for now.
pub(super) struct Injected {
    source: Source,
    buffer: Box<[u8]>,
    /// `None` once the document has ended.
    rewriter: Option<Rewriter>,
    rewritten: Arc<Mutex<BytesMut>>,
    encoder: Encoder,
    /// Whether the encoder holds something back.
    unflushed: bool,
}

/// Writers into memory, which never wait.
enum Encoder {
    Identity(Vec<u8>),
    Gzip(GzipEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
    Brotli(Box<BrotliEncoder<Vec<u8>>>),
}

impl Injected {
    /// Puts `elements` into `body`.
    pub(super) fn new(body: Incoming, elements: &str, plan: Plan) -> Self {
        Self::over(BodyDataStream::new(body.map_err(io::Error::other)), elements, plan)
    }

    fn over<S>(stream: S, elements: &str, plan: Plan) -> Self
    where
        S: futures_util::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
    {
        let reader = StreamReader::new(stream);
        let rewritten = Arc::<Mutex<BytesMut>>::default();
        let (source, encoder): (Source, _) = match plan.coding {
            Coding::Identity => (Box::pin(reader), Encoder::Identity(Vec::new())),
            Coding::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                (Box::pin(decoder), Encoder::Gzip(GzipEncoder::new(Vec::new())))
            }
            Coding::Deflate => {
                (Box::pin(ZlibDecoder::new(reader)), Encoder::Deflate(ZlibEncoder::new(Vec::new())))
            }
            Coding::Brotli => {
                // The best quality, the default, takes seconds for a page.
                let quick = BrotliEncoder::with_quality(Vec::new(), async_compression::Level::Precise(4));
                (Box::pin(BrotliDecoder::new(reader)), Encoder::Brotli(Box::new(quick)))
            }
        };
        Self {
            source,
            buffer: vec![0; STEP].into(),
            rewriter: Some(rewriter(elements, plan.charset, rewritten.clone())),
            rewritten,
            encoder,
            unflushed: false,
        }
    }

    /// Whether everything was given out.
    pub(super) fn is_ended(&self) -> bool {
        self.rewriter.is_none() && self.encoder.output().is_empty()
    }

    /// The next piece of the body. Cancel safe.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if self.encoder.output().len() >= STEP || self.rewriter.is_none() {
                let output = std::mem::take(self.encoder.output_mut());
                return Poll::Ready((!output.is_empty()).then(|| Ok(output.into())));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let step = match self.source.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    let length = buffer.filled().len();
                    self.rewrite(length)
                }
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending if self.unflushed => {
                    self.unflushed = false;
                    self.encoder.flush()
                }
                Poll::Pending if self.encoder.output().is_empty() => return Poll::Pending,
                Poll::Pending => {
                    let output = std::mem::take(self.encoder.output_mut());
                    return Poll::Ready(Some(Ok(output.into())));
                }
            };
            if let Err(error) = step {
                self.rewriter = None;
                self.encoder.output_mut().clear();
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Takes the next `length` octets of the document; 0 is its end.
    fn rewrite(&mut self, length: usize) -> io::Result<()> {
        if length == 0 {
            if let Some(rewriter) = self.rewriter.take() {
                rewriter.end().map_err(io::Error::other)?;
            }
        } else if let Some(rewriter) = &mut self.rewriter {
            rewriter.write(&self.buffer[..length]).map_err(io::Error::other)?;
        }
        let output = self.rewritten.lock().split();
        if !output.is_empty() {
            self.unflushed = true;
            self.encoder.write(&output)?;
        }
        if length == 0 { self.encoder.end() } else { Ok(()) }
    }
}

impl Encoder {
    fn with<T>(&mut self, job: impl FnOnce(&mut (dyn AsyncWrite + Unpin + Send)) -> T) -> T {
        match self {
            Self::Identity(writer) => job(writer),
            Self::Gzip(writer) => job(writer),
            Self::Deflate(writer) => job(writer),
            Self::Brotli(writer) => job(writer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|writer| writer.write_all(bytes).now_or_never()).unwrap_or_else(would_wait)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(|writer| writer.flush().now_or_never()).unwrap_or_else(would_wait)
    }

    fn end(&mut self) -> io::Result<()> {
        self.with(|writer| writer.shutdown().now_or_never()).unwrap_or_else(would_wait)
    }

    fn output(&self) -> &Vec<u8> {
        match self {
            Self::Identity(output) => output,
            Self::Gzip(writer) => writer.get_ref(),
            Self::Deflate(writer) => writer.get_ref(),
            Self::Brotli(writer) => writer.get_ref(),
        }
    }

    fn output_mut(&mut self) -> &mut Vec<u8> {
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

/// A rewriter that puts `elements` at the first of the places that the contract lists.
fn rewriter(elements: &str, charset: Charset, output: Arc<Mutex<BytesMut>>) -> Rewriter {
    let bare: Arc<str> = elements.into();
    let whole: Arc<str> = format!("<head>{elements}</head>").into();
    let done = Arc::new(Mutex::new(false));
    // Whether it is this caller's turn to put them in: only the first gets it.
    let turn = move || !std::mem::replace(&mut *done.lock(), true);
    let at_head = turn.clone();
    let head = element!("head", move |head: &mut Element<'_, '_, _>| {
        if at_head() {
            head.prepend(&bare, ContentType::Html);
        }
        Ok(())
    });
    let (at_body, text) = (turn.clone(), whole.clone());
    let body = element!("body", move |body: &mut Element<'_, '_, _>| {
        if at_body() {
            body.before(&text, ContentType::Html);
        }
        Ok(())
    });
    let (at_html_end, text) = (turn.clone(), whole.clone());
    let html = element!("html", move |html: &mut Element<'_, '_, _>| {
        let (turn, text) = (at_html_end.clone(), text.clone());
        // Fails for an element that cannot have an end tag, which `html` is not.
        if let Some(handlers) = html.end_tag_handlers() {
            let handler: EndTagHandler<'static> = Box::new(move |end| {
                if turn() {
                    end.before(&text, ContentType::Html);
                }
                Ok(())
            });
            handlers.push(handler);
        }
        Ok(())
    });
    let end = lol_html::end!(move |end| {
        if turn() {
            end.append(&whole, ContentType::Html);
        }
        Ok(())
    });
    let memory = MemorySettings::new()
        .with_max_allowed_memory_usage(REWRITER_MAX)
        .with_graceful_bail_out_on_memory_limit_exceeded(true);
    let settings = Settings::new_send()
        .append_element_content_handler(head)
        .append_element_content_handler(body)
        .append_element_content_handler(html)
        .append_document_content_handler(end)
        .with_encoding(charset.encoding)
        .with_adjust_charset_on_meta_tag(!charset.declared)
        .with_strict(false)
        .with_memory_settings(memory);
    let sink: Sink = Box::new(move |bytes| output.lock().extend_from_slice(bytes));
    HtmlRewriter::new(settings, sink)
}

impl fmt::Debug for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injected").field("ended", &self.is_ended()).finish_non_exhaustive()
    }
}
