//! Puts scripts into HTML answers while they stream by.
//!
//! Which elements, where and under which entity tag is the contract's. What cannot be taken
//! apart (an unknown coding, a charset that is no superset of ASCII) is passed on as it is.

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
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use lol_html::html_content::{ContentType, Element};
use lol_html::send::{EndTagHandler, HtmlRewriter, Settings};
use lol_html::{AsciiCompatibleEncoding, MemorySettings, element};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::io::StreamReader;

use crate::registry::Script;

/// Octets of HTML taken at a time.
const STEP: usize = 16 * 1024;
/// Octets that one document's rewriter may hold; past it the document goes on unchanged.
const REWRITER_MAX: usize = 1024 * 1024;
/// What is put in front of the hash within an entity tag.
const TAG_MARK: &str = "+preevy:";
/// The codings that can be taken apart.
const CODINGS: [&str; 7] = ["gzip", "x-gzip", "deflate", "br", "identity", "*", ""];
/// Digests of a body that is going to change.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("content-md5"),
];

/// The scripts for one request.
#[derive(Debug)]
pub(super) struct Injection {
    elements: String,
    tag_suffix: String,
    /// Whether the request's conditions held an entity tag of ours.
    conditional: bool,
}

impl Injection {
    /// The scripts that match the path; `None` when no script does.
    pub(super) fn of(scripts: &[Script], path: &str) -> Option<Self> {
        let matching = |script: &&Script| script.path.as_ref().is_none_or(|pattern| pattern.is_match(path));
        let elements: String = scripts.iter().filter(matching).map(script_element).collect();
        let tag_suffix = format!("{TAG_MARK}{}", base36(fnv1a(elements.as_bytes())));
        (!elements.is_empty()).then_some(Self { elements, tag_suffix, conditional: false })
    }

    /// Prepares the request: entity tags lose our suffix, and no coding is offered that could not
    /// be taken apart.
    pub(super) fn prepare(&mut self, headers: &mut HeaderMap) {
        let marked = format!("{}\"", self.tag_suffix);
        for name in [header::IF_NONE_MATCH, header::IF_MATCH] {
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            for value in values.iter_mut() {
                // Another suffix is that of other scripts: the visitor's copy is out of date then.
                let Some(plain) = value.to_str().ok().filter(|tags| tags.contains(&marked)) else { continue };
                if let Ok(plain) = HeaderValue::try_from(plain.replace(&marked, "\"")) {
                    *value = plain;
                    self.conditional = true;
                }
            }
        }
        let known = |word: &&str| CODINGS.contains(&word.split(';').next().unwrap_or_default().trim());
        let Entry::Occupied(mut values) = headers.entry(header::ACCEPT_ENCODING) else { return };
        for value in values.iter_mut() {
            let kept: Vec<_> = value.to_str().unwrap_or_default().split(',').filter(known).collect();
            let kept = if kept.is_empty() { "identity".to_owned() } else { kept.join(",") };
            if let Ok(kept) = HeaderValue::try_from(kept.trim()) {
                *value = kept;
            }
        }
    }

    /// Decides whether this answer gets the scripts, and changes its headers if it does. Gives
    /// what takes the body apart; `None`: the body stays as it is.
    pub(super) fn adjust(
        &self,
        method: &Method,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Option<Plan> {
        if status == StatusCode::NOT_MODIFIED && self.conditional {
            self.mark_tag(headers);
        }
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::PARTIAL_CONTENT];
        if status.is_informational() || bodiless.contains(&status) {
            return None;
        }
        let charset = html_charset(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)?;
        let coding = Coding::of(headers)?;
        self.mark_tag(headers);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        for name in DIGESTS {
            headers.remove(name);
        }
        (*method != Method::HEAD).then_some(Plan { charset, coding })
    }

    fn mark_tag(&self, headers: &mut HeaderMap) {
        if let Some(tag) = headers.get_mut(header::ETAG)
            && let Some(head) = tag.to_str().ok().and_then(|tag| tag.strip_suffix('"'))
            && let Ok(marked) = HeaderValue::try_from(format!("{head}{}\"", self.tag_suffix))
        {
            *tag = marked;
        }
    }
}

/// The element for a script, exactly as the contract's entity tags hash it.
fn script_element(script: &Script) -> String {
    let src = script.src.replace('"', "&quot;");
    let flag = |on, word| if on { word } else { "" };
    format!(
        "<script src=\"{src}\"{}{}></script>",
        flag(script.is_async, " async"),
        flag(script.defer, " defer")
    )
}

/// 32-bit FNV-1a (draft-eastlake-fnv, section 2).
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.is_empty() {
        digits.push(char::from_digit(number % 36, 36).unwrap_or('0'));
        number /= 36;
    }
    digits.iter().rev().collect()
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

/// How a body is to be taken apart.
pub(super) struct Plan {
    charset: Charset,
    coding: Coding,
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
    /// Puts the scripts of `injection` into `body`.
    pub(super) fn new(body: Incoming, injection: &Injection, plan: &Plan) -> Self {
        Self::over(BodyDataStream::new(body.map_err(io::Error::other)), injection, plan)
    }

    fn over<S>(stream: S, injection: &Injection, plan: &Plan) -> Self
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
            rewriter: Some(rewriter(&injection.elements, plan.charset, rewritten.clone())),
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
