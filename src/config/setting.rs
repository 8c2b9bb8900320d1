//! What a setting is.

/// A setting that can be written.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its path in the file, such as `ssh.raw`.
    pub path: &'static str,
    /// What kind of value it takes, for people.
    pub kind: &'static str,
    /// The default as it would be written in an environment variable; empty: none, or derived.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

impl Setting {
    /// The environment variable that sets it: `ONEPORT_` and the path in capitals.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

/// What every variable of ours begins with.
pub(super) const ENV_PREFIX: &str = "ONEPORT_";

/// For the list of them.
pub(super) const fn setting(
    path: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { path, kind, default, meaning }
}

/// The parts of the list one behind the other; `N` is how many settings they have together.
pub(super) const fn joined<const N: usize>(parts: &[&[Setting]]) -> [Setting; N] {
    let mut all = [parts[0][0]; N];
    let (mut part, mut filled) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            all[filled] = parts[part][index];
            (index, filled) = (index + 1, filled + 1);
        }
        part += 1;
    }
    all
}
