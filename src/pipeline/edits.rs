//! Changes that people made by hand in the checkout of an editable environment, for requests outside of a deployment.

use std::os::fd::OwnedFd;

use super::{core::Pipeline, error::PipelineError, util::chain};
use crate::{
    git::{
        GitError,
        checkout::{CheckoutAnswer, CheckoutJob, CheckoutState},
    },
    model::{CommitId, Environment, Live, Mode},
};

/// The reason why the checkout of an environment cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum EditsError {
    /// The environment has no checkout.
    #[error("{environment} has no checkout: its mode is {mode}")]
    NoCheckout {
        /// The environment, as `project/environment`.
        environment: String,
        /// The mode of the environment.
        mode: Mode,
    },
    /// Nothing was pushed to the environment.
    #[error("{0} has an empty checkout: nothing is live")]
    Empty(String),
    /// Another operation is under way in the environment.
    #[error(transparent)]
    Busy(#[from] PipelineError),
    /// A person must first end something in the checkout.
    #[error("{why}")]
    Objection {
        /// The reason.
        why: String,
        /// The remedy.
        hint: String,
    },
    /// git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The worker gave an answer that does not belong to the request.
    #[error("the worker of the checkout gave a wrong answer")]
    Confused,
}

impl Pipeline {
    /// Returns the live release of an editable environment.
    fn live_checkout(&self, environment: &Environment) -> Result<Live, EditsError> {
        if environment.mode != Mode::Editable {
            return Err(EditsError::NoCheckout { environment: environment.title(), mode: environment.mode });
        }
        self.live(environment.id).ok_or_else(|| EditsError::Empty(environment.title()))
    }

    /// Returns the state of the checkout.
    pub async fn edits(&self, environment: &Environment) -> Result<CheckoutState, EditsError> {
        let live = self.live_checkout(environment)?;
        let repositories = &self.services().repositories;
        match repositories.checkout(environment.project_id, environment.id, live.release, &CheckoutJob::Look).await? {
            CheckoutAnswer::State(state) => Ok(state),
            _ => Err(EditsError::Confused),
        }
    }

    /// Changes the checkout. Fails while a deployment is under way.
    pub async fn change_edits(&self, environment: &Environment, job: &CheckoutJob) -> Result<CheckoutAnswer, EditsError> {
        let live = self.live_checkout(environment)?;
        let queue = self.queue_of(environment)?;
        let _work = queue.work_now().await?;
        let services = self.services();
        match services.repositories.checkout(environment.project_id, environment.id, live.release, job).await? {
            CheckoutAnswer::Objection(objection) => {
                let checkout = services.root.environment(&environment.project, &environment.name).run();
                let (why, hint) = objection.words(&checkout);
                Err(EditsError::Objection { why, hint })
            }
            answer => Ok(answer),
        }
    }

    /// Copies a commit of the checkout to the project's repository. No ref names the commit afterwards.
    pub async fn import_edits(&self, environment: &Environment, commit: &CommitId) -> Result<(), EditsError> {
        let live = self.live_checkout(environment)?;
        let known = vec![live.commit.clone()];
        import(self, environment, &live, commit, known).await
    }
}

async fn import(
    pipeline: &Pipeline,
    environment: &Environment,
    live: &Live,
    commit: &CommitId,
    known: Vec<CommitId>,
) -> Result<(), EditsError> {
    let services = pipeline.services();
    let pipe = std::io::pipe().map_err(|error| {
        tracing::error!(error = chain(&error), "cannot create a pipe");
        EditsError::Confused
    })?;
    let (reader, writer): (OwnedFd, OwnedFd) = (pipe.0.into(), pipe.1.into());
    let job = CheckoutJob::Pack { commit: commit.clone(), known };
    let packing = services.repositories.pack_checkout(environment.project_id, environment.id, live.release, &job, writer);
    let limit = services.config.limits.push_bytes.bytes();
    let importing = services.repositories.import_pack(environment.project_id, commit.clone(), reader, limit);
    let (packed, imported) = tokio::join!(packing, importing);
    // A failed import breaks the pipe of the packing, so the reason of the import comes first.
    imported?;
    packed.map(drop).map_err(EditsError::from)
}
