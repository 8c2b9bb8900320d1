//! Standard input and output as one byte stream that never holds up the end of the process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    /// Pipes and sockets, which is what SSH clients give, are read without a thread between.
    /// Anything else goes through a thread, which a read from a terminal may hold: end the
    /// process with [`std::process::exit`].
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(input(), output())
    }

    /// Two halves as one.
    pub fn new(input: impl AsyncRead + Send + 'static, output: impl AsyncWrite + Send + 'static) -> Self {
        Self { input: Box::pin(input), output: Box::pin(output), is_over: false, reader: None }
    }
}

#[cfg(unix)]
fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    use std::os::fd::AsFd as _;
    match pollable(std::io::stdin().as_fd()) {
        Some(Pollable::Pipe(fd)) => match tokio::net::unix::pipe::Receiver::from_owned_fd(fd) {
            Ok(pipe) => Box::new(pipe),
            Err(_) => Box::new(tokio::io::stdin()),
        },
        Some(Pollable::Socket(socket)) => Box::new(socket),
        None => Box::new(tokio::io::stdin()),
    }
}

#[cfg(unix)]
fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    use std::os::fd::AsFd as _;
    match pollable(std::io::stdout().as_fd()) {
        Some(Pollable::Pipe(fd)) => match tokio::net::unix::pipe::Sender::from_owned_fd(fd) {
            Ok(pipe) => Box::new(pipe),
            Err(_) => Box::new(tokio::io::stdout()),
        },
        Some(Pollable::Socket(socket)) => Box::new(socket),
        None => Box::new(tokio::io::stdout()),
    }
}

#[cfg(unix)]
enum Pollable {
    Pipe(std::os::fd::OwnedFd),
    Socket(tokio::net::UnixStream),
}

#[cfg(unix)]
fn pollable(fd: std::os::fd::BorrowedFd<'_>) -> Option<Pollable> {
    use std::os::unix::fs::FileTypeExt as _;
    let file = std::fs::File::from(fd.try_clone_to_owned().ok()?);
    let kind = file.metadata().ok()?.file_type();
    if kind.is_fifo() {
        return Some(Pollable::Pipe(file.into()));
    }
    if !kind.is_socket() {
        return None;
    }
    let socket = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(file));
    // Any stream socket serves; one that is of another family just has no such address.
    socket.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(socket).ok().map(Pollable::Socket)
}

#[cfg(not(unix))]
fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    Box::new(tokio::io::stdin())
}

#[cfg(not(unix))]
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
