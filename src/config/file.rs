//! The configuration file: TOML, read strictly. An unknown name is a fault, never ignored.

use std::path::Path;

use super::list::{SETTINGS, find};
use super::nearest::nearest;
use super::written::{Given, Value, Written};
use super::{Fault, Faults};

/// Reads the file; what its values mean is not looked at. Unknown names come as faults.
///
/// # Errors
/// When it cannot be read, or is not TOML.
pub(super) fn read(path: &Path) -> Result<(Written, Vec<Fault>), Faults> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!("cannot be read: {error}; check the path given to `--config`");
        Faults(vec![Fault::new(path.display().to_string(), what)])
    })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<(Written, Vec<Fault>), Faults> {
    let root: toml::Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
        let place = format!("{}:{line}", path.display());
        Faults(vec![Fault::new(place, format!("not TOML: {}", error.message().replace('\n', " ")))])
    })?;
    let mut written = Written::default();
    let mut faults = Vec::new();
    for (name, value) in root {
        open(&name, value, path, &mut written, &mut faults);
    }
    Ok((written, faults))
}

/// Takes a value, or what is in a section. Sections lie only as deep as those of the list do.
fn open(name: &str, value: toml::Value, path: &Path, written: &mut Written, faults: &mut Vec<Fault>) {
    match value {
        toml::Value::Table(section) if is_section(name) => {
            for (inner, value) in section {
                open(&format!("{name}.{inner}"), value, path, written, faults);
            }
        }
        value => take(name, value, path, written, faults),
    }
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn take(name: &str, value: toml::Value, path: &Path, written: &mut Written, faults: &mut Vec<Fault>) {
    if let Some(setting) = find(name) {
        let folder = path.parent().map(Path::to_owned);
        written
            .given
            .insert(setting.path, Given { place: name.to_owned(), folder, value: Value::Toml(value) });
        return;
    }
    let sections =
        SETTINGS.iter().filter_map(|setting| setting.path.split_once('.').map(|(section, _)| section));
    let what = if is_section(name) {
        format!("this is a section; write `[{name}]` and its settings below")
    } else if value.is_table() && !name.contains('.') {
        match nearest(name, sections) {
            Some(near) => format!("there is no such section; did you mean `[{near}]`?"),
            None => "there is no such section; see docs/configuration.md for all".to_owned(),
        }
    } else {
        match nearest(name, SETTINGS.iter().map(|setting| setting.path)) {
            Some(near) => format!("there is no such setting; did you mean `{near}`?"),
            None => "there is no such setting; see docs/configuration.md for all".to_owned(),
        }
    };
    faults.push(Fault::new(name, what));
}
