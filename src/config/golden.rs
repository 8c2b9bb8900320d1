//! Golden tests: each `tests/golden/config/NAME.toml` (and `NAME.env`, if there) leads to what
//! `NAME.resolved` or `NAME.faults` says. `BLESS=1 cargo test` writes what is found.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Faults, SETTINGS, Settings, Source};

/// Leads from the golden files' folder, which is where the tests' paths point.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn agree(path: &Path, found: &str) -> Result<(), String> {
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, found).expect("writable");
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    if wanted == found {
        return Ok(());
    }
    Err(format!("{} differs; found:\n{found}\nlook at it, then BLESS=1", path.display()))
}

fn load(file: &Path, env: Vec<(String, String)>) -> Result<Settings, Faults> {
    Source::new(Some(file.to_owned()), env).read().map(|reading| reading.settings)
}

fn env_of(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn golden_files() {
    let folder = root().join("tests/golden/config");
    let mut problems = Vec::new();
    let mut count = 0;
    for item in fs::read_dir(&folder).expect("the folder is there") {
        let path = item.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let (wanted, other, found) = match load(&path, env_of(&path.with_extension("env"))) {
            Ok(settings) => ("resolved", "faults", format!("{settings:#?}\n")),
            Err(faults) => ("faults", "resolved", format!("{faults}\n")),
        };
        let found = found.replace(&format!("{}/", folder.display()), "");
        problems.extend(agree(&path.with_extension(wanted), &found).err());
        if path.with_extension(other).exists() {
            problems.push(format!("{} exists, but now comes: {found}", path.with_extension(other).display()));
        }
    }
    assert!(count >= 5, "golden files are missing");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_example_loads() {
    let settings = load(&root().join("deploy/oneport.toml"), Vec::new()).expect("valid");
    assert_eq!(settings.base.host.as_str(), "preview.example.com");
}

/// The example shows every setting, each with its default unless it is active.
#[test]
fn the_example_is_complete() {
    let text = fs::read_to_string(root().join("deploy/oneport.toml")).expect("readable");
    let mut section = String::new();
    let mut shown = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ") {
            shown.push(format!("{section}{name}"));
        }
    }
    for setting in SETTINGS {
        assert!(shown.iter().any(|path| path == setting.path), "`{}` is not shown", setting.path);
    }
}

/// No example sets a variable that does not exist.
#[test]
fn variables_in_examples_exist() {
    let mut seen = 0;
    for path in
        ["deploy/oneport.service", "deploy/Containerfile", "deploy/kubernetes.yaml", "docs/configuration.md"]
    {
        let text = fs::read_to_string(root().join(path)).expect("readable");
        for word in text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_') {
            if word.starts_with("ONEPORT_") && word.len() > "ONEPORT_".len() {
                let exists = SETTINGS.iter().any(|setting| setting.variable() == word);
                assert!(exists, "`{word}` in {path} is no variable");
                seen += 1;
            }
        }
    }
    assert!(seen > SETTINGS.len());
}

#[test]
fn the_documentation_lists_all() {
    const BEGIN: &str = "<!-- settings: begin -->\n";
    const END: &str = "<!-- settings: end -->";
    let path = root().join("docs/configuration.md");
    let text = fs::read_to_string(&path).expect("readable");
    let (before, rest) = text.split_once(BEGIN).expect("the begin mark");
    let (_, after) = rest.split_once(END).expect("the end mark");
    let mut table = String::from("| setting, variable | value | default | meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let default =
            if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
        let (path, variable) = (setting.path, setting.variable());
        writeln!(table, "| `{path}`<br>`{variable}` | {} | {default} | {} |", setting.kind, setting.meaning)
            .expect("a string takes all");
    }
    agree(&path, &format!("{before}{BEGIN}{table}{END}{after}"))
        .unwrap_or_else(|problem| panic!("{problem}"));
}
