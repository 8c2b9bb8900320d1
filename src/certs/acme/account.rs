//! Accounts with authorities: one a directory, made once, kept over restarts.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use instant_acme::{Account, Error, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::client::Asker;
use super::door::Door;
use super::fault::{Asked, Fault, FaultKind, host};
use super::vault::{AccountFile, Lock, Vault};
use super::{off_thread, wait_for_lock};
use crate::config::{AcmeSettings, DirectorySettings, EabSettings};

/// The account at a directory, made if there is none, told of a changed address. A fault that is not
/// about one name alone closes the door.
pub(super) async fn open(
    vault: &Vault,
    acme: &AcmeSettings,
    directory: &DirectorySettings,
    asker: &Asker,
    asked: Asked<'_>,
    door: &Door,
) -> Result<Account, Fault> {
    let mut lock = None;
    let mut kept = look(vault, directory).await?;
    if kept.as_ref().is_none_or(|kept| kept.id.is_none() || kept.contact.as_ref() != Some(&acme.email)) {
        lock = Some(hold(vault, directory).await.map_err(|fault| door.close(fault))?);
        // Another name, or another process, may have been quicker, or have come too early.
        if let Some(fault) = door.is_closed() {
            return Err(fault);
        }
        kept = look(vault, directory).await?;
    }
    let id = kept.as_ref().and_then(|kept| kept.id.clone());
    let opened = opened(vault, acme, directory, asker, asked, kept).await;
    // While others still wait for the lock.
    let opened = opened.map_err(|fault| door.close(fault));
    if let (Err(Fault { kind: FaultKind::NoAccount, .. }), Some(id), Some(lock)) = (&opened, id, lock) {
        forget_held(vault, directory, id, lock).await?;
    }
    opened
}

/// Forgets an account that its directory does not know any more, unless another has taken its place.
pub(super) async fn forget(vault: &Vault, directory: &DirectorySettings, id: &str) -> Result<(), Fault> {
    let lock = hold(vault, directory).await?;
    forget_held(vault, directory, id.to_owned(), lock).await
}

async fn forget_held(
    vault: &Vault,
    directory: &DirectorySettings,
    id: String,
    lock: Lock,
) -> Result<(), Fault> {
    let (vault, url) = (vault.clone(), directory.url.clone());
    Ok(off_thread(move || vault.forget_account(&url, &id, &lock)).await??)
}

/// Takes the account for this attempt.
async fn hold(vault: &Vault, directory: &DirectorySettings) -> Result<Lock, Fault> {
    let (shared, url) = (vault.clone(), directory.url.clone());
    let lock = wait_for_lock(move || shared.lock_account(&url)).await?;
    lock.ok_or_else(|| busy(directory))
}

/// The lock must be held, unless what is kept is whole.
async fn opened(
    vault: &Vault,
    acme: &AcmeSettings,
    directory: &DirectorySettings,
    asker: &Asker,
    asked: Asked<'_>,
    kept: Option<AccountFile>,
) -> Result<Account, Fault> {
    let (account, mut file) = match (kept, &directory.eab) {
        (Some(file @ AccountFile { id: Some(_), .. }), _) => {
            let (id, key) = (file.id.clone().unwrap_or_default(), PrivatePkcs8KeyDer::from(decode(&file)?));
            let account =
                persist!(builder(asker).from_parts(id.clone(), key.clone_key(), file.directory.clone()));
            (account.map_err(|error| fault(&error, asker, asked))?, file)
        }
        (_, Some(eab)) => bound(vault, acme, directory, eab, asker, asked).await?,
        (kept, None) => fresh(vault, directory, kept, asker, asked).await?,
    };
    if file.contact.as_ref() != Some(&acme.email) {
        let contact = format!("mailto:{}", acme.email);
        match persist!(account.update_contacts(&[contact.as_str()])) {
            Ok(()) => {
                file.contact = Some(acme.email.clone());
                keep(vault, file).await?;
            }
            Err(error) => {
                let fault = fault(&error, asker, asked);
                // Whoever sets this up reads it; later, a certificate is worth more than an address.
                if file.contact.is_none() || fault.kind == FaultKind::NoAccount {
                    return Err(fault);
                }
                tracing::warn!(directory = %directory.url, fault = fault.kind.word(), "{}", fault.text);
            }
        }
    }
    Ok(account)
}

async fn look(vault: &Vault, directory: &DirectorySettings) -> Result<Option<AccountFile>, Fault> {
    let (vault, url) = (vault.clone(), directory.url.clone());
    Ok(off_thread(move || vault.account(&url)).await??)
}

fn busy(directory: &DirectorySettings) -> Fault {
    let text = format!(
        "another order, or another process, still waits for `{}` to answer for the account there; it is asked again later",
        host(&directory.url)
    );
    Fault::new(FaultKind::DirectoryUnreachable, text)
}

/// A new account whose key is on disk before the directory hears of it: the same key makes the same
/// account again, whatever happens in between (RFC 8555, section 7.3.1).
async fn fresh(
    vault: &Vault,
    directory: &DirectorySettings,
    kept: Option<AccountFile>,
    asker: &Asker,
    asked: Asked<'_>,
) -> Result<(Account, AccountFile), Fault> {
    let mut file = match kept {
        Some(file) => file,
        None => {
            let (_, key) = Key::generate_pkcs8().map_err(|error| fault(&error, asker, asked))?;
            let key = URL_SAFE_NO_PAD.encode(key.secret_pkcs8_der());
            let file = AccountFile { directory: directory.url.clone(), key, id: None, contact: None };
            keep(vault, file.clone()).await?;
            file
        }
    };
    let der = decode(&file)?;
    let pair = || {
        let der = PrivatePkcs8KeyDer::from(der.clone());
        Key::from_pkcs8_der(der.clone_key()).map(|key| (key, PrivateKeyDer::Pkcs8(der)))
    };
    // Looked at once before, so that each attempt can have its own.
    pair().map_err(|error| fault(&error, asker, asked))?;
    let made = persist!(async { builder(asker).create_from_key(pair()?, directory.url.clone()).await });
    let (account, _) = made.map_err(|error| fault(&error, asker, asked))?;
    file.id = Some(account.id().to_owned());
    keep(vault, file.clone()).await?;
    tracing::info!(directory = %directory.url, account = account.id(), "made an account");
    Ok((account, file))
}

/// A new account that is bound to one made elsewhere. The protocol's library takes no key for such a
/// one, so that its key is on disk only once the directory has answered: a process that ends in between
/// leaves an account that nobody has the key of, and the next attempt makes another.
async fn bound(
    vault: &Vault,
    acme: &AcmeSettings,
    directory: &DirectorySettings,
    eab: &EabSettings,
    asker: &Asker,
    asked: Asked<'_>,
) -> Result<(Account, AccountFile), Fault> {
    let text = eab.key.reveal();
    // Authorities show it in base64url; some people's tools in the other alphabet.
    let engines = [&URL_SAFE_NO_PAD, &URL_SAFE, &STANDARD_NO_PAD, &STANDARD];
    let Some(mac) = engines.iter().find_map(|engine| engine.decode(text).ok()) else {
        let text = format!(
            "the `eab_key` for `{}` is not base64; copy it as the authority shows it",
            host(&directory.url)
        );
        return Err(Fault::new(FaultKind::NotBound, text));
    };
    let contact = format!("mailto:{}", acme.email);
    let wish =
        NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
    let binding = ExternalAccountKey::new(eab.key_id.clone(), &mac);
    let made = persist!(builder(asker).create(&wish, directory.url.clone(), Some(&binding)));
    let (account, credentials) = made.map_err(|error| fault(&error, asker, asked))?;
    let file = AccountFile {
        directory: directory.url.clone(),
        key: URL_SAFE_NO_PAD.encode(credentials.private_key().secret_pkcs8_der()),
        id: Some(account.id().to_owned()),
        contact: Some(acme.email.clone()),
    };
    keep(vault, file.clone()).await?;
    tracing::info!(directory = %directory.url, account = account.id(), "made an account");
    Ok((account, file))
}

fn builder(asker: &Asker) -> instant_acme::AccountBuilder {
    Account::builder_with_http(Box::new(asker.clone()))
}

pub(super) fn decode(file: &AccountFile) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(&file.key).map_err(|_| {
        let text = format!(
            "the kept account key for `{}` is torn; remove its file below `acme/accounts`",
            file.directory
        );
        Fault::new(FaultKind::Local, text)
    })
}

async fn keep(vault: &Vault, file: AccountFile) -> Result<(), Fault> {
    let vault = vault.clone();
    Ok(off_thread(move || vault.set_account(&file)).await??)
}

fn fault(error: &Error, asker: &Asker, asked: Asked<'_>) -> Fault {
    let fault = Fault::of(error, Asked { way: None, ..asked });
    // An account is every name's.
    Fault { retry_after: fault.retry_after.or(asker.retry_after()), is_general: true, ..fault }
}
