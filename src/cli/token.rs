//! `oneport token`: a token of an agent's own key, on standard output.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use oneport::agent::{SigningKey, SshSettings, TokenError, UsualKey, public_half, usual_keys};
use oneport::name::Thumbprint;
use oneport::observe::shell_word;

use super::{print, say};

/// Whose token.
pub enum Whose<'a> {
    /// Of the key in this file.
    Key(&'a Path),
    /// Of the key that `ssh` would take for this host, or for any.
    Ssh(Option<&'a str>),
}

/// Prints a token, or the key's profile id.
pub fn run(whose: &Whose<'_>, valid: Duration, profile: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let key = match *whose {
        Whose::Ssh(host) => Wanted::Usual(Box::new(runtime.block_on(usual(host))?)),
        Whose::Key(path) => Wanted::Named(path),
    };
    if profile {
        print(&format!("{}\n", key.profile()?));
        return Ok(ExitCode::SUCCESS);
    }
    let token = runtime.block_on(key.open()?.token(time::OffsetDateTime::now_utc(), valid))?;
    print(&format!("{token}\n"));
    Ok(ExitCode::SUCCESS)
}

/// The key that `ssh` would try first; says which, where it is not the only one.
async fn usual(host: Option<&str>) -> anyhow::Result<UsualKey> {
    let mut keys = usual_keys(&SshSettings::of(host, None).await?).await.into_iter();
    let key = keys.next().context(
        "no key: the ssh-agent holds none, if there is one, and no file is there that `ssh` would try; name one with `--key`, or make one with `ssh-keygen -t ed25519`",
    )?;
    if keys.next().is_some() {
        let ssh = host.map_or_else(|| "`ssh`".to_owned(), |host| format!("`ssh {}`", shell_word(host)));
        let or_host = if host.is_none() { ", for what `ssh` takes for one host `--host HOST`" } else { "" };
        say(&format!(
            "oneport: taking the key that {ssh} would try first: {}; for another `--key FILE`{or_host}",
            key.shown()
        ));
    }
    Ok(key)
}

/// A key that is not opened yet.
enum Wanted<'a> {
    Named(&'a Path),
    Usual(Box<UsualKey>),
}

impl Wanted<'_> {
    fn open(&self) -> Result<SigningKey, TokenError> {
        match self {
            Self::Named(path) => SigningKey::open(path, ask),
            Self::Usual(key) => SigningKey::usual(key, ask),
        }
    }

    /// Of the public half where it can be had, which needs no passphrase.
    fn profile(&self) -> Result<Thumbprint, TokenError> {
        match self {
            Self::Named(path) => {
                let beside = public_half(path);
                SigningKey::open(if beside.is_file() { &beside } else { path }, ask)?.profile()
            }
            Self::Usual(key) => key.public().map_or_else(|| self.open()?.profile(), SigningKey::profile_of),
        }
    }
}

/// Asks on the terminal, whatever the standard streams are.
fn ask(path: &Path) -> Result<String, String> {
    rpassword::prompt_password(format!("Passphrase of {}: ", path.display())).map_err(|error| {
        format!("its passphrase cannot be asked for without a terminal ({error}); name the public half of a key that is in the ssh-agent")
    })
}
