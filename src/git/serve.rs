//! Worker side: becomes git's own receive-pack or upload-pack.

use std::{fs::File, os::unix::process::CommandExt, path::Path};

use super::{
    job::{ServeLimits, Service},
    paths::WorkerPaths,
    program::{self, Settings},
    refs::OWN_REFS,
};

/// Why git could not be started; the client sees it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No git.
    #[error("git is not installed on the server; its administrator has to install git 2.29 or newer")]
    NoGit,
    /// A push without what its hooks need: it would be accepted by nobody.
    #[error("a push was to be served without {0}")]
    Missing(&'static str),
    /// The hooks could not be given their program.
    #[error("the hooks' program could not be opened")]
    Program(#[source] std::io::Error),
    /// The program could not be executed.
    #[error("git could not be started")]
    Exec(#[source] std::io::Error),
}

/// What a push needs beside the repository.
#[derive(Debug)]
pub struct Push<'a> {
    /// The hook scripts.
    pub hooks: &'a Path,
    /// The daemon's socket.
    pub socket: &'a Path,
    /// The push's token, in text form.
    pub token: &'a str,
    /// The program that hooks run.
    pub program: &'a Path,
    /// Its limits.
    pub limits: ServeLimits,
}

/// The settings for `service`.
pub fn settings(protocol: Option<u8>, push: Option<&Push<'_>>) -> Settings {
    let mut settings = Settings::new()
        .config("transfer.hideRefs", OWN_REFS)
        .config("transfer.fsckObjects", "true")
        .config("uploadpack.allowFilter", "true")
        .config("uploadpack.allowReachableSHA1InWant", "true")
        // Hooks of the repository itself are never run.
        .config("core.hooksPath", push.map_or(Path::new("/nonexistent"), |push| push.hooks));
    if let Some(version @ 0..=2) = protocol {
        settings = settings.env("GIT_PROTOCOL", format!("version={version}"));
    }
    let Some(push) = push else { return settings };
    settings
        .config("receive.fsckObjects", "true")
        .config("receive.maxInputSize", push.limits.pack_bytes.to_string())
        // A prefix up to a slash: every ref, whether made, moved or deleted, is decided over by the daemon.
        .config("receive.procReceiveRefs", "refs")
        .config("receive.advertisePushOptions", "true")
        .config("receive.advertiseAtomic", "true")
        .config("receive.autogc", "false")
        .config("receive.updateServerInfo", "false")
        // Whether a branch may be deleted or rewound is the daemon's decision: an operator pushes an old commit to go back.
        .config("receive.denyDeletes", "false")
        .config("receive.denyNonFastForwards", "false")
        .config("receive.denyCurrentBranch", "ignore")
        .config("receive.denyDeleteCurrent", "ignore")
        .config("receive.shallowUpdate", "false")
        .config("receive.keepAlive", "5")
        // One wait for the disk for all objects of a small push.
        .config("core.fsyncMethod", "batch")
        .env("LARDER_BIN", push.program)
        .env("LARDER_HOOK_SOCKET", push.socket)
        .env("LARDER_PUSH_TOKEN", push.token)
}

/// Turns this process into git; returns only if that fails. Descriptors 0, 1 and 2 are the client's.
pub fn serve(
    paths: &WorkerPaths,
    service: Service,
    protocol: Option<u8>,
    token: Option<&str>,
    limits: ServeLimits,
) -> ServeError {
    let Some(git) = program::find() else { return ServeError::NoGit };
    let (mut command, program) = match service {
        Service::UploadPack => (settings(protocol, None).command(&git), "upload-pack"),
        Service::ReceivePack => {
            let Some(hooks) = &paths.hooks else { return ServeError::Missing("LARDER_HOOKS") };
            let Some(socket) = &paths.hook_socket else { return ServeError::Missing("LARDER_HOOK_SOCKET") };
            let Some(token) = token else { return ServeError::Missing("a token") };
            let own = match own_program() {
                Ok(own) => own,
                Err(error) => return ServeError::Program(error),
            };
            let push = Push { hooks, socket, token, program: Path::new(&own), limits };
            (settings(protocol, Some(&push)).command(&git), "receive-pack")
        }
    };
    command.arg(program).arg("--end-of-options").arg(paths.repository());
    ServeError::Exec(command.exec())
}

/// A path under which the hooks find this very binary. The sandbox need not show it anywhere: an inherited descriptor will do.
fn own_program() -> std::io::Result<String> {
    use std::os::fd::IntoRawFd;
    // Shells use the numbers up to about 20 for themselves.
    let program = rustix::io::fcntl_dupfd_cloexec(File::open("/proc/self/exe")?, 64)?;
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty())?;
    // Not closed: it has to outlive the exec.
    Ok(format!("/proc/self/fd/{}", program.into_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_script_can_run_the_inherited_program() {
        let program = own_program().unwrap();
        let script = format!("exec \"{program}\" --list --exact no-such-test");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("0 tests"), "{output:?}");
    }

    #[test]
    fn a_push_without_its_hooks_is_not_served() {
        let paths = WorkerPaths { repo: "/nonexistent".into(), source: None, hooks: None, hook_socket: None };
        let error = serve(&paths, Service::ReceivePack, None, None, ServeLimits::default());
        assert!(matches!(error, ServeError::Missing("LARDER_HOOKS")), "{error}");
    }

    #[test]
    fn git_gets_nothing_of_our_environment() {
        let command = settings(Some(2), None).command(Path::new("git"));
        let names: Vec<_> = command.get_envs().filter_map(|(name, _)| name.to_str()).collect();
        assert!(names.contains(&"GIT_PROTOCOL") && !names.contains(&"LD_PRELOAD") && !names.contains(&"LARDER_PUSH_TOKEN"));
        assert!(
            names.iter().all(|name| name.starts_with("GIT_") || ["PATH", "HOME", "LC_ALL", "TZ"].contains(name)),
            "{names:?}"
        );
    }
}
