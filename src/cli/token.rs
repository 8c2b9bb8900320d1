//! `oneport token`: a token of an agent's own key, on standard output.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use oneport::agent::SigningKey;

use super::print;

/// Prints a token, or the key's profile id.
pub fn run(key: Option<&Path>, valid: Duration, profile: bool) -> anyhow::Result<ExitCode> {
    if profile {
        // The public half is enough where it is there, and needs no passphrase.
        let beside =
            key.map(|key| PathBuf::from(format!("{}.pub", key.display()))).filter(|public| public.is_file());
        let key = SigningKey::open(beside.as_deref().or(key), ask)?;
        print(&format!("{}\n", key.profile()?));
        return Ok(ExitCode::SUCCESS);
    }
    let key = SigningKey::open(key, ask)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let token = runtime.block_on(key.token(time::OffsetDateTime::now_utc(), valid))?;
    print(&format!("{token}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Asks on the terminal, whatever the standard streams are.
fn ask(path: &Path) -> Result<String, String> {
    rpassword::prompt_password(format!("Passphrase of {}: ", path.display())).map_err(|error| {
        format!("its passphrase cannot be asked for without a terminal ({error}); name the public half of a key that is in the ssh-agent")
    })
}
