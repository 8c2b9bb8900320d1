//! Takes an HTML body apart as it streams by, puts elements in, and packs it again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use encoding_rs::Encoding;
use http::header::{self, HeaderMap};
use http_body_util::BodyDataStream;
use lol_html::html_content::{ContentType, Element};
use lol_html::send::{EndTagHandler, HtmlRewriter, Settings};
use lol_html::{AsciiCompatibleEncoding, MemorySettings, element};
use parking_lot::Mutex;
use tokio::io::ReadBuf;
use tokio::time::Sleep;
use tokio_util::io::StreamReader;

use super::coding::{Coding, Decoder, Encoder};
use super::exchange::{Exchange, FAREWELL};

/// Octets of HTML taken at a time.
const STEP: usize = 16 * 1024;
/// Octets of HTML after which other tasks get their turn: a few packed ones can be gigabytes.
const TURN: usize = 64 * 1024;
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

type Sink = Box<dyn FnMut(&[u8]) + Send>;
type Rewriter = HtmlRewriter<'static, Sink>;

/// A body with scripts put in. Gives out what it has whenever nothing more comes for now, and
/// whenever the body breaks off.
pub(super) struct Injected {
    decoder: Decoder,
    buffer: Box<[u8]>,
    /// `None`: what comes goes on as it is.
    rewriter: Option<Rewriter>,
    rewritten: Arc<Mutex<BytesMut>>,
    encoder: Encoder,
    /// Whether the encoder holds something back.
    unflushed: bool,
    /// Octets of HTML that were taken since another task had its turn.
    taken: usize,
    end: End,
}

enum End {
    NotYet,
    /// Everything was taken.
    Whole,
    /// The body broke off; this is said when what came before has had time to go out.
    Broken(io::Error, Pin<Box<Sleep>>),
    /// And it was said.
    Told,
}

impl Injected {
    /// Puts `elements` into `body`.
    pub(super) fn new(body: Exchange, elements: &str, plan: Plan) -> Self {
        let reader = StreamReader::new(BodyDataStream::new(body));
        let rewritten = Arc::<Mutex<BytesMut>>::default();
        Self {
            decoder: Decoder::new(plan.coding, Box::pin(reader)),
            buffer: vec![0; STEP].into(),
            rewriter: Some(rewriter(elements, plan.charset, rewritten.clone())),
            rewritten,
            encoder: Encoder::new(plan.coding),
            unflushed: false,
            taken: 0,
            end: End::NotYet,
        }
    }

    /// Whether everything was given out; never, when the body broke off.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.end, End::Whole) && self.encoder.output().is_empty()
    }

    /// The next piece of the body. Cancel safe.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let waiting = self.encoder.output().len();
            if waiting >= STEP || (waiting > 0 && !matches!(self.end, End::NotYet)) {
                return self.give();
            }
            match &mut self.end {
                End::NotYet => {}
                End::Whole | End::Told => return Poll::Ready(None),
                End::Broken(_, pause) => {
                    ready!(pause.as_mut().poll(cx));
                    let End::Broken(error, _) = std::mem::replace(&mut self.end, End::Told) else { continue };
                    return Poll::Ready(Some(Err(error)));
                }
            }
            if self.taken >= TURN {
                self.taken = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let read = self.decoder.poll_read(cx, &mut buffer);
            let length = buffer.filled().len();
            let step = match read {
                Poll::Ready(Ok(())) => self.rewrite(length),
                // What came before it counts as well.
                Poll::Ready(Err(error)) if length > 0 => self.rewrite(length).and(Err(error)),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending if self.unflushed => {
                    self.unflushed = false;
                    self.encoder.flush()
                }
                Poll::Pending if waiting > 0 => return self.give(),
                Poll::Pending => {
                    self.taken = 0;
                    return Poll::Pending;
                }
            };
            if let Err(error) = step {
                self.break_off(error);
            }
        }
    }

    fn give(&mut self) -> Poll<Option<io::Result<Bytes>>> {
        Poll::Ready(Some(Ok(std::mem::take(self.encoder.output_mut()).into())))
    }

    /// Takes the next `length` octets of the document; 0 is its end.
    fn rewrite(&mut self, length: usize) -> io::Result<()> {
        if self.rewriter.is_some() && self.decoder.is_untouched() {
            self.rewriter = None;
            self.encoder = Encoder::new(Coding::Identity);
        }
        self.taken += length;
        match &mut self.rewriter {
            Some(rewriter) if length > 0 => {
                if let Err(error) = rewriter.write(&self.buffer[..length]) {
                    // It must not be used again after an error.
                    self.rewriter = None;
                    return Err(io::Error::other(error));
                }
            }
            Some(_) => self.end_document()?,
            None => self.encoder.write(&self.buffer[..length])?,
        }
        self.encode()?;
        if length == 0 {
            self.end = End::Whole;
            self.encoder.end()?;
        }
        Ok(())
    }

    fn end_document(&mut self) -> io::Result<()> {
        self.rewriter.take().map_or(Ok(()), |rewriter| rewriter.end().map_err(io::Error::other))
    }

    fn encode(&mut self) -> io::Result<()> {
        let output = self.rewritten.lock().split();
        if !output.is_empty() {
            self.unflushed = true;
            self.encoder.write(&output)?;
        }
        Ok(())
    }

    /// Ends early: what came until now goes out, without an end.
    fn break_off(&mut self, error: io::Error) {
        // There is an error already; a second one would say no more.
        let _ = self.end_document().and_then(|()| self.encode()).and_then(|()| self.encoder.flush());
        self.end = End::Broken(error, Box::pin(tokio::time::sleep(FAREWELL)));
    }
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
