//! The SSH library's callbacks, in our words.
//!
//! They run inside the session's own loop: nothing here may wait for this session's peer. The
//! library's task for a session has room for them twice, and for the largest of their futures, for as
//! long as the session lives: so all of them are behind a pointer, and what is large is boxed while
//! it runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use russh::keys::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Pty, Sig};
use tokio::sync::{Semaphore, mpsc};

use super::forward::{self, ForwardError};
use super::opener::ChannelOpener;
use super::session::{Claim, ForwardKey, Session};
use super::terminal::{self, Ask};
use super::window::{Rekey, Window};
use crate::access::{AccessLevel, Identity, Login};
use crate::config::NetworkSettings;
use crate::observe::Reason;
use crate::registry::Holder as _;

/// Session channels that one session may have open.
const TERMINALS_MAX: usize = 8;
/// Until this long after its start, a session is being set up.
const SET_UP: Duration = Duration::from_secs(10);

type Library = russh::server::Session;
type Done<T = ()> = Result<T, russh::Error>;

/// What the library calls.
pub struct Callbacks(Box<State>);

struct State {
    session: Arc<Session>,
    terminals: HashMap<ChannelId, mpsc::Sender<Ask>>,
    /// Places for those that are open, or have something left to say.
    places: Arc<Semaphore>,
    terminals_opened: usize,
    /// Why the last key was refused, for whoever asks.
    refusal: Option<String>,
    authenticated_at: Option<Instant>,
    window: Window,
    rekey: Rekey,
}

impl Callbacks {
    /// Callbacks for one session, which the library gives new keys after so many octets.
    pub fn new(session: Arc<Session>, rekey_after: u64) -> Self {
        Self(Box::new(State {
            session,
            rekey: Rekey::new(rekey_after),
            terminals: HashMap::new(),
            places: Arc::new(Semaphore::new(TERMINALS_MAX)),
            terminals_opened: 0,
            refusal: None,
            authenticated_at: None,
            window: Window::new(),
        }))
    }
}

impl State {
    /// Refuses a key, and offers the client a method that only serves to say why: there the
    /// person reads a sentence instead of a bare "Permission denied".
    ///
    /// The more logins from there have failed, the longer it takes.
    async fn refuse_key(&mut self, words: String) -> Auth {
        tracing::info!(conn = %self.session.conn, peer = %self.session.peer, reason = %Reason::KeyNotAllowed, detail = words, "key refused");
        self.session.shared.metrics.ssh.keys_refused.one();
        self.refusal = Some(words);
        self.session.refuse_key();
        let pause = self.session.shared.admission.failures().pause(self.session.peer.ip(), Login::Ssh);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let methods = [MethodKind::PublicKey, MethodKind::KeyboardInteractive];
        Auth::Reject { proceed_with_methods: Some(MethodSet::from(&methods[..])), partial_success: false }
    }

    /// Answers a forward request. A refusal during set-up ends an OpenSSH session with the
    /// words in its disconnect message: OpenSSH shows these, and nothing else that a server
    /// could say to a refused forward.
    fn refused(&mut self, error: &ForwardError, library: &mut Library) -> bool {
        let (session, reason) = (&self.session, error.reason());
        session.shared.metrics.ssh.forwards_refused.one(reason);
        tracing::info!(conn = %session.conn, peer = %session.peer, %reason, detail = error.for_log(), "forward refused");
        let setting_up =
            self.terminals_opened == 0 && self.authenticated_at.is_some_and(|at| at.elapsed() < SET_UP);
        if setting_up && session.link.software().starts_with("OpenSSH") {
            let words = format!("{error} ({reason})");
            // It can only fail when the session is ending anyhow.
            let _ = library.disconnect(Disconnect::ByApplication, &words, "");
            session.end_soon(reason);
        } else {
            session.tell_refusal(&format!("{error} ({reason})"));
        }
        false
    }

    async fn claim_path(&self, path: &str) -> Result<(), ForwardError> {
        let request = forward::parse(path)?;
        let key = ForwardKey::Path(path.into());
        let claim = Claim {
            raw_name: request.path,
            request_id: path.into(),
            access: request.access,
            meta: request.meta,
            inject: request.inject,
            bounds: self.session.shared.admission.tunnel(&request.networks),
            opener: ChannelOpener::new(self.session.clone(), key.clone()),
            key,
        };
        self.session.claim(claim).await.map(drop)
    }

    /// Claims for a TCP forward; the value is the port that the client is told.
    async fn claim_tcp(&self, address: &str, port: u32) -> Result<u32, ForwardError> {
        let user = self.session.user().cloned().ok_or(ForwardError::Ending)?;
        let name = forward::parse_tcp(address, port, &user)?;
        // A client that asks for port 0 learns a port, and finds the forward again by it.
        let given = if port == 0 { 443 } else { port };
        let key = ForwardKey::Tcp(address.into(), given);
        let claim = Claim {
            raw_name: name.to_owned(),
            request_id: name.into(),
            access: AccessLevel::Public,
            meta: serde_json::Map::new(),
            inject: Vec::new(),
            bounds: self.session.shared.admission.tunnel(&NetworkSettings::default()),
            opener: ChannelOpener::new(self.session.clone(), key.clone()),
            key,
        };
        self.session.claim(claim).await.map(|_| given)
    }

    /// Passes a request on to its channel; the answer tells the client whether it was taken.
    fn ask(&self, channel: ChannelId, ask: Ask, library: &mut Library) -> Done {
        let taken = self.terminals.get(&channel).is_some_and(|asks| asks.try_send(ask).is_ok());
        if taken { library.channel_success(channel) } else { library.channel_failure(channel) }
    }
}

impl Handler for Callbacks {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Done<Auth> {
        self.0.session.refuse_attempt();
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Done<Auth> {
        let session = &self.0.session;
        Ok(match session.shared.keys.check(offer.public_key, session.peer.ip()) {
            Ok(()) => Auth::Accept,
            Err(refusal) => Box::pin(self.0.refuse_key(refusal.to_string())).await,
        })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Done<Auth> {
        let session = &self.0.session;
        if let Err(refusal) = session.shared.keys.check(key.public_key, session.peer.ip()) {
            return Ok(Box::pin(self.0.refuse_key(refusal.to_string())).await);
        }
        session.authenticate(user, Identity::of(key.public_key));
        self.0.authenticated_at = Some(Instant::now());
        // Said by ending the session, because that is what a client shows.
        if !Box::pin(session.place.take(session)).await {
            session.end(Reason::TooManySessions);
        }
        Ok(Auth::Accept)
    }

    async fn auth_openssh_certificate(&mut self, _: &str, certificate: &Certificate) -> Done<Auth> {
        let id = certificate.key_id();
        let words = format!("SSH certificates are not taken here (`{id}`); offer the plain key");
        Ok(Box::pin(self.0.refuse_key(words)).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Done<Auth> {
        if response.is_none()
            && let Some(refusal) = self.0.refusal.take()
        {
            let (name, instructions) = ("".into(), format!("oneport: {refusal}").into());
            return Ok(Auth::Partial { name, instructions, prompts: (&[][..]).into() });
        }
        self.0.session.refuse_attempt();
        let methods = MethodSet::from(&[MethodKind::PublicKey][..]);
        Ok(Auth::Reject { proceed_with_methods: Some(methods), partial_success: false })
    }

    async fn streamlocal_forward(&mut self, path: &str, library: &mut Library) -> Done<bool> {
        match Box::pin(self.0.claim_path(path)).await {
            Ok(()) => Ok(true),
            Err(error) => Ok(self.0.refused(&error, library)),
        }
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _: &mut Library) -> Done<bool> {
        Ok(self.0.session.cancel(&ForwardKey::Path(path.into())))
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, library: &mut Library) -> Done<bool> {
        match Box::pin(self.0.claim_tcp(address, *port)).await {
            Ok(given) => {
                *port = given;
                Ok(true)
            }
            Err(error) => Ok(self.0.refused(&error, library)),
        }
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Library) -> Done<bool> {
        Ok(self.0.session.cancel(&ForwardKey::Tcp(address.into(), port)))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Library,
    ) -> Done {
        let state = &mut *self.0;
        state.terminals.retain(|_, asks| !asks.is_closed());
        let Ok(place) = state.places.clone().try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        state.terminals_opened += 1;
        let id = channel.id();
        let tasks = state.session.shared.tasks.clone();
        state.terminals.insert(id, terminal::open(channel, &state.session, &tasks, place));
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        library: &mut Library,
    ) -> Done {
        self.0.ask(channel, Ask::Pty, library)
    }

    async fn shell_request(&mut self, channel: ChannelId, library: &mut Library) -> Done {
        self.0.ask(channel, Ask::Shell, library)
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], library: &mut Library) -> Done {
        self.0.ask(channel, Ask::exec(line), library)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, _: &str, library: &mut Library) -> Done {
        library.channel_failure(channel)
    }

    async fn env_request(&mut self, channel: ChannelId, _: &str, _: &str, library: &mut Library) -> Done {
        library.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        library: &mut Library,
    ) -> Done {
        library.channel_failure(channel)
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, library: &mut Library) -> Done {
        match signal {
            Sig::INT | Sig::TERM | Sig::HUP | Sig::QUIT | Sig::KILL => {
                self.0.ask(channel, Ask::Interrupt, library)
            }
            _ => Ok(()),
        }
    }

    fn adjust_window(&mut self, channel: ChannelId, _: u32) -> u32 {
        let State { session, window, rekey, .. } = &mut *self.0;
        let asked = session.link.asked.load(Ordering::Relaxed);
        window.next(channel, session.link.counts(), asked, &session.round_trip, rekey)
    }

    // The channel's own reader takes the data itself.
    async fn data(&mut self, _: ChannelId, data: &[u8], _: &mut Library) -> Done {
        self.0.rekey.count(data.len());
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Library) -> Done {
        self.0.terminals.remove(&channel);
        Ok(())
    }
}
