//! The steps of an editable environment: the release runs in a checkout in which people work, without an archive.
//!
//! The checkout is the directory of the slot `in-place`, a work tree of git that belongs to the run user, who also builds. The plan updates the checkout,
//! builds in place while the old processes serve, and then replaces the processes. If a step fails, the earlier commit is checked out again, and the
//! old processes are started again. No file that a person changed is lost: it stays, it is in git's stash, or the push is refused with its name.

use super::deploy::{boot, processes, slot};
use crate::{
    config::EditPolicy,
    git::{
        GitError,
        checkout::{CheckoutAnswer, CheckoutJob, CheckoutRevert, CheckoutUpdate, EditedFile},
    },
    model::{Blame, Phase, SlotError},
    pipeline::{
        context::Deployment,
        step::{self, Acquired, Failure, Resource, Step, Work},
    },
};

/// The maximum number of files that the pusher sees.
const MAX_NAMED: usize = 20;

/// The step that updates the checkout to the commit.
pub struct UpdateCheckout;

impl Step for UpdateCheckout {
    fn name(&self) -> &'static str {
        "gather.checkout"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "update the checkout in place, unless files changed by hand would be lost"
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        step::permit(deployment, Resource::Unpack)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            let stash = spec.stash || deployment.settings().edits == EditPolicy::Stash;
            let (branch, commit) = (spec.branch.clone(), spec.commit.clone());
            let known = spec.previous.as_ref().map(|live| live.commit.clone());
            let (live, is_complete) = (known.clone(), known.is_none());
            let update = CheckoutUpdate { deployment: spec.id, branch, commit: commit.clone(), stash, live, is_complete };
            let answer = match ask(deployment, &CheckoutJob::Update(update.clone()), known.clone()).await {
                // A person may have removed the objects on which the pack was based.
                Err(GitError::Failure(_)) if known.is_some() => {
                    ask(deployment, &CheckoutJob::Update(CheckoutUpdate { is_complete: true, ..update }), None).await
                }
                answer => answer,
            };
            match answer.map_err(|error| Failure::host(&error))? {
                CheckoutAnswer::Updated { stashed, kept, branches } => {
                    let transcript = &deployment.transcript;
                    if kept > 0 {
                        transcript.detail(&format!("kept {} with changes by hand", files(kept)));
                    }
                    if !stashed.is_empty() {
                        transcript.error(&format!("put {} with changes by hand into git's stash:", files(stashed.len())));
                        list(deployment, &stashed);
                        transcript.error("`git stash pop` in the checkout brings them back");
                    }
                    say_branches(deployment, &branches);
                    Ok(())
                }
                CheckoutAnswer::Conflicts(conflicts) => {
                    list(deployment, &conflicts);
                    let first = conflicts.first().map(|file| file.path.clone()).unwrap_or_default();
                    let why = match conflicts.len() {
                        1 => format!("{first} was changed by hand in the checkout, and this push changes it, too"),
                        count => format!(
                            "{first} and {} were changed by hand in the checkout, and this push changes them, too",
                            files(count - 1)
                        ),
                    };
                    Err(Failure { blame: Blame::Pusher, ..Failure::pusher(why) }
                        .hint("commit or revert the files in the checkout, or put them into git's stash with `git push --push-option=stash`"))
                }
                CheckoutAnswer::Ahead(head) => {
                    let why = format!("the checkout has the commit {}, which this push does not contain", head.short());
                    Err(Failure::pusher(why).hint("merge the commit of the checkout, and push again"))
                }
                CheckoutAnswer::Objection(objection) => {
                    let (why, hint) = objection.words(&deployment.paths.run());
                    Err(Failure::pusher(why).hint(hint))
                }
                other => Err(Failure::blameless(format!("the worker of the checkout gave a wrong answer: {other:?}"))),
            }
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            let job = CheckoutJob::Revert { deployment: spec.id, branch: spec.branch.clone() };
            let launcher = &deployment.services.repositories;
            let environment = &deployment.environment;
            let reverted = launcher.checkout(environment.project_id, environment.id, spec.release, &job).await;
            if let CheckoutAnswer::Reverted(CheckoutRevert { branches, stashed }) =
                reverted.map_err(|error| Failure::host(&error))?
            {
                if !stashed.is_empty() {
                    let count = files(stashed.len());
                    deployment
                        .transcript
                        .error(&format!("{count} that changed during the deployment are in git's stash of the checkout:"));
                    list(deployment, &stashed);
                }
                say_branches(deployment, &branches);
            }
            Ok(())
        })
    }
}

/// Runs a job in the checkout, with the objects of the commit that the checkout does not have.
async fn ask(
    deployment: &Deployment,
    job: &CheckoutJob,
    known: Option<crate::model::CommitId>,
) -> Result<CheckoutAnswer, GitError> {
    let (spec, environment) = (&deployment.spec, &deployment.environment);
    let repositories = &deployment.services.repositories;
    repositories.update_checkout(environment.project_id, environment.id, spec.release, job, &spec.commit, known).await
}

/// Shows the branches that keep commits of a person.
fn say_branches(deployment: &Deployment, branches: &[String]) {
    for branch in branches {
        deployment.transcript.error(&format!("commits that were made in the checkout are on its branch {branch}"));
    }
}

fn files(count: usize) -> String {
    if count == 1 { String::from("1 file") } else { format!("{count} files") }
}

/// Shows files to the pusher.
fn list(deployment: &Deployment, files: &[EditedFile]) {
    for file in files.iter().take(MAX_NAMED) {
        deployment.transcript.detail(&format!("{:<8} {}", file.edit.as_str(), file.path));
    }
    if files.len() > MAX_NAMED {
        deployment.transcript.detail(&format!("... and {} more", files.len() - MAX_NAMED));
    }
}

/// The step that determines the processes of the release, and links the persistent paths in the checkout.
pub struct PrepareCheckout;

impl Step for PrepareCheckout {
    fn name(&self) -> &'static str {
        "deploy.prepare"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "link the persistent paths of the checkout to data/"
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let occupant = slot::occupant(deployment);
            let replaced = deployment.memory.slots.change(|table| {
                table.replace(occupant);
                Ok::<_, SlotError>(())
            });
            replaced.map_err(|error| Failure::host(&error))?;
            deployment.facts.processes = processes::processes(deployment)?;
            deployment.facts.env = processes::environment(deployment);
            slot::link(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            boot::stop_reverted(deployment).await?;
            slot::unseed(deployment).await?;
            let replaced = deployment.facts.replaced.as_ref().and_then(|replaced| replaced.occupant.clone());
            let id = deployment.spec.id;
            deployment.memory.slots.note(|table| table.put_back(id, replaced));
            Ok(())
        })
    }
}
