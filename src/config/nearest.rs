//! A hint for somebody who wrote a name that there is not: the nearest that there is. Pure.

/// A hint for somebody who wrote `wrong`: the nearest of `names`, if one is near.
pub(super) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| {
        let whole = strsim::damerau_levenshtein(wrong, name);
        // Right name, wrong section: as good as one typing mistake.
        let (wrong_tail, tail) = (last_part(wrong), last_part(name));
        let in_tail = strsim::damerau_levenshtein(wrong_tail, tail);
        let is_near = whole <= (wrong.len() / 3).max(2);
        let is_tail_near = in_tail <= wrong_tail.len() / 4;
        (is_near || is_tail_near).then(|| if is_tail_near { whole.min(in_tail + 1) } else { whole })
    };
    names.into_iter().filter_map(|name| Some((distance(name)?, name))).min().map(|(_, name)| name)
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;

    #[test]
    fn near_names_are_found() {
        let near = |wrong| nearest(wrong, SETTINGS.iter().map(|setting| setting.path));
        assert_eq!(near("ssh.authorised_keys"), Some("ssh.authorized_keys"));
        assert_eq!(near("allow_any_key"), Some("ssh.allow_any_key"));
        assert_eq!(near("http.raw"), Some("ssh.raw"));
        assert_eq!(near("listne"), Some("listen"));
        assert_eq!(near("something.else"), None);
    }
}
