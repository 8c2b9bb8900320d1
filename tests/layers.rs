//! The guard of the house: which room may import which, how long a file and a function may be,
//! where tasks are spawned, and where bytes are copied. `ARCHITECTURE.md` says why.
//!
//! It reads the source as text, with comments and literals blanked, and needs no compiler.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the one that imports nothing to the one that imports all.
const ORDER: &[&str] = &[
    "name", "observe", "net", "config", "access", "registry", "certs", "agent", "ssh", "http", "edge",
    "admin", "app", "cli", "main",
];
/// Neighbours that never import each other, whatever the order says.
const STRANGERS: &[(&str, &str)] = &[("ssh", "http")];
/// Longest file, in lines, up to its tests.
const FILE_MAX: usize = 400;
/// Longest function, in lines, unless a comment gives the reason.
const FUNCTION_MAX: usize = 60;
/// The comment that gives it, in the lines right above the function or in its first lines.
const LONG_BECAUSE: &str = "long because";
/// The one file that may spawn.
const SPAWNER: &str = "net/tasks.rs";

/// A rule that a file breaks.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

#[test]
fn the_house_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(
        files.len() > 20,
        "found only {} files under {}: the guard looks in the wrong place",
        files.len(),
        root.display()
    );
    let breaches: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(&root).expect("below the root").display().to_string();
            check(&name, &fs::read_to_string(path).expect("a source file is UTF-8"))
        })
        .map(|breach| breach.to_string())
        .collect();
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

/// All faults of one file; `file` is its path below `src`.
fn check(file: &str, source: &str) -> Vec<Breach> {
    let code = blank(source);
    let end = tests_begin(&code);
    let code: Vec<&str> = code.lines().take(end).collect();
    let source: Vec<&str> = source.lines().take(end).collect();
    let mut breaches = Vec::new();
    let mut say = |line: usize, what: String| breaches.push(Breach { file: file.to_owned(), line, what });

    if !source.first().is_some_and(|line| line.starts_with("//! ")) {
        say(1, "no module doc: begin with `//! `, saying what this file does and refuses".to_owned());
    }
    if end > FILE_MAX {
        say(end, format!("{end} lines, and {FILE_MAX} are the most: this file is two things"));
    }
    for (line, room) in imports(&code) {
        if let Err(what) = may_import(room_of(file), &room) {
            say(line, what);
        }
    }
    for (index, line) in code.iter().enumerate() {
        if file != SPAWNER && SPAWNS.iter().any(|call| line.contains(call)) {
            say(index + 1, "a task without an owner: spawn through `net::Tasks`".to_owned());
        }
        if COPIES.iter().any(|call| line.contains(call)) {
            say(index + 1, "a second byte copy: use `net::copy_both`".to_owned());
        }
    }
    for function in functions(&code) {
        let reason_from = function.line.saturating_sub(4);
        let reason = source[reason_from..(function.line + 3).min(source.len())]
            .iter()
            .any(|line| line.contains(LONG_BECAUSE));
        if function.length > FUNCTION_MAX && !reason {
            say(
                function.line,
                format!(
                    "function of {} lines, and {FUNCTION_MAX} are the most: split it, or say `// {LONG_BECAUSE} …`",
                    function.length
                ),
            );
        }
    }
    breaches
}

/// Calls that start a task which nobody waits for.
const SPAWNS: &[&str] = &["tokio::spawn(", "task::spawn(", "task::spawn_local(", "runtime::Handle::current("];
/// Byte copies of the runtime, and what they would be imported as.
const COPIES: &[&str] =
    &["io::copy(", "io::copy_buf(", "copy_bidirectional", "io::{copy", " copy, ", "io::copy;"];

/// The room of a file: its first folder, or the name of a file at the top.
fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// Whether `from` may import `to`; the error says why not.
fn may_import(from: &str, to: &str) -> Result<(), String> {
    if from == to || from == "lib" {
        return Ok(());
    }
    let place = |room: &str| ORDER.iter().position(|known| *known == room);
    let Some(from_place) = place(from) else {
        return Err(format!(
            "room `{from}` is not in the order of rooms; add it to tests/layers.rs and ARCHITECTURE.md"
        ));
    };
    // Not a room: an item at the crate root, or a crate's own name.
    let Some(to_place) = place(to) else { return Ok(()) };
    if STRANGERS.iter().any(|pair| *pair == (from, to) || *pair == (to, from)) {
        return Err(format!(
            "sideways import: `{from}` and `{to}` never import each other; they meet in `registry`"
        ));
    }
    if to_place > from_place {
        return Err(format!("upward import: `{from}` comes before `{to}`"));
    }
    Ok(())
}

/// The rooms that the code names, by `crate::ROOM`, `oneport::ROOM` or `crate::{ROOM, …}`, with
/// their lines.
fn imports(code: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let text = code.join("\n");
    for prefix in ["crate::", "oneport::"] {
        for (at, _) in text.match_indices(prefix) {
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let line = text[..at].matches('\n').count() + 1;
            let rest = &text[at + prefix.len()..];
            let heads = match rest.strip_prefix('{') {
                Some(group) => group_heads(group),
                None => vec![word(rest)],
            };
            found.extend(heads.into_iter().map(|room| (line, room)));
        }
    }
    found
}

/// The first word of each entry at the top level of a `{…}` group.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                heads.push(word(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// A function with a body.
struct Function {
    /// The line of `fn`, counted from one.
    line: usize,
    /// Lines from `fn` to its closing brace.
    length: usize,
}

fn functions(code: &[&str]) -> Vec<Function> {
    let text = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        let named = word(&text[at + 3..]);
        if named.is_empty() || text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        // A declaration without a body ends in `;` at the depth it began at.
        let (mut depth, mut nested, mut end) = (0i32, 0i32, None);
        for (offset, c) in text[at..].char_indices() {
            match c {
                '(' | '[' => nested += 1,
                ')' | ']' => nested -= 1,
                ';' if depth == 0 && nested == 0 => break,
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth <= 0 {
                        end = Some(at + offset);
                        break;
                    }
                }
                _ => {}
            }
        }
        if let Some(end) = end {
            let line = text[..at].matches('\n').count() + 1;
            found.push(Function { line, length: text[at..end].matches('\n').count() + 1 });
        }
    }
    found
}

/// How many lines come before the first `#[cfg(test)]`.
fn tests_begin(code: &str) -> usize {
    code.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or_else(|| code.lines().count())
}

/// The source with what stands in comments, strings and character literals turned to spaces;
/// lines stay where they are.
fn blank(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = literal_length(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if length == 0 {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..at + length].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at += length;
        }
    }
    out
}

/// How long the comment or literal is that begins here; zero when none does.
fn literal_length(rest: &[char], before: Option<char>) -> usize {
    let until = |from: usize, stop: &dyn Fn(usize) -> bool| {
        (from..rest.len()).find(|at| stop(*at)).unwrap_or(rest.len())
    };
    match (rest[0], rest.get(1).copied()) {
        ('/', Some('/')) => until(2, &|at| rest[at] == '\n'),
        ('/', Some('*')) => {
            (until(2, &|at| rest[at] == '*' && rest.get(at + 1) == Some(&'/')) + 2).min(rest.len())
        }
        ('"', _) => quoted_length(rest, '"'),
        ('r', Some('"' | '#')) if !before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_') => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return 0;
            }
            let closes = |at: usize| {
                rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes
            };
            (until(2 + hashes, &closes) + 1 + hashes).min(rest.len())
        }
        // A character, and not a lifetime.
        ('\'', Some('\\')) => quoted_length(rest, '\''),
        ('\'', Some(_)) if rest.get(2) == Some(&'\'') => 3,
        _ => 0,
    }
}

fn quoted_length(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("a folder of the source").path();
        // Unit tests that fill files of their own are no part of the house.
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The guard must be able to fail: each rule, broken once.
mod proof {
    use super::*;

    /// What the guard says of a file in `room` with this code after a module doc.
    fn said(file: &str, code: &str) -> Vec<String> {
        check(file, &format!("//! A doc.\n{code}\n")).into_iter().map(|breach| breach.what).collect()
    }

    fn refuses(file: &str, code: &str, because: &str) {
        let said = said(file, code);
        assert!(said.iter().any(|what| what.contains(because)), "{code:?} in {file}: {said:?}");
    }

    fn accepts(file: &str, code: &str) {
        assert_eq!(said(file, code), Vec::<String>::new(), "{code:?} in {file}");
    }

    #[test]
    fn refuses_an_upward_import_however_written() {
        refuses("net/io.rs", "use crate::http::Http;", "upward");
        refuses("net/io.rs", "use crate::{name::HostName, edge};", "upward");
        refuses("net/io.rs", "use crate::{name::{HostName, ClientId}, app::run};", "upward");
        refuses("registry/claim.rs", "fn f() { let x = crate::certs::load(); }", "upward");
        refuses("app/mod.rs", "use crate::cli::run;", "upward");
        refuses("name.rs", "use crate::observe::Reason;", "upward");
    }

    #[test]
    fn refuses_a_sideways_import() {
        refuses("ssh/mod.rs", "use crate::http::Http;", "sideways");
        refuses("http/mod.rs", "use crate::ssh::Ssh;", "sideways");
    }

    #[test]
    fn accepts_what_goes_down() {
        accepts("app/mod.rs", "use crate::{edge, http::Http, ssh};");
        accepts("http/mod.rs", "use crate::registry::Registry;\nuse super::ssh_words;");
        accepts("http/mod.rs", "// as crate::ssh does\nconst X: &str = \"crate::ssh\";");
        accepts("lib.rs", "pub use crate::app::run;");
        accepts("main.rs", "use oneport::app;");
    }

    #[test]
    fn refuses_a_room_that_nobody_placed() {
        refuses("attic/mod.rs", "use crate::name::HostName;", "not in the order");
    }

    #[test]
    fn refuses_a_missing_module_doc() {
        assert_eq!(check("name.rs", "use std::fmt;\n").len(), 1);
    }

    #[test]
    fn refuses_a_long_file_but_does_not_count_its_tests() {
        refuses("name.rs", &"const A: u8 = 0;\n".repeat(401), "this file is two things");
        accepts("name.rs", &format!("#[cfg(test)]\nmod tests {{\n{}}}", "const A: u8 = 0;\n".repeat(500)));
    }

    #[test]
    fn refuses_a_long_function_without_a_reason() {
        let long = |reason: &str| format!("{reason}fn f() {{\n{}}}", "    g();\n".repeat(60));
        refuses("name.rs", &long(""), "split it");
        refuses("name.rs", &format!("impl X {{\npub async {}\n}}", long("")), "split it");
        accepts("name.rs", &long("// long because it is one table\n"));
        accepts("name.rs", &format!("fn f() {{\n{}}}\nfn h() {{\n}}", "    g();\n".repeat(58)));
        accepts(
            "name.rs",
            &format!("trait T {{\n fn f(&self);\n{} }}", "    const A: [u8; 3];\n".repeat(80)),
        );
    }

    #[test]
    fn refuses_a_task_without_an_owner() {
        refuses("http/mod.rs", "fn f() { tokio::spawn(async {}); }", "without an owner");
        refuses("http/mod.rs", "fn f() { task::spawn(async {}); }", "without an owner");
        accepts("net/tasks.rs", "fn f() { tokio::spawn(async {}); }");
        accepts("http/mod.rs", "fn f() { tasks.spawn(\"x\", async {}); }");
    }

    #[test]
    fn refuses_a_second_byte_copy() {
        refuses("http/mod.rs", "async fn f() { tokio::io::copy(&mut a, &mut b).await; }", "second byte copy");
        refuses("http/mod.rs", "use tokio::io::copy_bidirectional;", "second byte copy");
        refuses("http/mod.rs", "use tokio::io::{copy, AsyncRead};", "second byte copy");
    }

    #[test]
    fn literals_and_comments_are_not_code() {
        let source = "let a = \"tokio::spawn(\"; // io::copy(\nlet b = r#\"crate::ssh \"{\" \"#; let c = '\"'; let d: &'a str = x;";
        let blanked = blank(source);
        assert_eq!(blanked.lines().count(), 2);
        assert!(!blanked.contains("spawn") && !blanked.contains("copy") && !blanked.contains("ssh"));
        assert!(blanked.ends_with("let d: &'a str = x;"), "{blanked}");
    }
}
