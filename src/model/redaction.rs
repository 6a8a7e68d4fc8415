//! The removal of configuration values from text that larder stores or shows.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};

use super::ConfigVariables;

/// The minimum size of a value, or of a line of a value, that is removed, in bytes. Shorter values, such as `true` or `5432`, appear in text that
/// has nothing to do with the variable.
const MIN_BYTES: usize = 8;

/// Values that many applications set and that are no secrets. Without this list, `RAILS_ENV=production` would replace the name of the environment in
/// each line of a transcript.
const PUBLIC: [&str; 5] = ["production", "development", "localhost", "127.0.0.1", "postgres"];

/// A replacement of the values of a configuration by `[NAME]`, in their raw form, URL-encoded, in base64 and in hexadecimal; cheap to clone. `Debug` shows no
/// values.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Patterns>>);

struct Patterns {
    automaton: AhoCorasick,
    /// The replacement of each pattern.
    replacements: Vec<String>,
}

impl Redactor {
    /// Creates a redactor for the values of `variables`. Values shorter than 8 bytes are not replaced.
    pub fn new(variables: &ConfigVariables) -> Redactor {
        Redactor::of_all(std::slice::from_ref(variables))
    }

    /// Creates a redactor for the values of several configurations.
    pub fn of_all(all: &[ConfigVariables]) -> Redactor {
        // Two variables with one value have one pattern.
        let mut patterns: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
        for (name, value) in all.iter().flat_map(ConfigVariables::iter) {
            for form in encoded_forms(value) {
                patterns.entry(form).or_insert(name);
            }
        }
        if patterns.is_empty() {
            return Redactor(None);
        }
        let replacements = patterns.values().map(|name| format!("[{name}]")).collect();
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns.keys());
        // The builder fails only for more patterns than a configuration can have.
        Redactor(automaton.ok().map(|automaton| Arc::new(Patterns { automaton, replacements })))
    }

    /// Returns the text without the values.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.0 {
            Some(patterns) if patterns.automaton.is_match(text) => {
                Cow::Owned(patterns.automaton.replace_all(text, &patterns.replacements))
            }
            _ => Cow::Borrowed(text),
        }
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} patterns)", self.0.as_ref().map_or(0, |patterns| patterns.replacements.len()))
    }
}

/// Returns true for a value that may be a secret: a value of at least 8 bytes that is not a common word.
pub fn may_be_secret(value: &[u8]) -> bool {
    value.len() >= MIN_BYTES && !is_public(value)
}

fn is_public(value: &[u8]) -> bool {
    PUBLIC.iter().any(|word| word.as_bytes() == value.trim_ascii())
}

/// Returns the forms of a value that are replaced in texts, and searched in releases. Short values and words that are no secrets have none.
pub fn encoded_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    if is_public(value) {
        return forms;
    }
    for line in value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| line.len() >= MIN_BYTES) {
        forms.push(line.to_vec());
        forms.extend([url_encoded(line, false), url_encoded(line, true)]);
        forms.extend([HEXLOWER.encode(line).into_bytes(), HEXUPPER.encode(line).into_bytes()]);
    }
    if value.len() >= MIN_BYTES {
        // In base64, the bytes before the value decide how the value is cut into groups of three bytes.
        for skipped in 0..3 {
            let rest = value.get(skipped..).unwrap_or_default();
            let groups = rest.get(..rest.len() / 3 * 3).unwrap_or_default();
            if groups.len() >= 6 {
                forms.extend([BASE64.encode(groups).into_bytes(), BASE64URL.encode(groups).into_bytes()]);
            }
        }
    }
    forms
}

/// Returns the URL-encoded form, with digits in upper or lower case. The characters of RFC 3986, section 2.3, stay as they are.
fn url_encoded(value: &[u8], lower: bool) -> Vec<u8> {
    let mut encoded = String::new();
    for byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(*byte)),
            _ if lower => encoded.push_str(&format!("%{byte:02x}")),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(all: &[(&str, &str)]) -> Redactor {
        let variables = all.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        Redactor::new(&variables.collect())
    }

    #[test]
    fn value_is_replaced_in_each_form() {
        let secret = "s3cret/with&chars=+";
        let redactor = redactor(&[("TOKEN", secret), ("SHORT", "true"), ("OTHER", "another-value")]);
        for form in [secret.to_owned(), String::from("s3cret%2Fwith%26chars%3D%2B"), String::from("s3cret%2fwith%26chars%3d%2b")]
        {
            assert_eq!(redactor.redact(&format!("a {form} b")), "a [TOKEN] b", "{form}");
        }
        for encoded in [HEXLOWER.encode(secret.as_bytes()), HEXUPPER.encode(secret.as_bytes())] {
            assert_eq!(redactor.redact(&format!("hex {encoded}")), "hex [TOKEN]");
        }
        for before in ["", "x", "xx", "user:"] {
            let encoded = BASE64.encode(format!("{before}{secret}").as_bytes());
            let redacted = redactor.redact(&encoded);
            assert!(redacted.contains("[TOKEN]"), "{before}: {redacted}");
            assert!(redacted.len() < encoded.len(), "{redacted}");
        }
        assert_eq!(redactor.redact("true another-value"), "true [OTHER]");
        assert_eq!(redactor.redact("nothing"), "nothing");
        let common = super::tests::redactor(&[("RAILS_ENV", "production"), ("TOKEN", "production-token")]);
        assert_eq!(common.redact("shop/production uses production-token"), "shop/production uses [TOKEN]");
        assert!(!format!("{redactor:?}").contains("s3cret"));
    }

    #[test]
    fn lines_of_a_value_are_replaced() {
        let key = "-----BEGIN KEY-----\r\nMIIBVgIBADANBg\r\nshort\r\n-----END KEY-----\r\n";
        let redactor = redactor(&[("KEY", key)]);
        assert_eq!(redactor.redact("  MIIBVgIBADANBg"), "  [KEY]");
        assert_eq!(redactor.redact("short"), "short");
        assert_eq!(Redactor::default().redact("x"), "x");
    }

    #[test]
    fn longest_value_wins() {
        let redactor = redactor(&[("PART", "password"), ("WHOLE", "password-and-more")]);
        assert_eq!(redactor.redact("password-and-more, password"), "[WHOLE], [PART]");
    }
}
