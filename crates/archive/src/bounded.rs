//! Deserialisers that limit the length of lists from untrusted sources: a few bytes can describe a list that fills the memory.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

/// The maximum number of entries of a release, and of every list with one element for each entry.
pub const MAX_ENTRIES: usize = 1_000_000;

/// Deserialises a list of at most [`MAX_ENTRIES`] elements; for `deserialize_with`.
pub fn entries<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    input.deserialize_seq(AtMost(MAX_ENTRIES, PhantomData))
}

/// Deserialises a list of changes between two releases; for `deserialize_with`. Such a list can remove [`MAX_ENTRIES`] old entries and add
/// as many new entries.
pub fn changes<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    input.deserialize_seq(AtMost(2 * MAX_ENTRIES, PhantomData))
}

struct AtMost<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for AtMost<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} entries", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        // The stated length is not trusted. Memory is therefore reserved for at most 1024 elements.
        let mut read = Vec::with_capacity(list.size_hint().unwrap_or_default().min(1024));
        while let Some(one) = list.next_element()? {
            if read.len() >= self.0 {
                return Err(A::Error::custom(format!("a list has more than {} entries", self.0)));
            }
            read.push(one);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct List {
        #[serde(deserialize_with = "entries")]
        list: Vec<u8>,
    }

    #[test]
    fn list_above_the_maximum_length_is_refused() {
        let json = |count: usize| format!("{{\"list\":[{}]}}", vec!["1"; count].join(","));
        assert_eq!(serde_json::from_str::<List>(&json(MAX_ENTRIES)).unwrap().list.len(), MAX_ENTRIES);
        let error = serde_json::from_str::<List>(&json(MAX_ENTRIES + 1)).map(|list| list.list.len()).unwrap_err();
        assert!(error.to_string().contains("more than 1000000 entries"), "{error}");
        // The limit also applies to a format that states the length first.
        let binary = |count: usize| postcard::to_stdvec(&vec![1_u8; count]).unwrap();
        assert!(postcard::from_bytes::<List>(&binary(MAX_ENTRIES)).is_ok());
        assert!(postcard::from_bytes::<List>(&binary(MAX_ENTRIES + 1)).is_err());
    }
}
