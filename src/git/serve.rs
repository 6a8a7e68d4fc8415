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
    /// Its limits.
    pub limits: ServeLimits,
}

/// Faults of objects that old programs wrote into many histories, and that harm no reader (git-fsck(1), "FSCK MESSAGES"). They cannot be
/// repaired without rewriting the history, so git warns of them instead of refusing the push.
const HARMLESS_FAULTS: [&str; 8] = [
    "badTimezone",
    "badDateOverflow",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];

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
    let settings =
        HARMLESS_FAULTS.into_iter().fold(settings, |settings, fault| settings.config(&format!("receive.fsck.{fault}"), "warn"));
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
            if let Err(error) = leave_program() {
                return ServeError::Program(error);
            }
            let push = Push { hooks, socket, token, limits };
            (settings(protocol, Some(&push)).command(&git), "receive-pack")
        }
    };
    command.arg(program).arg("--end-of-options").arg(paths.repository());
    ServeError::Exec(command.exec())
}

/// The descriptor under which the hooks' first line names this very binary. Shells use the numbers up to about 20 for themselves.
const PROGRAM: i32 = 64;

/// Leaves this binary open for the hooks: the sandbox need not show it anywhere, and no shell has to start to find it.
fn leave_program() -> std::io::Result<()> {
    use std::os::fd::{AsRawFd, IntoRawFd};
    let program = rustix::io::fcntl_dupfd_cloexec(File::open("/proc/self/exe")?, PROGRAM)?;
    if program.as_raw_fd() != PROGRAM {
        return Err(std::io::Error::other(format!("descriptor {PROGRAM} is taken")));
    }
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty())?;
    // Not closed: it has to outlive the exec.
    let _ = program.into_raw_fd();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_runs_the_inherited_program_and_none_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        std::fs::write(&hook, format!("#!/proc/self/fd/{PROGRAM} --exact\n")).unwrap();
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // In a shell of its own, so that other tests' children do not inherit the descriptor.
        let own = std::env::current_exe().unwrap();
        let run = |script: String| std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        let output = run(format!("exec {PROGRAM}<'{}'; exec '{}' --list", own.display(), hook.display()));
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("0 tests"), "{output:?}");
        assert!(!run(format!("exec '{}' --list", hook.display())).status.success());
    }

    #[test]
    fn hooks_name_the_descriptor() {
        for (name, text) in crate::git::embedded::HOOKS {
            assert!(text.starts_with(format!("#!/proc/self/fd/{PROGRAM} hook\n").as_bytes()), "{name}");
        }
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
