//! Standard input and output as one byte stream that never holds up the end of the process.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd as _};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(target_os = "linux")]
use tokio::net::unix::pipe;

/// Two halves as one stream. Once its writing half is shut down, its reading half ends, too: when
/// the server has closed, nothing that is still to be read would find a taker.
pub struct Stdio {
    input: Pin<Box<dyn AsyncRead + Send>>,
    output: Pin<Box<dyn AsyncWrite + Send>>,
    is_over: bool,
    reader: Option<Waker>,
}

impl Stdio {
    /// The standard streams of this process. Must be called within a runtime.
    ///
    /// Pipes, which is what SSH clients give, are read without a thread between, and none is
    /// changed for the programs that share it. Anything else goes through a thread,
    /// which a read from a terminal may hold: end the process with [`std::process::exit`].
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(input(), output())
    }

    /// Two halves as one.
    pub fn new(input: impl AsyncRead + Send + 'static, output: impl AsyncWrite + Send + 'static) -> Self {
        Self { input: Box::pin(input), output: Box::pin(output), is_over: false, reader: None }
    }
}

#[cfg(target_os = "linux")]
fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    let polled: io::Result<Box<dyn AsyncRead + Send + Unpin>> =
        pollable(&io::stdin()).and_then(|way| match way {
            Pollable::Afresh(place) => Ok(Box::new(pipe::OpenOptions::new().open_receiver(place)?) as _),
            Pollable::Socket(socket) => Ok(Box::new(tokio::net::UnixStream::from_std(socket)?) as _),
        });
    polled.unwrap_or_else(|_| Box::new(tokio::io::stdin()))
}

#[cfg(target_os = "linux")]
fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    let polled: io::Result<Box<dyn AsyncWrite + Send + Unpin>> =
        pollable(&io::stdout()).and_then(|way| match way {
            Pollable::Afresh(place) => Ok(Box::new(pipe::OpenOptions::new().open_sender(place)?) as _),
            Pollable::Socket(socket) => Ok(Box::new(tokio::net::UnixStream::from_std(socket)?) as _),
        });
    polled.unwrap_or_else(|_| Box::new(tokio::io::stdout()))
}

/// How a stream can be polled. Not to wait (`O_NONBLOCK`) is a property of what was opened, and so
/// of all programs that share it, even after this one; so it is never set on what is shared.
#[cfg(target_os = "linux")]
enum Pollable {
    /// A pipe, by opening it once more: what is opened afresh shares nothing.
    Afresh(std::path::PathBuf),
    /// A socket on which nobody waits anyway. Any stream socket serves; one that is of another
    /// family just has no such address.
    Socket(std::os::unix::net::UnixStream),
}

/// Fails for what can only be read and written by waiting. Such is a pipe with a name, of which a
/// new reader would not hear that the last writer had gone before it came (`fifo(7)`).
#[cfg(target_os = "linux")]
fn pollable(stream: &impl AsFd) -> io::Result<Pollable> {
    let place = format!("/proc/self/fd/{}", stream.as_fd().as_raw_fd());
    let leads_to = std::fs::read_link(&place)?.display().to_string();
    if leads_to.starts_with("pipe:") {
        return Ok(Pollable::Afresh(place.into()));
    }
    let never_waits = rustix::fs::fcntl_getfl(stream)?.contains(rustix::fs::OFlags::NONBLOCK);
    if never_waits && leads_to.starts_with("socket:") {
        return Ok(Pollable::Socket(stream.as_fd().try_clone_to_owned()?.into()));
    }
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    Box::new(tokio::io::stdin())
}

#[cfg(not(target_os = "linux"))]
fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(tokio::io::stdout())
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Ready(Ok(()));
        }
        let polled = self.input.as_mut().poll_read(cx, buf);
        if polled.is_pending() {
            self.reader = Some(cx.waker().clone());
        }
        polled
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.output.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.output.as_mut().poll_shutdown(cx);
        if polled.is_ready() {
            self.is_over = true;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        polled
    }
}
