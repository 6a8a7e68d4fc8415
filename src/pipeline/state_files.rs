//! Small files in which the pipeline keeps state besides the journals: build numbers, pins, generated secrets, and the record of the
//! postdeploy script.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::VariableName,
    host::files,
    model::{DeploymentId, ProjectName, ReleaseId, UserName},
};

/// The maximum size of each of these files, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads a JSON file. Returns `None` if the file does not exist.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read_limited(path, MAX_BYTES).map_err(io::Error::other)?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| io::Error::other(format!("cannot parse {}: {error}", path.display())))
}

/// Writes a JSON file. Returns after the file is on the disk.
fn write<T: Serialize>(path: &Path, value: &T, mode: u32) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    files::write_atomic(path, &bytes, mode).map_err(io::Error::other)
}

/// The last build number of each project, in `state/builds.json`. Numbers rise with every build of a project, over all its environments on
/// this server, and no number is used twice.
///
/// The file lists projects by name, and keeps the names of destroyed projects. A project that is created again continues with the next
/// number. Final environments compare build numbers to refuse older releases, so a number must not start again at 1.
#[derive(Debug)]
pub struct BuildNumbers {
    path: PathBuf,
    state: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    last: BTreeMap<ProjectName, u64>,
    /// True if the file on the disk has older numbers.
    unsaved: bool,
}

impl BuildNumbers {
    /// Reads the file at `path`. If the file does not exist, each project begins with 1, or after the highest number that is passed to
    /// [`BuildNumbers::seen`].
    pub fn open(path: PathBuf) -> io::Result<BuildNumbers> {
        let last = read(&path).map_err(|error| {
            io::Error::other(format!("{error}\nhint: remove the file; numbering then continues after the existing releases"))
        })?;
        Ok(BuildNumbers { path, state: Mutex::new(Numbers { last: last.unwrap_or_default(), unsaved: false }) })
    }

    /// Records that a build number is in use. Later builds get higher numbers.
    pub fn seen(&self, project: &ProjectName, number: u64) {
        let mut state = self.state.lock();
        let last = state.last.entry(project.clone()).or_default();
        if *last < number {
            *last = number;
            state.unsaved = true;
        }
    }

    /// Returns the next number of a project. The caller must call [`BuildNumbers::save`] before it writes the number to any other file:
    /// otherwise, the number could be used twice after a crash.
    pub fn draw(&self, project: &ProjectName) -> u64 {
        let mut state = self.state.lock();
        state.unsaved = true;
        let last = state.last.entry(project.clone()).or_default();
        *last = last.saturating_add(1);
        *last
    }

    /// Writes all numbers that were drawn before this call. Returns after the numbers are on the disk.
    pub fn save(&self) -> io::Result<()> {
        // The lock is held while the file is written, so that older numbers never replace newer ones.
        let mut state = self.state.lock();
        if state.unsaved {
            write(&self.path, &state.last, 0o600)?;
            state.unsaved = false;
        }
        Ok(())
    }
}

/// The user who pinned a release, and the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The user.
    pub by: UserName,
    /// The time at which the release was first pinned. A repeated pin does not change this time.
    pub at: Timestamp,
}

/// The releases of an environment that are never pruned, in its `pins.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins(BTreeMap<ReleaseId, Pin>);

impl Pins {
    /// Reads the file at `path`. If the file does not exist, no release is pinned.
    pub fn read(path: &Path) -> io::Result<Pins> {
        read(path).map(Option::unwrap_or_default)
    }

    /// Returns the pin of a release.
    pub fn get(&self, release: ReleaseId) -> Option<&Pin> {
        self.0.get(&release)
    }

    /// Returns the pinned releases.
    pub fn releases(&self) -> Vec<ReleaseId> {
        self.0.keys().copied().collect()
    }

    /// Pins a release, or unpins it if `pin` is `None`, and writes the file. Returns true if the pins changed.
    pub fn change(path: &Path, release: ReleaseId, pin: Option<Pin>) -> io::Result<bool> {
        let mut pins = Pins::read(path)?;
        let changed = match pin {
            Some(_) if pins.0.contains_key(&release) => false,
            Some(pin) => pins.0.insert(release, pin).is_none(),
            None => pins.0.remove(&release).is_some(),
        };
        if changed {
            write(path, &pins, 0o600)?;
        }
        Ok(changed)
    }
}

/// The variable with the URL of the database that `larder db create` created.
const DATABASE_URL: &str = "DATABASE_URL";

/// The values that larder generates for an environment: one for each variable with `"generator": "secret"` in `app.json`, and the URL of the
/// database that `larder db create` created. The file is the environment's `generated.json`.
pub struct Secrets {
    path: PathBuf,
    values: BTreeMap<VariableName, String>,
}

impl Secrets {
    /// Reads the existing values. If the file does not exist, there are no values.
    pub fn open(path: &Path) -> io::Result<Secrets> {
        Ok(Secrets { path: path.to_owned(), values: read(path)?.unwrap_or_default() })
    }

    /// Returns the variable and the URL of the database that `larder db create` created.
    pub fn database_url(&self) -> Option<(VariableName, String)> {
        self.values.get_key_value(DATABASE_URL).map(|(name, url)| (name.clone(), url.clone()))
    }

    /// Returns the names of all values.
    pub fn names(&self) -> impl Iterator<Item = &VariableName> {
        self.values.keys()
    }

    /// Sets the URL of the database, or removes it if `url` is `None`. Returns after the change is on the disk.
    pub fn set_database_url(&mut self, url: Option<String>) -> io::Result<()> {
        match url {
            Some(url) => self.values.insert(DATABASE_URL.parse().map_err(|_| io::ErrorKind::InvalidInput)?, url),
            None => self.values.remove(DATABASE_URL),
        };
        write(&self.path, &self.values, 0o600)
    }

    /// Returns a value for each of `names`: the existing value, or 64 new random hexadecimal digits. Returns after new values are on the disk.
    pub fn ensure<'a>(mut self, names: impl Iterator<Item = &'a VariableName>) -> io::Result<Vec<(VariableName, String)>> {
        let names: Vec<_> = names.cloned().collect();
        let missing: Vec<_> = names.iter().filter(|name| !self.values.contains_key(*name)).cloned().collect();
        if !missing.is_empty() {
            for name in missing {
                self.values.insert(name, random()?);
            }
            write(&self.path, &self.values, 0o600)?;
        }
        Ok(names.into_iter().filter_map(|name| self.values.get(&name).cloned().map(|value| (name, value))).collect())
    }
}

/// Generates a value of 256 random bits, in hexadecimal.
fn random() -> io::Result<String> {
    Ok(data_encoding::HEXLOWER.encode(&crate::host::random::<32>()?))
}

/// The record of an environment's postdeploy script, in the environment's `postdeploy.json`. After the script has succeeded or was
/// interrupted, the script is never run again in the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postdeploy {
    /// The deployment that started the script.
    pub deployment: DeploymentId,
    pub started: Timestamp,
    /// The time at which the script succeeded. The time is absent while the script runs. If the script or the server is killed meanwhile,
    /// the time stays absent: the effects of the script are then unknown, and the script is not repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

impl Postdeploy {
    /// Reads the record. Returns `None` if the script was never started, or if its last run failed.
    pub fn read(path: &Path) -> io::Result<Option<Postdeploy>> {
        read(path)
    }

    /// Records that `deployment` starts the script.
    pub fn start(path: &Path, deployment: DeploymentId) -> io::Result<Postdeploy> {
        let record = Postdeploy { deployment, started: Timestamp::now(), ended: None };
        write(path, &record, 0o600).map(|()| record)
    }

    /// Records that the script has succeeded.
    pub fn succeed(mut self, path: &Path) -> io::Result<()> {
        self.ended = Some(Timestamp::now());
        write(path, &self, 0o600)
    }

    /// Removes the record of a script that failed. The next deployment then runs the script again.
    pub fn fail(path: &Path) -> io::Result<()> {
        files::remove_if_present(path).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn build_numbers_rise_and_are_not_reused_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("builds.json");
        let (shop, blog) = ("shop".parse().unwrap(), "blog".parse().unwrap());
        let numbers = BuildNumbers::open(path.clone()).unwrap();
        assert_eq!([numbers.draw(&shop), numbers.draw(&shop), numbers.draw(&blog)], [1, 2, 1]);
        numbers.save().unwrap();
        let numbers = BuildNumbers::open(path.clone()).unwrap();
        assert_eq!([numbers.draw(&shop), numbers.draw(&blog)], [3, 2]);
        // A number that is seen in use raises the counter, and never lowers the counter.
        numbers.seen(&shop, 40);
        numbers.seen(&shop, 7);
        assert_eq!(numbers.draw(&shop), 41);
        std::fs::write(&path, "{").unwrap();
        assert!(BuildNumbers::open(path).unwrap_err().to_string().contains("builds.json"));
    }

    #[test]
    fn pin_stays_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins.json");
        let release = ReleaseId::new(Timestamp::now());
        let pin = || Some(Pin { by: "ann".parse().unwrap(), at: Timestamp::now() });
        assert!(Pins::change(&path, release, pin()).unwrap());
        assert!(!Pins::change(&path, release, pin()).unwrap());
        assert_eq!(Pins::read(&path).unwrap().releases(), [release]);
        assert!(Pins::change(&path, release, None).unwrap());
        assert!(!Pins::change(&path, release, None).unwrap());
        assert_eq!(Pins::read(&path).unwrap(), Pins::default());
    }

    #[test]
    fn secret_is_generated_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("generated.json");
        let names: Vec<VariableName> = vec!["SECRET_KEY".parse().unwrap(), "OTHER".parse().unwrap()];
        let first = Secrets::open(&path).unwrap().ensure(names.iter()).unwrap();
        assert!(first.iter().all(|(_, value)| value.len() == 64));
        assert_ne!(first[0].1, first[1].1);
        let again = Secrets::open(&path).unwrap().ensure(names.iter()).unwrap();
        assert_eq!(first, again);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn postdeploy_record_distinguishes_running_succeeded_and_failed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postdeploy.json");
        assert_eq!(Postdeploy::read(&path).unwrap(), None);
        let deployment = DeploymentId::new(Timestamp::now());
        let record = Postdeploy::start(&path, deployment).unwrap();
        assert_eq!(Postdeploy::read(&path).unwrap(), Some(record.clone()));
        record.succeed(&path).unwrap();
        assert!(Postdeploy::read(&path).unwrap().is_some_and(|record| record.ended.is_some()));
        Postdeploy::fail(&path).unwrap();
        assert_eq!(Postdeploy::read(&path).unwrap(), None);
    }
}
