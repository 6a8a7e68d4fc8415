//! The requests that show the secrets of a project and their recipients.

use serde::Serialize;
use zeroize::Zeroizing;

use super::secrets::{PillarWork, of_secret};
use crate::{
    config::{
        ConfigError,
        pillar::{PillarLevel, PillarText},
    },
    control::{
        audit::AuditEntry,
        authz::Needs,
        error::{CommandError, ErrorKind, not_found},
        request::{Context, Reply, Request},
    },
    model::{ProjectName, Target},
    secret::{AGE_SUFFIX, EncryptedText, SECRETS_SUFFIX, SERVER_NAME, SecretError, SecretKey, key_of_age_file, sops_level},
};

/// The request to list secrets, or to show the value of one secret.
#[derive(Debug)]
pub struct SecretShow {
    /// The project for the values of all environments, or an environment.
    pub target: Target,
    /// The name of the secret whose value is shown.
    pub key: Option<String>,
}

/// The secrets of a project or an environment.
#[derive(Debug, Serialize)]
pub struct SecretView {
    /// The project.
    pub project: ProjectName,
    pub secrets: Vec<SecretRow>,
    /// The value of the only secret, if the request names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A secret.
#[derive(Debug, Serialize)]
pub struct SecretRow {
    /// The key of the pillar.
    pub key: String,
    /// The file of the pillar.
    pub file: String,
    /// The line of the value.
    pub line: u32,
    /// The reason why the server cannot decrypt the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Request for SecretShow {
    type View = SecretView;
    const NAME: &'static str = "secret show";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.target.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<SecretView>, CommandError> {
        let SecretShow { target, key } = self;
        let key: Option<SecretKey> = key.map(|key| key.parse()).transpose().map_err(|error| of_secret(&error))?;
        let work = PillarWork::new(control, caller, &target, true).await?;
        if let Some(key) = &key {
            let on = format!("{}/pillar", target.project);
            control.audit(AuditEntry::new(caller, SecretShow::NAME, on, Some(key.to_string()))).await;
        }
        let mut view = SecretView { project: target.project.clone(), secrets: Vec::new(), value: None };
        for (file, found) in encrypted_values(&work, &target)? {
            for (path, line, plain) in found {
                if key.as_ref().is_some_and(|key| key.to_string() != path) {
                    continue;
                }
                let problem = plain.as_ref().err().map(ToString::to_string);
                if key.is_some() {
                    view.secrets.clear();
                    view.value = Some(plain.map_err(|error| of_secret(&error))?.to_string());
                }
                view.secrets.push(SecretRow { key: path, file: file.clone(), line, problem });
            }
        }
        match key {
            Some(key) if view.secrets.is_empty() => Err(not_found(format!("{target} has no secret {key}"))
                .hint(format!("list the secrets with `larder secret show {target}`"))),
            _ => Ok(view.into()),
        }
    }
}

/// The encrypted values of a file: the key, the line, and the plain text or the reason why it cannot be read.
type FoundValues = Vec<(String, u32, Result<Zeroizing<String>, SecretError>)>;

/// Returns the encrypted values of each file, in rising order of precedence, so that the last value of a key counts.
fn encrypted_values(work: &PillarWork, target: &Target) -> Result<Vec<(String, FoundValues)>, CommandError> {
    let wrong = |error: ConfigError| {
        let shown = CommandError::new(ErrorKind::Configuration, error.to_string());
        error.hint.into_iter().fold(shown, CommandError::hint)
    };
    let of_stem = |stem: &str| [format!("{stem}.yml"), format!("{stem}{SECRETS_SUFFIX}")];
    let whole = work.files().iter().map(|(name, _)| name.clone()).filter(|name| name.ends_with(AGE_SUFFIX));
    let own = target.environment.iter().flat_map(|environment| of_stem(environment.as_str()));
    let mut all = Vec::new();
    for file in of_stem("init").into_iter().chain(whole).chain(own) {
        let Some((_, bytes)) = work.files().iter().find(|(known, _)| *known == file) else { continue };
        if let Some(key) = key_of_age_file(&file) {
            let plain = work
                .key()
                .decrypt(bytes)
                .and_then(|plain| String::from_utf8(plain.to_vec()).map(Zeroizing::new).map_err(|_| SecretError::NotText));
            let key = key.map_or_else(|_| file.clone(), |key| key.to_string());
            all.push((file, vec![(key, 1, plain)]));
            continue;
        }
        let sops = sops_level(&file, bytes, work.key()).map_err(wrong)?;
        let is_sops = sops.is_some();
        let level = match sops {
            Some(level) => level,
            None => PillarLevel::parse(&file, bytes, &|_| Ok(PillarText::Plain)).map_err(wrong)?,
        };
        let mut texts = Vec::new();
        match is_sops {
            true => level.root.secrets("", &mut |path, text| texts.push((path.to_owned(), Ok(Zeroizing::new(text.to_owned()))))),
            false => level.root.texts("", &mut |path, text| {
                if let Some(value) = EncryptedText::parse(text).transpose() {
                    texts.push((path.to_owned(), value.and_then(|value| value.decrypt(work.key()))));
                }
            }),
        }
        let line =
            |path: &str| path.parse::<SecretKey>().ok().and_then(|key| key.find(&level).map(|node| node.line)).unwrap_or(1);
        let found = texts.into_iter().map(|(path, plain)| (path.clone(), line(&path), plain)).collect();
        all.push((file, found));
    }
    Ok(all)
}

/// The request to list the recipients of a project's secrets.
#[derive(Debug)]
pub struct RecipientsShow {
    /// The project.
    pub project: ProjectName,
}

/// The recipients of a project's secrets.
#[derive(Debug, Serialize)]
pub struct RecipientsView {
    /// The project.
    pub project: ProjectName,
    /// The recipients, the server first.
    pub recipients: Vec<RecipientRow>,
}

/// A recipient.
#[derive(Debug, Serialize)]
pub struct RecipientRow {
    /// The name of the holder.
    pub name: String,
    /// The public key.
    pub key: String,
}

impl Request for RecipientsShow {
    type View = RecipientsView;
    const NAME: &'static str = "secret recipients";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<RecipientsView>, CommandError> {
        let target = Target { project: self.project.clone(), environment: None };
        let work = PillarWork::new(control, caller, &target, true).await?;
        let server = RecipientRow { name: SERVER_NAME.to_owned(), key: work.key().recipient() };
        let list = work.recipients()?;
        let people = list.iter().map(|known| RecipientRow { name: known.name.clone(), key: known.key.clone() });
        Ok(RecipientsView { project: self.project, recipients: std::iter::once(server).chain(people).collect() }.into())
    }
}
