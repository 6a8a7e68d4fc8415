//! Chooses the version of a commit from the commit's tags, and distinguishes tags from release numbers. This file is the only place that
//! compares version numbers.

use std::cmp::Ordering;

use super::ReleaseNumber;

/// The form of a name that a user gives to a release. Every command that accepts such a name splits the name by [`ReleaseNameForm::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseNameForm<'t> {
    /// `v` and digits, such as `v3`: always a number, even if a tag has this name. `None` if no release can have the number.
    Number(Option<ReleaseNumber>),
    /// The tag in `refs/tags/TAG`. A tag with the form of a number can only be named in this way.
    Tag(&'t str),
    /// A tag, the id of a release or a commit, or the beginning of such an id.
    Text(&'t str),
}

impl<'t> ReleaseNameForm<'t> {
    /// Returns the form of a name.
    pub fn of(name: &'t str) -> ReleaseNameForm<'t> {
        if let Some(tag) = name.strip_prefix("refs/tags/") {
            return ReleaseNameForm::Tag(tag);
        }
        let digits = name.strip_prefix('v').unwrap_or_default();
        if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
            return ReleaseNameForm::Number(name.parse().ok());
        }
        ReleaseNameForm::Text(name)
    }

    /// Returns the tag that the name can mean: the name itself, or the tag in `refs/tags/TAG`. A number is never a tag.
    pub fn tag(self) -> Option<&'t str> {
        match self {
            ReleaseNameForm::Number(_) => None,
            ReleaseNameForm::Tag(tag) | ReleaseNameForm::Text(tag) => Some(tag),
        }
    }
}

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
    fn name_with_the_form_of_a_number_is_a_tag_only_below_refs_tags() {
        use ReleaseNameForm::{Number, Tag, Text};
        assert_eq!(ReleaseNameForm::of("v3"), Number(Some(ReleaseNumber(3))));
        assert_eq!(ReleaseNameForm::of("v0"), Number(None));
        assert_eq!(ReleaseNameForm::of("v99999999999"), Number(None));
        assert_eq!(ReleaseNameForm::of("refs/tags/v3"), Tag("v3"));
        for text in ["v", "v3.1", "3", "version", "release/v3"] {
            assert_eq!(ReleaseNameForm::of(text), Text(text));
        }
        assert_eq!(ReleaseNameForm::of("v3").tag(), None);
        assert_eq!(ReleaseNameForm::of("refs/tags/v3").tag(), Some("v3"));
    }

    #[test]
    fn highest_version_is_preferred_to_other_tags() {
        assert_eq!(best_tag(["v1.9.0", "v1.10.0", "zebra", "v1.10.0-rc2"]), Some("v1.10.0"));
        assert_eq!(best_tag(["2.0-rc1", "1.9", "shop/v1.99"]), Some("2.0-rc1"));
        assert_eq!(best_tag(["beta", "alpha"]), Some("beta"));
        assert_eq!(best_tag(["v1", "v1.0.0"]), Some("v1.0.0"), "equal versions are ordered by their text");
        assert_eq!(best_tag(["99999999999999999999.0", "v1.0"]), Some("v1.0"));
        assert_eq!(best_tag([]), None);
    }
}
