//! When an authority wants a certificate renewed (ARI, RFC 9773).

use std::time::Duration;

use instant_acme::{Account, Error};
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;

use super::attempt::identifier;
use super::client::Asker;
use super::fault::Fault;
use super::known::Known;
use super::vault::{Kept, Window};
use super::{Inner, account, off_thread, times};
use crate::name::CertName;
use crate::observe::shown_time;

/// When to ask again where there was no answer.
const AGAIN: Duration = Duration::from_secs(60 * 60);

impl Inner {
    /// Asks the authority for a certificate's window, and writes down what it says. The name must be
    /// held.
    pub(super) async fn ask_window(&self, name: &CertName, known: &mut Known) -> Result<(), Fault> {
        let Known { kept: Some(kept), status, .. } = known else { return Ok(()) };
        let now = OffsetDateTime::now_utc();
        let (window, wait) = match self.window(kept).await {
            Ok((window, wait)) => (Some(window), wait),
            Err(error) => {
                tracing::debug!(%name, %error, "the authority does not say when to renew");
                (None, AGAIN)
            }
        };
        let served = &kept.served;
        status.ask_at = Some(now + times::ask_again(wait, served.not_before, served.not_after));
        if let Some(window) = window.filter(|window| status.window.as_ref() != Some(window)) {
            let renew_at = times::by_window(&window, times::chance());
            tracing::info!(%name, start = shown_time(window.start), end = shown_time(window.end), renew_at = shown_time(renew_at), "the authority says when to renew");
            status.renew_at = Some(renew_at);
            status.window = Some(window);
        }
        self.write(name, status.clone()).await
    }

    async fn window(&self, kept: &Kept) -> Result<(Window, Duration), Error> {
        let url = &kept.about.directory;
        let directories = &self.acme.directories;
        let index = directories.iter().position(|directory| directory.url == *url);
        let index = index.ok_or(Error::Str("the certificate comes from elsewhere"))?;
        let identifier = identifier(kept).ok_or(Error::Str("the certificate cannot be named"))?;
        let failed = |fault: Fault| Error::Other(fault.text.into());
        let asker = Asker::new(self.doors[index].client(&directories[index]).await.map_err(failed)?);
        let (vault, url) = (self.vault.clone(), url.clone());
        let file = off_thread(move || Ok(vault.account(&url)?)).await.and_then(|file| file);
        let file = file.map_err(failed)?.ok_or(Error::Str("the account is gone"))?;
        let key = PrivatePkcs8KeyDer::from(account::decode(&file).map_err(failed)?);
        let builder = Account::builder_with_http(Box::new(asker));
        // The request is not signed: who asks does not matter.
        let account = builder.from_parts(file.id.unwrap_or_default(), key, file.directory).await?;
        let (info, wait) = account.renewal_info(&identifier).await?;
        Ok((Window { start: info.suggested_window.start, end: info.suggested_window.end }, wait))
    }
}
