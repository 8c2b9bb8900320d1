//! An agent made of the SSH library's own client, over TLS as our own agents come: it does with its
//! channels what a test likes, and what OpenSSH never would.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use russh::Channel;
use russh::client::{self, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::public::{KeyData, SkEd25519};
use russh::keys::{
    HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, decode_secret_key,
    signature, ssh_key,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::agent::vector_key;
use super::gateway::Gateway;
use super::visitor::tls_async;

type Treat = dyn Fn(Visit) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// A session of `me` with the key `ed25519a`, or one that a security key of its own would hold.
pub struct LibraryAgent {
    pub runtime: tokio::runtime::Runtime,
    pub handle: Handle<Answers>,
    opened: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    /// Keeps the connection open whatever the library does.
    socket: Option<std::net::TcpStream>,
}

/// A channel that the gateway asks for.
pub struct Visit {
    /// How many came before it.
    pub number: usize,
    pub channel: Channel<Msg>,
    /// Answers the open.
    pub reply: ChannelOpenHandle,
}

/// What the library calls.
pub struct Answers {
    treat: Box<Treat>,
    opened: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl client::Handler for Answers {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let treated = (self.treat)(Visit { number, channel, reply });
        let ended = self.ended.clone();
        tokio::spawn(async move {
            treated.await;
            ended.fetch_add(1, Ordering::Relaxed);
        });
        Ok(())
    }
}

impl Visit {
    /// Answers the first request with `answer`, ends what it sends, and waits for the gateway's end.
    pub async fn answer_and_end(self, answer: &[u8]) {
        self.reply.accept().await;
        let mut stream = self.channel.into_stream();
        let mut heard = vec![0; 4096];
        let _ = stream.read(&mut heard).await;
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut heard).await, Ok(1..)) {}
    }
}

impl LibraryAgent {
    /// Logs in, asks for `request`, and has each visit treated as `treat` says.
    #[track_caller]
    pub fn start<F>(
        gateway: &Gateway,
        request: &str,
        treat: impl Fn(Visit) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // A small queue would let this client dead-lock itself, whatever the gateway does.
        let config = client::Config { nodelay: true, channel_buffer_size: 4096, ..client::Config::default() };
        let agent = Self::begin(gateway, config, Login { stays: false, in_device: false }, treat);
        agent.runtime.block_on(agent.handle.streamlocal_forward(request)).expect("forwards");
        agent
    }

    /// The same with a key of the kind that lies in security keys (FIDO), which signs logins and nothing
    /// else. What the device would do is done here.
    #[track_caller]
    pub fn with_security_key<F>(
        gateway: &Gateway,
        request: &str,
        treat: impl Fn(Visit) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let config = client::Config { nodelay: true, ..client::Config::default() };
        let agent = Self::begin(gateway, config, Login { stays: false, in_device: true }, treat);
        agent.runtime.block_on(agent.handle.streamlocal_forward(request)).expect("forwards");
        agent
    }

    /// Logs in only, and never hangs up as long as the value lives.
    #[track_caller]
    pub fn that_stays(gateway: &Gateway, config: client::Config) -> Self {
        Self::begin(gateway, config, Login { stays: true, in_device: false }, |_| async {})
    }

    #[track_caller]
    fn begin<F>(
        gateway: &Gateway,
        config: client::Config,
        login: Login,
        treat: impl Fn(Visit) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (opened, ended) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let treat: Box<Treat> = Box::new(move |visit| Box::pin(treat(visit)));
        let answers = Answers { treat, opened: opened.clone(), ended: ended.clone() };
        let (handle, socket) = runtime.block_on(log_in(gateway, config, login, answers));
        Self { runtime, handle, opened, ended, socket }
    }

    /// Whether the gateway has ended the connection of one that stays.
    pub fn is_cut_off(&self) -> bool {
        let mut all = [0; 4096];
        let mut socket = self.socket.as_ref().expect("it stays");
        loop {
            match io::Read::read(&mut socket, &mut all) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Channels that were asked for.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Channels that came and went.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Asks for one more name, and looks whether any session has ended.
    #[track_caller]
    pub fn assert_lives(&self, gateway: &Gateway) {
        self.runtime.block_on(self.handle.streamlocal_forward("/again")).expect("the session lives on");
        let ended = |record: &serde_json::Value| record["message"] == "session ended";
        assert!(!gateway.log().iter().any(ended), "a session ended: {}", gateway.stderr());
    }
}

async fn log_in(
    gateway: &Gateway,
    config: client::Config,
    login: Login,
    answers: Answers,
) -> (Handle<Answers>, Option<std::net::TcpStream>) {
    let Login { stays, in_device } = login;
    let key = vector_key("ed25519a");
    let key = decode_secret_key(key["openssh_private_key"].as_str().expect("a key"), None).expect("a key");
    let stream = tls_async(gateway, "gw.test", &["ssh"]).await;
    let socket = stays.then(|| stream.get_ref().0.as_fd().try_clone_to_owned().expect("a descriptor").into());
    let stream = Stream { stream, stays };
    let mut handle = client::connect_stream(Arc::new(config), stream, answers).await.expect("SSH");
    if in_device {
        let KeyData::Ed25519(public) = key.public_key().key_data() else { panic!("another kind") };
        let public = PublicKey::from(KeyData::SkEd25519(SkEd25519::new(*public, APPLICATION)));
        let mut device = Device(key);
        let answer = handle.authenticate_publickey_with("me", public, None, &mut device).await;
        assert!(answer.expect("answers").success());
        return (handle, socket);
    }
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(handle.authenticate_publickey("me", key).await.expect("answers").success());
    (handle, socket)
}

/// How to log in.
#[derive(Clone, Copy)]
struct Login {
    /// Whether the connection stays open whatever the library does.
    stays: bool,
    /// Whether the key is as one that lies in a device.
    in_device: bool,
}

/// What a device's keys are for.
const APPLICATION: &str = "ssh:";

/// Signs as a device does (OpenSSH's PROTOCOL.u2f).
struct Device(PrivateKey);

impl russh::Signer for Device {
    type Error = russh::AgentAuthError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, russh::AgentAuthError> {
        let sha256 =
            |octets: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, octets).as_ref().to_vec();
        // Somebody touched it, for the first time.
        let flags_and_counter = [1, 0, 0, 0, 1];
        let signed = [&sha256(APPLICATION.as_bytes())[..], &flags_and_counter, &sha256(&to_sign)].concat();
        let signature = signature::Signer::<ssh_key::Signature>::try_sign(&self.0, &signed).expect("signs");
        let mut blob = Vec::new();
        for part in [b"sk-ssh-ed25519@openssh.com", signature.as_bytes()] {
            blob.extend_from_slice(&u32::try_from(part.len()).expect("short").to_be_bytes());
            blob.extend_from_slice(part);
        }
        blob.extend_from_slice(&flags_and_counter);
        to_sign.extend_from_slice(&u32::try_from(blob.len()).expect("short").to_be_bytes());
        to_sign.extend_from_slice(&blob);
        Ok(to_sign)
    }
}

/// A connection whose end perhaps nobody is told of.
struct Stream {
    stream: TlsStream<TcpStream>,
    stays: bool,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stays {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }
}
