//! Commands in our sentences: whoever copies one must be able to run it.

/// A word as a POSIX shell takes it, in the plainest quotes that hold it.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if !text.is_empty() && text.chars().all(|c| is_plain(c) || c == ' ') {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_word_that_was_meant() {
        for text in ["/a/b-c.d", "two words", "*.gw.test", "it's 100% $HOME \\ \"", ""] {
            let line = format!("printf '%s.' {}", shell_word(text));
            let output = std::process::Command::new("sh").args(["-c", &line]).output().expect("a shell");
            assert_eq!(String::from_utf8(output.stdout).expect("text"), format!("{text}."));
        }
        assert_eq!(shell_word("/a/b-c.d"), "/a/b-c.d");
    }
}
