//! Permits: the server-wide limits on concurrent heavy work. A step takes the permit of the resource that it uses, and releases the permit
//! at its end. A deployment therefore never holds a permit while it waits for a second permit.
//!
//! Rollbacks, undos, restarts, restores and removals take no permit: none of them waits for a deployment of another environment. Steps
//! after the switch take no permit either.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::transcript::Transcript;
use crate::config::ServerConfig;

/// Heavy work that only a limited number of steps do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Buildpacks.
    Build,
    /// Export, packing and installation of whole trees.
    Unpack,
    /// The start of a release's processes.
    Boot,
    /// The project's own scripts and its release command.
    Script,
}

impl Resource {
    /// Returns the line that the transcript shows while the deployment waits.
    fn wait(self) -> &'static str {
        match self {
            Resource::Build => "waiting for another build on this server",
            Resource::Unpack => "waiting for another deployment to export, pack or install its files",
            Resource::Boot => "waiting for another deployment to start its processes",
            Resource::Script => "waiting for another deployment to run its script",
        }
    }
}

/// The permits of this server. Waiters are served in the order of their arrival.
#[derive(Debug)]
pub struct Permits {
    build: Arc<Semaphore>,
    unpack: Arc<Semaphore>,
    boot: Arc<Semaphore>,
    script: Arc<Semaphore>,
}

impl Permits {
    /// Creates the permits that the server file allows: `deployments.parallel` of each resource, and at most `builds.parallel` builds.
    pub fn new(config: &ServerConfig) -> Permits {
        let permits = |count: u16| Arc::new(Semaphore::new(count.into()));
        let deployments = config.deployments_parallel;
        Permits {
            build: permits(config.builds.parallel.min(deployments)),
            unpack: permits(deployments),
            boot: permits(deployments),
            script: permits(deployments),
        }
    }

    /// Acquires a permit. If the deployment must wait, writes one line to the transcript.
    ///
    /// # Errors
    /// [`AcquireError`] if the semaphore is closed; larder never closes the semaphore.
    pub async fn acquire(&self, resource: Resource, transcript: &Transcript) -> Result<OwnedSemaphorePermit, AcquireError> {
        let semaphore = self.semaphore(resource);
        match semaphore.clone().try_acquire_owned() {
            Ok(permit) => Ok(permit),
            Err(_) => {
                transcript.detail(resource.wait());
                semaphore.clone().acquire_owned().await
            }
        }
    }

    /// Acquires a permit like [`Permits::acquire`], for work without a transcript.
    ///
    /// # Errors
    /// As for [`Permits::acquire`].
    pub async fn acquire_quietly(&self, resource: Resource) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.semaphore(resource).clone().acquire_owned().await
    }

    fn semaphore(&self, resource: Resource) -> &Arc<Semaphore> {
        match resource {
            Resource::Build => &self.build,
            Resource::Unpack => &self.unpack,
            Resource::Boot => &self.boot,
            Resource::Script => &self.script,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_parallel_deployments_applies_to_every_resource() {
        let mut config = ServerConfig { deployments_parallel: 3, ..ServerConfig::default() };
        config.builds.parallel = 2;
        let available = |config: &ServerConfig| {
            let permits = Permits::new(config);
            [Resource::Build, Resource::Unpack, Resource::Boot, Resource::Script]
                .map(|resource| permits.semaphore(resource).available_permits())
        };
        assert_eq!(available(&config), [2, 3, 3, 3]);
        config.deployments_parallel = 1;
        assert_eq!(available(&config), [1, 1, 1, 1]);
    }

    #[tokio::test]
    async fn released_permit_goes_to_the_first_waiter() {
        let permits = Permits::new(&ServerConfig { deployments_parallel: 1, ..ServerConfig::default() });
        let semaphore = permits.semaphore(Resource::Boot);
        let held = semaphore.clone().try_acquire_owned().unwrap();
        let mut first = Box::pin(semaphore.clone().acquire_owned());
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        let mut second = Box::pin(semaphore.clone().acquire_owned());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(held);
        // A step that arrives now does not overtake the waiters.
        assert!(semaphore.clone().try_acquire_owned().is_err());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(futures_util::poll!(first.as_mut()).is_ready());
    }
}
