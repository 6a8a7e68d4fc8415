//! Chooses the version of a commit from the commit's tags. This file is the only place that compares version numbers.

use std::cmp::Ordering;

/// Returns the best tag of a commit: the highest version (`v1.4.0`, `2.0-rc1`), or else the last tag in alphabetical order.
pub fn best_tag<'t>(tags: impl IntoIterator<Item = &'t str>) -> Option<&'t str> {
    tags.into_iter().max_by(|a, b| compare_tags(a, b))
}

/// Compares two tags. A tag that is not a version is lower than a version, versions are compared by their numbers, and a pre-release is
/// lower than its release.
pub fn compare_tags(a: &str, b: &str) -> Ordering {
    match (version(a), version(b)) {
        (Some((a_numbers, a_rest)), Some((b_numbers, b_rest))) => {
            // A version without a suffix is a release, which is higher than its pre-releases.
            a_numbers.cmp(&b_numbers).then(a_rest.is_empty().cmp(&b_rest.is_empty())).then(a_rest.cmp(b_rest))
        }
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => Ordering::Equal,
    }
    .then_with(|| a.cmp(b))
}

/// Splits a version into its numbers, without trailing zeros, and its suffix. Returns `None` if the tag is not a version.
fn version(tag: &str) -> Option<(Vec<u64>, &str)> {
    let text = tag.rsplit('/').next().unwrap_or(tag);
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (numbers, rest) = text.split_at_checked(end)?;
    let mut numbers = numbers.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    // Build metadata after `+` has no precedence (semver.org, item 10).
    Some((numbers, rest.split('+').next().unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_version_is_the_best_tag_even_if_there_are_names() {
        assert_eq!(best_tag(["v1.9.0", "v1.10.0", "zebra", "v1.10.0-rc2"]), Some("v1.10.0"));
        assert_eq!(best_tag(["2.0-rc1", "1.9", "shop/v1.99"]), Some("2.0-rc1"));
        assert_eq!(best_tag(["beta", "alpha"]), Some("beta"));
        assert_eq!(best_tag(["v1", "v1.0.0"]), Some("v1.0.0"), "equal versions are ordered by their text");
        assert_eq!(best_tag(["99999999999999999999.0", "v1.0"]), Some("v1.0"));
        assert_eq!(best_tag([]), None);
    }
}
