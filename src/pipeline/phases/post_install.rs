//! The last look before the verdict, and the first one after it: what serves must go on serving.

use std::{future::Future, time::Duration};

use super::deploy::boot;
use crate::{
    model::Phase,
    pipeline::{
        context::Deployment,
        runner::seconds,
        step::{Step, Work},
    },
    runtime::{Exits, Instance},
};

/// How long web processes are looked after once their release has gone live. Nobody waits for that.
const LOOKED_AFTER: Duration = Duration::from_secs(5);

/// Sees that no web process has ended since it was started. It takes no time: what ends later than this is told, but not undone,
/// because a push that waits for it would be slower for everybody whose processes do not end.
pub struct Alive;

impl Step for Alive {
    fn name(&self) -> &'static str {
        "post_install.alive"
    }

    fn phase(&self) -> Phase {
        Phase::PostInstall
    }

    fn about(&self) -> &'static str {
        "see that no web process has ended since it was started"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let ended = |instance: &Instance| instance.exits.borrow().count > 0;
            let Some(instance) = web(deployment).into_iter().find(ended) else { return Ok(()) };
            let exit = instance.exits.borrow().last;
            let failure = boot::exited_early(deployment, &instance, exit, "soon after it had answered").await;
            Err(failure.hint("a web process has to run until it is asked to stop"))
        })
    }
}

fn web(deployment: &Deployment) -> Vec<Instance> {
    let order = &deployment.order;
    let instances = deployment.services.runtime.instances(order.environment.id, Some(order.slot));
    instances.into_iter().filter(|instance| instance.label.process.is_web()).collect()
}

fn how(exits: Exits) -> String {
    exits.last.map_or_else(|| String::from("ended"), |exit| exit.to_string())
}

/// Looks after a release that has just gone live, and says in its log and the server's if it does not stay up. The list of ends,
/// and with it the health record of the release, has it anyway.
pub fn look_after(deployment: &Deployment) -> impl Future<Output = ()> + Send + use<> {
    let (transcript, number) = (deployment.transcript.clone(), deployment.order.number);
    let title = deployment.order.environment.title();
    let looks = web(deployment).into_iter().map(move |mut instance| {
        let (transcript, title) = (transcript.clone(), title.clone());
        async move {
            let begun = tokio::time::Instant::now();
            let ended = instance.exits.wait_for(|exits| exits.count > 0);
            // Its end as such, and no longer to be told of it, when somebody stops it.
            let Ok(Ok(exits)) = tokio::time::timeout(LOOKED_AFTER, ended).await.map(|ended| ended.map(|exits| *exits)) else {
                return;
            };
            let (name, after) = (instance.label.name(), seconds(begun.elapsed()));
            tracing::error!(environment = title, process = name, exit = how(exits), "{number} does not stay up");
            transcript.error(&format!("{name} {} {after} after {number} went live, and is started again", how(exits)));
        }
    });
    let looks: Vec<_> = looks.collect();
    async move { drop(futures_util::future::join_all(looks).await) }
}
