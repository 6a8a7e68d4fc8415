//! The pillars that this server has read, and the configuration of a deployment in memory. This file imports no file that executes
//! deployments.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::failure::Failure;
use crate::{
    config::{
        ConfigError, Settings,
        pillar::{PillarLevel, PillarText, PillarValues, SAMPLE_FILE, evaluate},
    },
    git::PillarFiles,
    model::{ConfigVariables, ProjectId, Redactor, may_be_secret},
    remote::ssh::DeployKey,
    runtime::SecretFiles,
    secret::{EncryptedText, ProjectKey, SecretError},
    snapshots::{PillarContent, Snapshot},
};

/// The pillars of all projects, as far as this server has read them. Values are in memory only.
#[derive(Default)]
pub(super) struct Pillars {
    /// The commit of the branch `main` with its files; `None` if nothing was pushed yet.
    heads: Mutex<HashMap<ProjectId, Option<Arc<PillarFiles>>>>,
    /// The locks of pushes. A push holds the lock from its first deployment until the branch has moved.
    locks: Mutex<HashMap<ProjectId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Pillars {
    pub(super) fn head(&self, project: ProjectId) -> Option<Option<Arc<PillarFiles>>> {
        self.heads.lock().get(&project).cloned()
    }

    pub(super) fn set_head(&self, project: ProjectId, files: Option<Arc<PillarFiles>>) {
        self.heads.lock().insert(project, files);
    }

    pub(super) fn lock(&self, project: ProjectId) -> Arc<tokio::sync::Mutex<()>> {
        self.locks.lock().entry(project).or_default().clone()
    }
}

/// The configuration of a deployment in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadedConfiguration {
    /// The configuration snapshot; `None` without a configuration.
    snapshot: Option<Arc<Snapshot>>,
    /// The variables of all processes. Before [`LoadedConfiguration::evaluated`], the variables of the pillar are not among them.
    pub(super) variables: ConfigVariables,
    /// All values of the pillar.
    pub(super) values: Map<String, Value>,
    /// The sample of the project, from [`LoadedConfiguration::evaluated`] on.
    sample: Option<Arc<PillarLevel>>,
}

impl LoadedConfiguration {
    /// Creates the configuration of a snapshot, before the values of its pillar are computed.
    pub(super) fn new(snapshot: Snapshot) -> LoadedConfiguration {
        let variables = snapshot.variables.clone();
        LoadedConfiguration { snapshot: Some(Arc::new(snapshot)), variables, ..LoadedConfiguration::default() }
    }

    /// Computes the values of the pillar with the project's sample.
    pub(super) fn evaluated(&self, sample: Option<PillarLevel>) -> Result<LoadedConfiguration, Failure> {
        let empty = ConfigVariables::default();
        let own = self.snapshot.as_ref().map_or(&empty, |snapshot| &snapshot.variables);
        let pillar = self.snapshot.as_ref().and_then(|snapshot| snapshot.pillar.as_ref());
        let (variables, values) = effective(own, pillar, sample.as_ref()).map_err(|error| of_pillar(&error))?;
        Ok(LoadedConfiguration { snapshot: self.snapshot.clone(), variables, values: values.tree, sample: sample.map(Arc::new) })
    }

    /// Returns the values that no release may contain, with their names.
    pub(super) fn searched(&self, settings: &Settings, deploy_key: Option<&DeployKey>) -> ConfigVariables {
        let mut all = self.decrypted();
        all.retain(|(path, _)| !settings.build.allows_leak(path));
        let of_build = self.variables.iter().filter(|(name, _)| is_of_build(settings, name));
        all.extend(of_build.map(|(name, value)| (name.to_owned(), value.to_vec())));
        let parts = deploy_key.map(DeployKey::parts).unwrap_or_default();
        all.extend(parts.iter().map(|(name, value)| (name.to_owned(), value.to_vec())));
        all.into_iter().collect()
    }

    /// Returns the decrypted values of the pillar and of the sample, with their paths.
    fn decrypted(&self) -> Vec<(String, Vec<u8>)> {
        let of_pillar = self.snapshot.iter().filter_map(|snapshot| snapshot.pillar.as_ref()).flat_map(|pillar| &pillar.levels);
        let mut all = Vec::new();
        for level in of_pillar.chain(self.sample.as_deref()) {
            level.root.secrets("", &mut |path, text| all.push((path.to_owned(), text.as_bytes().to_vec())));
        }
        all
    }

    /// Returns the values of the pillar that may be secret, and the decrypted values of the sample.
    fn all_values(&self) -> ConfigVariables {
        let of_snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.all_values()).unwrap_or_default();
        let of_snapshot = of_snapshot.iter().map(|(path, value)| (path.to_owned(), value.to_vec()));
        self.decrypted().into_iter().chain(of_snapshot).collect()
    }

    /// Returns the values that only the processes may read.
    pub(super) fn secrets(&self) -> Vec<String> {
        let all = self.all_values();
        let values = all.iter().chain(self.variables.iter()).filter(|(_, value)| may_be_secret(value));
        let texts: BTreeSet<&str> = values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).collect();
        texts.into_iter().map(str::to_owned).collect()
    }

    /// Returns a redactor for the variables, for all values of the pillar, and for the deploy key.
    pub(super) fn redactor(&self, deploy_key: Option<&DeployKey>) -> Redactor {
        // The first name of a value counts, and the name of a variable says more than the name of a key.
        Redactor::of_all(&[self.variables.clone(), self.all_values(), deploy_key.map(DeployKey::parts).unwrap_or_default()])
    }
}

/// Returns the variables of all processes, and the values of the pillar. `own` has the variables of `larder config`, which take precedence.
pub(super) fn effective(
    own: &ConfigVariables,
    pillar: Option<&PillarContent>,
    sample: Option<&PillarLevel>,
) -> Result<(ConfigVariables, PillarValues), ConfigError> {
    let levels = sample.into_iter().chain(pillar.into_iter().flat_map(|pillar| &pillar.levels));
    let values = evaluate(levels, &|name| own.get(name).is_some())?;
    let mut all: BTreeMap<String, Vec<u8>> =
        values.env.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
    all.extend(own.iter().map(|(name, value)| (name.to_owned(), value.to_vec())));
    Ok((all.into_iter().collect(), values))
}

/// Parses a file of a pillar, and decrypts its secrets.
pub(super) fn pillar_level(name: &str, bytes: &[u8], key: &ProjectKey) -> Result<PillarLevel, ConfigError> {
    let hint = Cell::new(None);
    let resolve = |text: &str| {
        resolve(text, key).map_err(|error| {
            hint.set(error.hint());
            error.to_string()
        })
    };
    PillarLevel::parse(name, bytes, &resolve).map_err(|error| hint.get().into_iter().fold(error, ConfigError::hint))
}

/// Parses the sample of a project, and decrypts its secrets.
pub(super) fn sample_level(
    text: Option<&str>,
    key: impl FnOnce() -> Result<ProjectKey, SecretError>,
) -> Result<Option<PillarLevel>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let key = key().map_err(|error| ConfigError::new(SAMPLE_FILE, error.to_string()))?;
    pillar_level(SAMPLE_FILE, text.as_bytes(), &key).map(Some)
}

/// Returns the meaning of a text in a pillar. Every text of a pillar passes through this function before references are resolved.
fn resolve(text: &str, key: &ProjectKey) -> Result<PillarText, SecretError> {
    match EncryptedText::parse(text)? {
        Some(value) => Ok(PillarText::Decrypted(value.decrypt(key)?.to_string())),
        None => Ok(PillarText::Plain),
    }
}

fn is_of_build(settings: &Settings, name: &str) -> bool {
    settings.build.secrets.iter().any(|of_build| of_build.as_str() == name)
}

/// Returns the variables without those that only builds get.
pub(super) fn without_build_secrets(variables: &ConfigVariables, settings: &Settings) -> ConfigVariables {
    let mut kept = variables.clone();
    kept.retain(|name, _| !is_of_build(settings, name));
    kept
}

/// Returns the values of the pillar that processes get as files.
pub(super) fn secret_files(values: &Map<String, Value>, settings: &Settings) -> Result<SecretFiles, ConfigError> {
    let (mut contents, mut modes) = (Vec::new(), BTreeMap::new());
    for spec in &settings.secrets {
        let mut parts = spec.key.split('.');
        let first = parts.next().and_then(|part| values.get(part));
        let text = match parts.try_fold(first, |value, part| Some(value?.get(part))).flatten() {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => {
                let problem = format!("secrets: the pillar has no text for the key {}", spec.key);
                return Err(ConfigError::new("larder.yml", problem)
                    .hint(format!("set the value with `larder secret set PROJECT {}`", spec.key)));
            }
        };
        contents.push((spec.file.clone(), text.into_bytes()));
        modes.insert(spec.file.clone(), spec.mode);
    }
    Ok(SecretFiles { contents: contents.into_iter().collect(), modes })
}

/// Returns the failure of a deployment whose pillar has a problem.
pub(super) fn of_pillar(error: &ConfigError) -> Failure {
    let failure = Failure::pusher(pillar_reason(error));
    error.hint.iter().chain(&error.expected.as_ref().map(|expected| format!("expected {expected}"))).fold(failure, Failure::hint)
}

/// Returns the place and the problem of a file of a pillar, such as `init.yml line 7: ...`, for git's own line.
pub fn pillar_reason(error: &ConfigError) -> String {
    let line = error.line.map(|line| format!(" line {line}")).unwrap_or_default();
    format!("{}{line}: {}", error.file, error.problem)
}
