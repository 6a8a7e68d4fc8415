//! Content digests.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

/// A BLAKE3 digest of 32 bytes. A text format contains 64 hexadecimal digits, as `b3sum` prints them. A binary format contains the 32
/// bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !to.is_human_readable() {
            return to.serialize_bytes(&self.0);
        }
        // Hexadecimal digits are always valid UTF-8.
        to.serialize_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

/// This implementation parses the many digests of a manifest without allocating a string for each digest.
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        struct Digits;
        impl Visitor<'_> for Digits {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest of 64 hexadecimal digits")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Digest, E> {
                bytes.try_into().map(Digest).map_err(|_| E::invalid_length(bytes.len(), &"32 bytes"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }
        if from.is_human_readable() { from.deserialize_str(Digits) } else { from.deserialize_bytes(Digits) }
    }
}

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the 32 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses hexadecimal digits. Returns `None` if a byte is not a hexadecimal digit.
    fn from_digits(digits: &[u8; 64]) -> Option<Digest> {
        let values = digits.map(|byte| digit(byte).0);
        let right = digits.iter().fold(true, |right, byte| right & digit(*byte).1);
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(values.as_chunks::<2>().0) {
            *byte = high << 4 | low;
        }
        right.then_some(Digest(bytes))
    }

    /// Returns the hexadecimal digits.
    fn digits(&self) -> [u8; 64] {
        // The loop has no branches, so that the compiler vectorises it.
        let letter = |value: u8| value + b'0' + if value > 9 { b'a' - b'0' - 10 } else { 0 };
        let mut digits = [0; 64];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [letter(byte >> 4), letter(byte & 0xf)];
        }
        digits
    }

    /// Returns the first twelve digits, for display.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Digest {
        Digest(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Returns the value of a hexadecimal digit, and true if the byte is such a digit. The function has no branches, so that the compiler
/// vectorises the loop over the digits: a manifest has millions of digits.
fn digit(byte: u8) -> (u8, bool) {
    let is_letter = (byte | 0x20).wrapping_sub(b'a') < 6;
    let is_digit = byte.wrapping_sub(b'0') < 10;
    ((byte & 0xf).wrapping_add(if byte >= b'A' { 9 } else { 0 }), is_letter | is_digit)
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a digest (expected 64 hexadecimal digits)");
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| wrong())?;
        Digest::from_digits(digits).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_digits_round_trip_and_invalid_digits_are_refused() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        assert_eq!(digest.digits().as_slice(), text.as_bytes());
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{text}\""));
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(text.to_uppercase().parse(), Ok(digest));
        for byte in 0..=255_u8 {
            let mut digits = [b'0'; 64];
            digits[63] = byte;
            let expected = char::from(byte).to_digit(16).map(|value| value as u8);
            assert_eq!(Digest::from_digits(&digits).map(|digest| digest.0[31]), expected, "{byte}");
        }
    }
}
