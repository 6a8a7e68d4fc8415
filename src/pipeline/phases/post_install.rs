//! The last check before the verdict, and the first check after the verdict: web processes must not exit.

use std::{future::Future, time::Duration};

use super::deploy::boot;
use crate::{
    model::Phase,
    pipeline::{
        context::Deployment,
        step::{Step, Work, seconds},
    },
    runtime::{Exits, Instance},
};

/// The time for which web processes are watched after their release has gone live. The push does not wait for the end of this
/// time.
const WATCHED: Duration = Duration::from_secs(5);

/// The step that checks that no web process has exited since its start. The check does not wait: after a later exit, the release stays live
/// and the exit is reported, because a wait would make every push slower.
pub struct Alive;

impl Step for Alive {
    fn name(&self) -> &'static str {
        "post_install.alive"
    }

    fn phase(&self) -> Phase {
        Phase::PostInstall
    }

    fn about(&self) -> &'static str {
        "check that no web process has exited since it was started"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let ended = |instance: &Instance| instance.exits.borrow().count > 0;
            let Some(instance) = web(deployment).into_iter().find(ended) else { return Ok(()) };
            let exit = instance.exits.borrow().last;
            let failure = boot::exited_early(deployment, &instance, exit, "soon after it had answered").await;
            Err(failure.hint("keep the web process running until it gets the stop signal"))
        })
    }
}

fn web(deployment: &Deployment) -> Vec<Instance> {
    let spec = &deployment.spec;
    let instances = deployment.services.runtime.instances(deployment.environment.id, Some(spec.slot));
    instances.into_iter().filter(|instance| instance.label.process.is_web()).collect()
}

fn describe(exits: Exits) -> String {
    exits.last.map_or_else(|| String::from("exited"), |exit| exit.to_string())
}

/// Watches a release that has just gone live. If a web process exits, reports the exit in the transcript and in the server's log.
/// The list of exits and the health record contain the exit in any case.
pub fn watch(deployment: &Deployment) -> impl Future<Output = ()> + Send + use<> {
    let (transcript, number) = (deployment.transcript.clone(), deployment.spec.number);
    let title = deployment.environment.title();
    let watches = web(deployment).into_iter().map(move |mut instance| {
        let (transcript, title) = (transcript.clone(), title.clone());
        async move {
            let begun = tokio::time::Instant::now();
            let ended = instance.exits.wait_for(|exits| exits.count > 0);
            // The channel closes when the process is stopped on request.
            let Ok(Ok(exits)) = tokio::time::timeout(WATCHED, ended).await.map(|ended| ended.map(|exits| *exits)) else {
                return;
            };
            let (name, after) = (instance.label.name(), seconds(begun.elapsed()));
            tracing::error!(environment = title, process = name, exit = describe(exits), "web process of {number} exited");
            transcript.error(&format!("{name} {} {after} after {number} went live, and is restarted", describe(exits)));
        }
    });
    let watches: Vec<_> = watches.collect();
    async move { drop(futures_util::future::join_all(watches).await) }
}
