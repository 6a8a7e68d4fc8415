//! Whose deliverables a project accepts.

use super::{not_found, refused};
use crate::{
    control::{CommandError, Control, Reply, TrustRow, TrustedKey, error::no_project},
    model::{ProjectName, PublicKey, RemoteName},
};

/// How many keys one project may trust.
const MOST: usize = 64;

pub(super) async fn trust(
    control: &Control,
    project: ProjectName,
    key: Option<PublicKey>,
    name: Option<RemoteName>,
) -> Result<Reply, CommandError> {
    let Some(key) = key else { return list(control, &project) };
    let names = control.0.registry.read().projects.iter().map(|project| project.name.clone()).collect::<Vec<_>>();
    let name = match name {
        Some(name) => name,
        None => "staging".parse().map_err(|error| CommandError::internal(&error))?,
    };
    let said = format!("{project} accepts what {key} has signed");
    control
        .change(|registry| {
            if registry.project(&project).is_none() {
                return Err(no_project(&project, &names));
            }
            let mine = registry.trusted.iter().filter(|trusted| trusted.project == project);
            if mine.clone().any(|trusted| trusted.key == key) {
                return Err(refused(format!("{project} trusts {key} already")));
            }
            if let Some(taken) = mine.clone().find(|trusted| trusted.name == name) {
                return Err(refused(format!("{} is the name of another key that {project} trusts", taken.name))
                    .hint("choose another --name"));
            }
            if mine.count() >= MOST {
                return Err(refused(format!("{project} trusts {MOST} keys already")).hint("`larder key untrust` removes one"));
            }
            registry.trusted.push(TrustedKey { project, key, name });
            Ok(())
        })
        .await?;
    Ok(Reply::Done(said))
}

fn list(control: &Control, project: &ProjectName) -> Result<Reply, CommandError> {
    let registry = control.0.registry.read();
    let known = registry.project(project).ok_or_else(|| no_project(project, &[]))?;
    let mine = registry.trusted.iter().filter(|trusted| trusted.project == *project);
    let mut rows: Vec<_> =
        mine.map(|trusted| TrustRow { on: project.to_string(), key: trusted.key, name: trusted.name.to_string() }).collect();
    for environment in &known.environments {
        for remote in &environment.remotes {
            let row = |key| TrustRow { on: environment.title(), key, name: remote.name.to_string() };
            rows.extend(remote.trust.iter().copied().map(row));
        }
    }
    Ok(Reply::Trusted(rows))
}

pub(super) async fn untrust(control: &Control, project: ProjectName, key: PublicKey) -> Result<Reply, CommandError> {
    let said = format!("{project} accepts nothing more that {key} has signed");
    control
        .change(|registry| {
            let before = registry.trusted.len();
            registry.trusted.retain(|trusted| trusted.project != project || trusted.key != key);
            if registry.trusted.len() < before {
                return Ok(());
            }
            Err(not_found(format!("{project} does not trust {key} by itself"))
                .hint(format!("`larder key trust {project}` lists the keys; those of a remote go with the remote")))
        })
        .await?;
    Ok(Reply::Done(said))
}
