//! Files of a pillar in the format of [SOPS](https://getsops.io): larder reads them, and people change them with the program sops.
//!
//! The data key of a file is encrypted for the recipients of age. Each value is encrypted with the data key by AES-256-GCM; the additional data
//! is the path of the value, so that a value that was moved to another key cannot be decrypted. The MAC of the file covers the values in their
//! order, so that no value can be changed, added or removed without the data key.

use aes_gcm::{
    AesGcm, KeyInit as _,
    aead::{Aead as _, Payload, consts::U32, generic_array::GenericArray},
    aes::Aes256,
};
use data_encoding::{BASE64, HEXUPPER};
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use super::{MAX_SECRET, error::SecretError, key::ProjectKey};
use crate::config::{
    ConfigError,
    pillar::{PillarLevel, PillarNode, PillarText, PillarValue},
};

/// The key with the metadata of a file.
const METADATA: &str = "sops";
/// The beginning of an encrypted value.
const PREFIX: &str = "ENC[AES256_GCM,";
/// The major version of SOPS whose files are read.
const VERSION: &str = "3.";
/// The size of a data key in bytes.
const KEY_BYTES: usize = 32;
/// The size of an initialisation vector in bytes. SOPS does not use the usual 12 bytes.
const IV_BYTES: usize = 32;
/// The size of an authentication tag in bytes.
const TAG_BYTES: usize = 16;
/// The text whose SHA-256 digest begins the MAC of a file in which only the encrypted values are covered.
const ONLY_ENCRYPTED: &[u8] = b"sops";

type Cipher = AesGcm<Aes256, U32>;

/// Returns true if a file is in the format of SOPS, also if its metadata is damaged.
pub fn is_sops(level: &PillarLevel) -> bool {
    let metadata = level.root.child(METADATA);
    metadata.is_some_and(|metadata| ["mac", "age", "lastmodified", "version"].iter().any(|key| metadata.child(key).is_some()))
}

/// Returns true if the bytes of a file are in the format of SOPS.
pub fn is_sops_file(file: &str, bytes: &[u8]) -> bool {
    has_metadata(bytes) && PillarLevel::parse(file, bytes, &|_| Ok(PillarText::Plain)).is_ok_and(|level| is_sops(&level))
}

/// Returns true unless a file certainly has no metadata. Most files are parsed only once because of this check.
fn has_metadata(bytes: &[u8]) -> bool {
    bytes.windows(METADATA.len()).any(|window| window == METADATA.as_bytes())
}

/// Reads a file in the format of SOPS, and decrypts its values. Returns `None` for a file in another format.
///
/// # Errors
/// The first problem: the file, the key and the remedy, without a value.
pub fn sops_level(file: &str, bytes: &[u8], own: &ProjectKey) -> Result<Option<PillarLevel>, ConfigError> {
    if !has_metadata(bytes) {
        return Ok(None);
    }
    let mut level = PillarLevel::parse(file, bytes, &|_| Ok(PillarText::Plain))?;
    if !is_sops(&level) {
        return Ok(None);
    }
    let PillarValue::Map(pairs) = &mut level.root.value else { return Ok(None) };
    let at = pairs.iter().position(|(key, _)| key == METADATA);
    let Some((_, metadata)) = at.map(|at| pairs.remove(at)) else { return Ok(None) };
    let metadata = Metadata { file, node: &metadata };
    metadata.check_version()?;
    let mut reading = Reading {
        file,
        cipher: Cipher::new(GenericArray::from_slice(&metadata.data_key(own)?)),
        mac: Sha512::new(),
        only_encrypted: metadata.node.child("mac_only_encrypted").is_some_and(|node| node.value == PillarValue::Bool(true)),
    };
    if reading.only_encrypted {
        reading.mac.update(Sha256::digest(ONLY_ENCRYPTED));
    }
    reading.node(&mut level.root, &mut String::new())?;
    let expected = HEXUPPER.encode(&reading.mac.finalize_reset());
    let (line, mac, time) = metadata.mac()?;
    let given = reading.decrypt(mac, time);
    // Both texts are public as soon as one of them is, and a difference tells only that the file was changed.
    match given {
        Ok((_, given)) if given.as_slice() == expected.as_bytes() => Ok(Some(level)),
        _ => Err(changed(file, line, String::from("the MAC does not match: values were changed without sops"))),
    }
}

fn changed(file: &str, line: u32, why: String) -> ConfigError {
    let hint = format!("change the file with `sops {file}` only, or restore it from an earlier commit");
    ConfigError::new(file, why).at_line(line).hint(hint)
}

/// The metadata of a file.
struct Metadata<'m> {
    file: &'m str,
    node: &'m PillarNode,
}

impl<'m> Metadata<'m> {
    fn problem(&self, line: u32, why: impl Into<String>) -> ConfigError {
        ConfigError::new(self.file, why).at_line(line)
    }

    fn text(&self, key: &str) -> Result<(u32, &'m str), ConfigError> {
        match self.node.child(key) {
            Some(PillarNode { line, value: PillarValue::Text(text) | PillarValue::Number(text) }) => Ok((*line, text)),
            other => {
                let line = other.map_or(self.node.line, |node| node.line);
                Err(self.problem(line, format!("sops.{key} is missing")).hint(format!(
                    "restore the file from an earlier commit, or encrypt it again with `sops encrypt -i {}`",
                    self.file
                )))
            }
        }
    }

    fn check_version(&self) -> Result<(), ConfigError> {
        let (line, version) = self.text("version")?;
        if version.starts_with(VERSION) {
            return Ok(());
        }
        let shown: String = version.chars().filter(|c| c.is_ascii_graphic()).take(20).collect();
        Err(self
            .problem(line, format!("sops.version is {shown} (expected 3)"))
            .hint("encrypt the file with a program sops of version 3"))
    }

    /// Returns the line and the text of the MAC, and the time that is bound to it.
    fn mac(&self) -> Result<(u32, &'m str, &'m str), ConfigError> {
        let (line, mac) = self.text("mac")?;
        Ok((line, mac, self.text("lastmodified")?.1))
    }

    /// Decrypts the data key with the key of the project.
    fn data_key(&self, own: &ProjectKey) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        let recipient = own.recipient();
        let add =
            || format!("add {recipient} to the recipients `age` of your .sops.yaml, and run `sops updatekeys {}`", self.file);
        if let Some(groups) = self.node.child("key_groups") {
            let why = "sops.key_groups: the data key is divided between groups of keys, which the server cannot join";
            return Err(self.problem(groups.line, why).hint("use one group of keys in your .sops.yaml"));
        }
        let entries = match self.node.child("age").map(|age| &age.value) {
            Some(PillarValue::List(entries)) => entries.as_slice(),
            _ => &[],
        };
        let text = |entry: &'m PillarNode, key: &str| match entry.child(key).map(|node| &node.value) {
            Some(PillarValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let entry = entries.iter().find(|entry| text(entry, "recipient").is_some_and(|known| known.trim() == recipient));
        let Some(entry) = entry else {
            let why =
                format!("the file is encrypted for other recipients than this project (expected the recipient {recipient})");
            return Err(self.problem(self.node.line, why).hint(add()));
        };
        let wrong = |why: String| self.problem(entry.line, format!("sops.age: {why}")).hint(add());
        let encrypted = text(entry, "enc").ok_or_else(|| wrong(String::from("the entry of this project has no data key")))?;
        let key = own.decrypt(encrypted.trim().as_bytes()).map_err(|error| wrong(error.to_string()))?;
        match key.len() {
            KEY_BYTES => Ok(key),
            other => Err(wrong(format!("the data key has {other} bytes (expected {KEY_BYTES})"))),
        }
    }
}

/// The data, the initialisation vector, the tag and the type of an encrypted value.
type Parts<'t> = (Vec<u8>, Vec<u8>, Vec<u8>, &'t str);

/// Splits an encrypted value.
fn parts(text: &str) -> Option<Parts<'_>> {
    let rest = text.strip_prefix(PREFIX)?.strip_prefix("data:")?.strip_suffix(']')?;
    let (data, rest) = rest.split_once(",iv:")?;
    let (iv, rest) = rest.split_once(",tag:")?;
    let (tag, kind) = rest.split_once(",type:")?;
    let decode = |text: &str| BASE64.decode(text.as_bytes()).ok();
    Some((decode(data)?, decode(iv)?, decode(tag)?, kind))
}

struct Reading<'r> {
    file: &'r str,
    cipher: Cipher,
    mac: Sha512,
    only_encrypted: bool,
}

impl Reading<'_> {
    /// Decrypts the values of a node, and adds all values to the MAC. `path` is the path of the node as SOPS writes it, such as `env:TOKEN:`.
    fn node(&mut self, node: &mut PillarNode, path: &mut String) -> Result<(), ConfigError> {
        let line = node.line;
        match &mut node.value {
            PillarValue::Null => {}
            PillarValue::Map(pairs) => {
                for (key, inner) in pairs {
                    let length = path.len();
                    path.push_str(key);
                    path.push(':');
                    self.node(inner, path)?;
                    path.truncate(length);
                }
            }
            // The items of a list have the path of the list.
            PillarValue::List(items) => items.iter_mut().try_for_each(|item| self.node(item, path))?,
            PillarValue::Text(text) if text.starts_with(PREFIX) => {
                let key = path.trim_end_matches(':').replace(':', ".");
                let (kind, plain) = self.decrypt(text, path).map_err(|why| changed(self.file, line, format!("{key}: {why}")))?;
                let (value, covered) = typed(&kind, plain).map_err(|error| {
                    let problem = ConfigError::new(self.file, format!("{key}: {error}")).at_line(line);
                    error.hint().into_iter().fold(problem, ConfigError::hint)
                })?;
                self.mac.update(&*covered);
                node.value = value;
            }
            PillarValue::Text(text) | PillarValue::Literal(text) | PillarValue::Number(text) => {
                if !self.only_encrypted {
                    self.mac.update(text.as_bytes());
                }
            }
            PillarValue::Bool(value) => {
                if !self.only_encrypted {
                    self.mac.update(of_bool(*value));
                }
            }
        }
        Ok(())
    }

    /// Decrypts a value. Returns its type and its bytes. The error is the reason as text.
    fn decrypt(&self, text: &str, additional: &str) -> Result<(String, Zeroizing<Vec<u8>>), String> {
        let (mut data, iv, tag, kind) = parts(text).ok_or("the value is not in the format of SOPS")?;
        if iv.len() != IV_BYTES || tag.len() != TAG_BYTES {
            return Err(String::from("the value is not in the format of SOPS"));
        }
        data.extend(tag);
        let payload = Payload { msg: &data, aad: additional.as_bytes() };
        let plain = self.cipher.decrypt(GenericArray::from_slice(&iv), payload);
        let plain = plain.map_err(|_| "the value was changed, or moved from another key")?;
        Ok((kind.to_owned(), Zeroizing::new(plain)))
    }
}

/// Returns a decrypted value, and the bytes by which the MAC covers the value.
fn typed(kind: &str, plain: Zeroizing<Vec<u8>>) -> Result<(PillarValue, Zeroizing<Vec<u8>>), SecretError> {
    let text = std::str::from_utf8(&plain).map_err(|_| SecretError::NotText)?.to_owned();
    if text.contains('\0') {
        return Err(SecretError::Nul);
    }
    if text.len() > MAX_SECRET {
        return Err(SecretError::TooLarge { limit: MAX_SECRET });
    }
    let value = match kind {
        "str" | "bytes" | "time" => PillarValue::Literal(text),
        "int" | "float" => PillarValue::Number(text),
        "bool" => {
            let value = match text.as_str() {
                "True" | "true" => true,
                "False" | "false" => false,
                _ => return Err(SecretError::Damaged(String::from("the value is neither true nor false"))),
            };
            return Ok((PillarValue::Bool(value), Zeroizing::new(of_bool(value).to_vec())));
        }
        other => {
            let shown: String = other.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            return Err(SecretError::Damaged(format!("the type {shown} of SOPS is not known")));
        }
    };
    Ok((value, plain))
}

/// Returns the form of a boolean that the MAC covers.
fn of_bool(value: bool) -> &'static [u8] {
    if value { b"True" } else { b"False" }
}

#[cfg(test)]
mod tests {
    use super::{super::key::key, *};

    /// Written by the program sops 3.11.0 (`sops encrypt --age age19q0z...`), for the key of the project 1 of the tests.
    const ALL: &str = include_str!("../../tests/fixtures/secrets/sops-3.11.yml");
    /// The same values, with `encrypted_regex` and `mac_only_encrypted` in `.sops.yaml`.
    const SOME: &str = include_str!("../../tests/fixtures/secrets/sops-3.11-mac-only.yml");

    fn read(text: &str) -> Result<PillarLevel, ConfigError> {
        sops_level("production.yml", text.as_bytes(), &key(1)).map(Option::unwrap)
    }

    fn value(level: &PillarLevel, path: &str) -> PillarValue {
        path.split('.').try_fold(&level.root, |node, part| node.child(part)).unwrap().value.clone()
    }

    #[test]
    fn files_of_the_program_sops_are_read() {
        for text in [ALL, SOME] {
            let level = read(text).unwrap();
            let literal = |text: &str| PillarValue::Literal(text.to_owned());
            assert_eq!(value(&level, "env.API_TOKEN"), literal("hunter2-of-sops"));
            assert_eq!(value(&level, "env.RETRIES"), PillarValue::Number("5".into()));
            assert_eq!(value(&level, "env.RATE"), PillarValue::Number("0.25".into()));
            assert_eq!(value(&level, "env.DEBUG"), PillarValue::Bool(true));
            assert_eq!(value(&level, "env.QUIET"), PillarValue::Bool(false));
            assert_eq!(value(&level, "database.password"), literal("s3cret:with \"quotes\" and \u{fc}"));
            assert_eq!(value(&level, "database.port_unencrypted"), PillarValue::Number("5432".into()));
            assert!(level.root.child(METADATA).is_none(), "the metadata is no value");
            let mut texts = Vec::new();
            level.root.texts("", &mut |path, text| texts.push((path.to_owned(), text.to_owned())));
            let find = |path: &str| texts.iter().find(|(known, _)| known == path).map(|(_, text)| text.as_str());
            assert_eq!(find("database.replicas.1"), Some("second-replica"));
            assert_eq!(find("tls.key"), Some("-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"));
        }
        assert!(is_sops_file("x.yml", ALL.as_bytes()) && !is_sops_file("x.yml", b"sops: {about: the program}\n"));
        assert!(sops_level("x.yml", b"sops: {about: the program}\n", &key(1)).unwrap().is_none());
        assert!(sops_level("x.yml", b"a: 1\n", &key(1)).unwrap().is_none());
    }

    #[test]
    fn changed_file_is_refused_with_file_key_and_remedy() {
        let line = |name: &str| ALL.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        let value = |name: &str| line(name).split_once(": ").unwrap().1;
        // Two values change their places, a plain value changes, a value disappears, and so on.
        let token = value("API_TOKEN");
        let moved = ALL.replace(value("RETRIES"), token);
        for (what, text, why) in [
            ("moved", moved, "production.yml:4: env.RETRIES: the value was changed, or moved from another key"),
            ("bits", ALL.replace("data:dHLF", "data:dHLG"), "env.API_TOKEN: the value was changed"),
            ("plain", ALL.replace("db.internal", "db.evil"), "the MAC does not match"),
            ("removed", ALL.replace(&format!("{}\n", line("API_TOKEN")), ""), "the MAC does not match"),
            ("added", ALL.replace("nothing: null", "nothing: null\nmore: x"), "the MAC does not match"),
            ("time", ALL.replace("2026-12-01T03:52:41Z", "2026-12-01T03:52:42Z"), "the MAC does not match"),
            (
                "list",
                ALL.replace(
                    "        - ENC[AES256_GCM,data:rXIdVMxgGGW4RZ4za00=",
                    "        - \"\"\n        - ENC[AES256_GCM,data:rXIdVMxgGGW4RZ4za0A=",
                ),
                "database.replicas: the value was changed",
            ),
            ("no MAC", ALL.replace("    mac: ", "    other: "), "sops.mac is missing"),
            ("version", ALL.replace("version: 3.11.0", "version: 4.0.0"), "sops.version is 4.0.0 (expected 3)"),
            ("groups", ALL.replace("    age:\n", "    key_groups:\n    - age: []\n    age:\n"), "groups of keys"),
            ("format", ALL.replace(",type:int", ",kind:int"), "env.RETRIES: the value is not in the format of SOPS"),
            ("kind", ALL.replace(",type:int", ",type:odd"), "env.RETRIES: the encrypted value cannot be read: the type odd"),
        ] {
            assert_ne!(text, ALL, "{what}");
            let error = read(&text).expect_err(what);
            assert!(error.to_string().contains(why), "{what}: {error}");
            assert!(!error.to_string().contains("hunter2") && error.hint.is_some(), "{what}: {error}");
        }
        // With `mac_only_encrypted`, values that are not encrypted are not covered.
        assert!(read(&SOME.replace("db.internal", "db.other")).is_ok());
        let line = SOME.lines().find(|line| line.contains("API_TOKEN")).unwrap();
        assert!(read(&SOME.replace(line, "    API_TOKEN: plain")).unwrap_err().to_string().contains("MAC"));
    }

    #[test]
    fn file_for_other_recipients_is_refused_with_the_command() {
        let error = sops_level("production.yml", ALL.as_bytes(), &key(2)).unwrap_err();
        let recipient = key(2).recipient();
        assert!(error.to_string().contains(&format!("expected the recipient {recipient}")), "{error}");
        let hint = error.hint.unwrap();
        assert!(hint.contains(&recipient) && hint.contains("sops updatekeys production.yml"), "{hint}");
        // A recipient that is only named does not help.
        let named = ALL.replace(&key(1).recipient(), &recipient);
        let error = sops_level("production.yml", named.as_bytes(), &key(2)).unwrap_err();
        assert!(error.to_string().contains("sops.age: the value is encrypted for other recipients"), "{error}");
    }
}
