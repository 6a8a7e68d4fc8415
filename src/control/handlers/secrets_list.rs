//! The requests that show the secrets of a project and their recipients.

use serde::Serialize;

use super::secrets::{PillarWork, of_secret};
use crate::{
    config::pillar::{PillarLevel, PillarText},
    control::{
        audit::AuditEntry,
        authz::Needs,
        error::{CommandError, ErrorKind, not_found},
        request::{Context, Reply, Request},
    },
    model::{ProjectName, Target},
    secret::{EncryptedText, SECRETS_SUFFIX, SERVER_NAME, SecretKey},
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
        // The files in rising order of precedence, so that the last value of a key counts.
        let stems: Vec<String> = match &target.environment {
            Some(environment) => vec![String::from("init"), environment.to_string()],
            None => vec![String::from("init")],
        };
        let files = stems.iter().flat_map(|stem| [format!("{stem}.yml"), format!("{stem}{SECRETS_SUFFIX}")]);
        for file in files {
            let Some((_, bytes)) = work.files().iter().find(|(known, _)| *known == file) else { continue };
            let level = PillarLevel::parse(&file, bytes, &|_| Ok(PillarText::Plain));
            let level = level.map_err(|error| CommandError::new(ErrorKind::Configuration, error.to_string()))?;
            let mut found = Vec::new();
            level.root.texts("", &mut |path, text| {
                if let Some(value) = EncryptedText::parse(text).transpose() {
                    found.push((path.to_owned(), value));
                }
            });
            for (path, value) in found {
                if key.as_ref().is_some_and(|key| key.to_string() != path) {
                    continue;
                }
                let line = path.parse::<SecretKey>().ok().and_then(|key| key.find(&level).map(|node| node.line)).unwrap_or(1);
                let plain = value.and_then(|value| value.decrypt(work.key()));
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
