//! The templates of a release, with the values with which they are rendered.

use serde_json::{Map, Value, json};

use super::{
    facts::Facts,
    pillar_state::{LoadedConfiguration, without_build_secrets},
};
use crate::{
    model::{Environment, Live},
    runtime::{TemplateFile, TemplateJob},
};

/// The key of the values that larder adds to the values of the pillar.
const OWN: &str = "larder";

/// Returns the templates of a release with their values: the values of the pillar, all variables in `env`, and larder's own values in
/// `larder`. Returns `None` if the release has no templates. `domain` is the domain of the server.
pub(super) fn template_job(
    environment: &Environment,
    domain: &str,
    facts: &Facts,
    loaded: &LoadedConfiguration,
    release: &Live,
) -> Option<TemplateJob> {
    let settings = facts.settings.as_ref().filter(|settings| !settings.templates.is_empty())?;
    let mut env: Map<String, Value> =
        facts.env.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect();
    // A template may write a value into a file that processes read, so it gets the variables of processes only.
    let variables = without_build_secrets(&loaded.variables, settings);
    let texts = variables.iter().filter_map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?)));
    env.extend(texts.map(|(name, value)| (name.to_owned(), Value::String(value.to_owned()))));
    let mut values = loaded.values.clone();
    values.insert(String::from("env"), Value::Object(env));
    let hosts = environment.hosts(domain).into_iter().chain(settings.domains.iter().map(ToString::to_string));
    let own = json!({
        "project": environment.project,
        "environment": environment.name,
        "mode": environment.mode,
        "domains": hosts.collect::<Vec<_>>(),
        "release": release.release,
        "number": release.number,
        "commit": release.commit,
        "slot": release.slot,
    });
    values.insert(OWN.to_owned(), own);
    let file = |template: &crate::config::TemplateSpec| TemplateFile {
        from: template.from.to_string(),
        to: template.to.to_string(),
        mode: template.mode,
    };
    Some(TemplateJob {
        files: settings.templates.iter().map(file).collect(),
        values: Value::Object(values).to_string(),
        secrets: loaded.secrets(),
        preview: false,
    })
}
