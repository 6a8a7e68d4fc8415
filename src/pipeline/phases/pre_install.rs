//! Is this machine fit for a deployment?

use rustix::fs::statvfs;

use crate::{
    model::Phase,
    pipeline::{
        context::Deployment,
        step::{Failure, Step, Work},
    },
};

/// Looks at the disk before anything big is made.
pub struct Checks;

impl Step for Checks {
    fn name(&self) -> &'static str {
        "pre_install.checks"
    }

    fn phase(&self) -> Phase {
        Phase::PreInstall
    }

    fn about(&self) -> &'static str {
        "check that the disk has room for a build, an archive and a release"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let path = deployment.paths.path();
            let disk = statvfs(path).map_err(|error| Failure::host(&std::io::Error::from(error)))?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let reserve = deployment.services.config.limits.disk_reserve.bytes();
            if free < reserve {
                let why =
                    format!("the server's disk is nearly full: {} MiB free, {} MiB are kept free", free >> 20, reserve >> 20);
                return Err(Failure { blame: crate::model::Blame::Host, why, hints: Vec::new() }
                    .hint("the server's operator can free space, keep fewer releases, or lower `limits: {disk_reserve: ...}`"));
            }
            // Some file systems have no fixed number of inodes and say 0.
            if disk.f_files > 0 && disk.f_favail < 10_000 {
                let why = format!("the server's disk has room for only {} more files", disk.f_favail);
                return Err(Failure { blame: crate::model::Blame::Host, why, hints: Vec::new() });
            }
            Ok(())
        })
    }
}
