//! Values that larder makes up because `app.json` asks for them (`"generator": "secret"`), once for each environment.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use crate::{config::VariableName, host::files};

/// The values of one environment.
pub struct Secrets {
    path: PathBuf,
    values: BTreeMap<VariableName, String>,
}

/// The file of an environment with a thousand secrets is smaller.
const BYTES_MAX: u64 = 256 * 1024;

impl Secrets {
    /// Reads what was made up before; nothing where there is no file yet.
    pub fn open(path: &Path) -> io::Result<Secrets> {
        let values = if path.exists() {
            let bytes = files::read_limited(path, BYTES_MAX).map_err(io::Error::other)?;
            serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?
        } else {
            BTreeMap::new()
        };
        Ok(Secrets { path: path.to_owned(), values })
    }

    /// A value for each of `names`, 64 random hexadecimal digits. One that was made up before is given again.
    pub fn ensure<'a>(mut self, names: impl Iterator<Item = &'a VariableName>) -> io::Result<Vec<(VariableName, String)>> {
        let names: Vec<_> = names.cloned().collect();
        let missing: Vec<_> = names.iter().filter(|name| !self.values.contains_key(*name)).cloned().collect();
        if !missing.is_empty() {
            self.values.extend(missing.into_iter().map(|name| (name, random())));
            let bytes = serde_json::to_vec_pretty(&self.values).map_err(io::Error::other)?;
            files::write_atomic(&self.path, &bytes, 0o600).map_err(io::Error::other)?;
        }
        Ok(names.into_iter().filter_map(|name| self.values.get(&name).cloned().map(|value| (name, value))).collect())
    }
}

/// Version 4 ids are 122 random bits each; three of them make more than the 256 that are kept.
fn random() -> String {
    let bits: Vec<u8> = (0..3).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
    blake3::hash(&bits).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_up_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("generated.json");
        let names: Vec<VariableName> = vec!["SECRET_KEY".parse().unwrap(), "OTHER".parse().unwrap()];
        let first = Secrets::open(&path).unwrap().ensure(names.iter()).unwrap();
        assert!(first.iter().all(|(_, value)| value.len() == 64));
        assert_ne!(first[0].1, first[1].1);
        let again = Secrets::open(&path).unwrap().ensure(names.iter()).unwrap();
        assert_eq!(first, again);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
