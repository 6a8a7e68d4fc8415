//! Which of a commit's tags is its version.

use std::cmp::Ordering;

/// The tag that names a commit best: the highest of those that look like versions (`v1.4.0`, `2.0-rc1`), where there is none the
/// last in the alphabet.
pub fn best_tag<'t>(tags: impl IntoIterator<Item = &'t str>) -> Option<&'t str> {
    tags.into_iter().max_by(|a, b| compare_tags(a, b))
}

/// The order of two tags: names before versions, versions by their numbers, a pre-release before its release.
pub fn compare_tags(a: &str, b: &str) -> Ordering {
    match (version(a), version(b)) {
        (Some((a_numbers, a_rest)), Some((b_numbers, b_rest))) => {
            // Nothing behind the numbers is the release itself, which comes after all its candidates.
            a_numbers.cmp(&b_numbers).then(a_rest.is_empty().cmp(&b_rest.is_empty())).then(a_rest.cmp(b_rest))
        }
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => Ordering::Equal,
    }
    .then_with(|| a.cmp(b))
}

/// The numbers of a version without zeros at their end, and what stands behind them.
fn version(tag: &str) -> Option<(Vec<u64>, &str)> {
    let text = tag.rsplit('/').next().unwrap_or(tag);
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (numbers, rest) = text.split_at_checked(end)?;
    let mut numbers = numbers.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    // What follows `+` says how it was built, not what comes first.
    Some((numbers, rest.split('+').next().unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_wins_and_names_only_where_there_is_none() {
        assert_eq!(best_tag(["v1.9.0", "v1.10.0", "zebra", "v1.10.0-rc2"]), Some("v1.10.0"));
        assert_eq!(best_tag(["2.0-rc1", "1.9", "shop/v1.99"]), Some("2.0-rc1"));
        assert_eq!(best_tag(["beta", "alpha"]), Some("beta"));
        assert_eq!(best_tag(["v1", "v1.0.0"]), Some("v1.0.0"), "equal versions have one order all the same");
        assert_eq!(best_tag(["99999999999999999999.0", "v1.0"]), Some("v1.0"));
        assert_eq!(best_tag([]), None);
    }
}
