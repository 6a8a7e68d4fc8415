//! Reports a deployment to the forge of its repository: the status of the commit, and a record of the deployment.
//!
//! A report may be repeated: a status with the same context replaces the earlier status, and at GitHub a record is created only if there is no
//! record of the same commit and environment.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Url};
use serde_json::{Value, json};

use super::{delivery::DeliveryError, message::ForgeContent, webhook};
use crate::{
    config::{ForgeConfig, ForgeKind},
    host::files::read_private,
    model::NotificationKind,
};

/// The time limit of all requests of one report.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of the file with the token, in bytes.
const MAX_TOKEN: u64 = 4096;
/// The maximum size of an answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The maximum length of a description, in characters. GitHub allows 140.
pub(super) const MAX_DESCRIPTION: usize = 140;

/// Sends a report.
pub(super) async fn send(forge: &ForgeConfig, content: ForgeContent) -> Result<(), DeliveryError> {
    let late = || Err(DeliveryError::temporary(format!("the forge did not answer within {} s", TIMEOUT.as_secs())));
    tokio::time::timeout(TIMEOUT, report(forge, content)).await.unwrap_or_else(|_| late())
}

async fn report(forge: &ForgeConfig, content: ForgeContent) -> Result<(), DeliveryError> {
    let url = Url::parse(&forge.api()).map_err(DeliveryError::permanent)?;
    // The operator has named the forge, so its address may be internal.
    let client = webhook::client(&url, None).await?;
    let session = Session { forge, client, token: token(forge)? };
    let (path, commit) = (session.path(), &content.commit);
    let context = format!("larder/{}", content.environment);
    let state = state(forge.kind, content.kind);
    let status = match forge.kind {
        ForgeKind::Github | ForgeKind::Gitea => json!({
            "state": state, "target_url": content.url, "description": content.description, "context": context,
        }),
        ForgeKind::Gitlab => {
            json!({ "state": state, "target_url": content.url, "description": content.description, "name": context })
        }
    };
    session.post(&format!("{path}/statuses/{commit}"), &status).await?;
    if content.kind == NotificationKind::Began {
        return Ok(());
    }
    match forge.kind {
        ForgeKind::Github => session.github_deployment(&content, state).await,
        ForgeKind::Gitlab => session.gitlab_deployment(&content, state).await,
        // Gitea has no records of deployments.
        ForgeKind::Gitea => Ok(()),
    }
}

/// Returns the word of a forge for a state.
fn state(forge: ForgeKind, kind: NotificationKind) -> &'static str {
    match (forge, kind) {
        (ForgeKind::Gitlab, NotificationKind::Began) => "running",
        (_, NotificationKind::Began) => "pending",
        (_, NotificationKind::Deployed | NotificationKind::RolledBack) => "success",
        (ForgeKind::Gitlab, _) => "failed",
        _ => "failure",
    }
}

fn token(forge: &ForgeConfig) -> Result<String, DeliveryError> {
    let unusable = |why: String| DeliveryError::temporary(format!("cannot use the token of the forge: {why}"));
    let bytes = read_private(&forge.token_file, MAX_TOKEN).map_err(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        unusable(format!("{error}{hint}"))
    })?;
    let bytes = bytes.ok_or_else(|| unusable(format!("{} does not exist", forge.token_file.display())))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable(String::from("the file is not UTF-8")))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable(String::from("the file does not contain one token")));
    }
    Ok(token.to_owned())
}

/// The access to the API of a forge.
struct Session<'f> {
    forge: &'f ForgeConfig,
    client: Client,
    token: String,
}

impl Session<'_> {
    /// Returns the path of the repository in the API.
    fn path(&self) -> String {
        match self.forge.kind {
            ForgeKind::Github | ForgeKind::Gitea => format!("/repos/{}", self.forge.repository),
            ForgeKind::Gitlab => format!("/projects/{}", self.forge.repository.replace('/', "%2F")),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, DeliveryError> {
        let request = self.client.post(format!("{}{path}", self.forge.api()));
        self.ask(request.header("content-type", "application/json").body(body.to_string())).await
    }

    async fn get(&self, path: &str) -> Result<Value, DeliveryError> {
        self.ask(self.client.get(format!("{}{path}", self.forge.api()))).await
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Value, DeliveryError> {
        let request = request.header("user-agent", concat!("larder/", env!("CARGO_PKG_VERSION")));
        let request = match self.forge.kind {
            ForgeKind::Github => request
                .bearer_auth(&self.token)
                .header("accept", "application/vnd.github+json")
                .header("x-github-api-version", "2022-11-28"),
            ForgeKind::Gitlab => request.header("private-token", &self.token),
            ForgeKind::Gitea => request.header("authorization", format!("token {}", self.token)),
        };
        let mut answer = request.send().await.map_err(|error| DeliveryError::temporary(webhook::cause(error)))?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| DeliveryError::temporary(webhook::cause(error)))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(DeliveryError::temporary(format!("the answer of the forge has more than {MAX_ANSWER} bytes")));
            }
        }
        match status {
            200..300 => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            // GitLab refuses a status that the commit has already.
            400 if self.forge.kind == ForgeKind::Gitlab
                && String::from_utf8_lossy(&bytes).contains("Cannot transition status") =>
            {
                Ok(Value::Null)
            }
            404 | 422 => Err(DeliveryError::permanent(format!(
                "the forge answered {status}: the repository does not have the commit, or the token has no right to write its status"
            ))),
            _ => Err(DeliveryError::temporary(format!("the forge answered {status} (expected 200-299)"))),
        }
    }

    async fn github_deployment(&self, content: &ForgeContent, state: &str) -> Result<(), DeliveryError> {
        let path = format!("{}/deployments", self.path());
        let (commit, environment) = (&content.commit, &content.environment);
        let known = self.get(&format!("{path}?sha={commit}&environment={environment}&per_page=1")).await?;
        let id = |record: &Value| record.get("id").and_then(Value::as_u64);
        let id = match known.get(0).and_then(id) {
            Some(known) => known,
            None => {
                let record = json!({
                    "ref": commit, "environment": environment, "description": content.description,
                    "auto_merge": false, "required_contexts": [],
                });
                let made = self.post(&path, &record).await?;
                id(&made).ok_or_else(|| DeliveryError::temporary("the answer of the forge has no id of the deployment"))?
            }
        };
        let status = json!({ "state": state, "environment_url": content.url, "description": content.description });
        self.post(&format!("{path}/{id}/statuses"), &status).await.map(drop)
    }

    async fn gitlab_deployment(&self, content: &ForgeContent, state: &str) -> Result<(), DeliveryError> {
        let record = json!({
            "environment": content.environment, "sha": content.commit, "ref": content.branch, "tag": false, "status": state,
        });
        self.post(&format!("{}/deployments", self.path()), &record).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forge_has_its_own_words_for_a_state() {
        for (forge, words) in [
            (ForgeKind::Github, ["pending", "success", "failure"]),
            (ForgeKind::Gitlab, ["running", "success", "failed"]),
            (ForgeKind::Gitea, ["pending", "success", "failure"]),
        ] {
            let kinds = [NotificationKind::Began, NotificationKind::Deployed, NotificationKind::Failed];
            assert_eq!(kinds.map(|kind| state(forge, kind)), words, "{forge:?}");
        }
    }
}
