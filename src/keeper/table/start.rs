//! Starts the process of an entry: prepares its directories, overlay, control group and environment variables.

use std::{
    ffi::OsString,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    time::Instant,
};

use larder_sandbox::{ChildProcess, ChildSpec, OverlayId};
use rustix::fs::{Mode, OFlags, open};

use super::{
    super::{
        directories::relative,
        limits::limits_of,
        users::SystemUser,
        views::{self, BINARY},
    },
    ProcessTable,
    entry::{ProcessEntry, RunningProcess},
};
use crate::{
    host::launch::LARGE_PAGES,
    model::{Launch, LimitClass, ProcessId, Role, Slot},
};

impl ProcessTable {
    /// Starts the process of an entry.
    pub(super) fn start(&mut self, id: ProcessId, entry: &ProcessEntry) -> Result<RunningProcess, String> {
        let mut overlay = None;
        let started = self.try_start(id, entry, &mut overlay);
        if let (Err(_), Some(overlay)) = (&started, overlay) {
            self.overlays.release(overlay);
        }
        started
    }

    fn try_start(
        &mut self,
        id: ProcessId,
        entry: &ProcessEntry,
        acquired: &mut Option<OverlayId>,
    ) -> Result<RunningProcess, String> {
        let (launch, assignment) = (&entry.launch, &entry.assignment);
        if let (Role::Unpack, Some(env), Some(release)) = (launch.role, launch.environment, launch.release) {
            let (_, project, name) = self.registry.environment(env)?;
            let tree = relative().environment(project, name).tree(release);
            self.directories.make(tree, SystemUser::Unpack(env), 0o755).map_err(|error| error.to_string())?;
        }
        let mut writable = true;
        let mut view = None;
        if let (Ok(base), None) = (&self.base, &assignment.unit) {
            let mut app = None;
            if let (Some(layer), true) = (&assignment.layer, self.uses_overlay(launch)) {
                let (id, path, whole) = self
                    .overlays
                    .acquire(layer, &self.directories.root)
                    .map_err(|error| format!("cannot mount the overlay of /app: {error}"))?;
                (app, writable, *acquired) = (Some(path), whole, Some(id));
            }
            let binds = assignment.binds(&self.config.root, app);
            view = Some(views::view(base, &self.config, binds, self.users.numbers(assignment.user)));
        }
        let limits = limits_of(launch.limits, &self.config);
        let program = self.program.as_ref().ok_or("no server has been started yet")?;
        // The job is opened again, so that each start reads the job from its beginning.
        let job = Path::new("/proc/self/fd").join(entry.job.as_raw_fd().to_string());
        let job = open(job, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("cannot open the job: {error}"))?;
        let group = self.groups.group(&id.0.to_string(), &limits);
        let null = self.null.as_fd();
        let out = entry.output.as_ref().map(|(_, write)| write);
        let [stdin, stdout, stderr] = &entry.standard;
        let mut descriptors: Vec<_> =
            [stdin.as_ref(), stdout.as_ref().or(out), stderr.as_ref().or(out), Some(&job), entry.report.as_ref()]
                .map(|descriptor| descriptor.map_or(null, AsFd::as_fd))
                .into();
        descriptors.extend(entry.extra.iter().map(AsFd::as_fd));
        // Language runtimes reserve far more memory than they use, so RLIMIT_DATA would stop applications that are within their limit.
        let coarse = !matches!(launch.limits, LimitClass::Application { .. }) && !group.limits_memory();
        // RLIMIT_NPROC counts all processes of a user. The git user, and in rootless mode the only user, run processes of many projects.
        let sharing = if !self.users.system() || assignment.user == SystemUser::Git { 8 } else { 1 };
        let spec = ChildSpec {
            argv: ["larder", "worker", launch.role.as_str()].map(OsString::from).into(),
            environment: self.environment(entry, view.is_some()),
            user: self.users.system().then(|| self.users.numbers(assignment.user)),
            data: limits.memory.filter(|_| coarse),
            processes: (!group.limits_processes()).then(|| limits.processes.saturating_mul(sharing)),
            limits: Some(limits),
            descriptors,
            program: program.as_fd(),
            guarded: true,
            view,
        };
        match ChildProcess::start(&spec, Some(&group)) {
            Ok(process) => {
                let (overlay, since) = (acquired.take(), Instant::now());
                Ok(RunningProcess { process, group, overlay, writable, since, failed: None, closed: false, ended: None })
            }
            Err(error) => {
                self.groups.remove(group);
                Err(format!("cannot start the process: {error}"))
            }
        }
    }

    fn uses_overlay(&self, launch: &Launch) -> bool {
        self.overlays.works.is_ok() && !launch.slot.is_some_and(Slot::is_directory)
    }

    /// Returns all environment variables of a worker.
    fn environment(&self, entry: &ProcessEntry, view: bool) -> Vec<(OsString, OsString)> {
        let binary = if view { PathBuf::from(BINARY) } else { self.config.exe.clone() };
        let mut path: OsString = binary.parent().unwrap_or(Path::new("/")).into();
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        if entry.assignment.own_code {
            for host in &self.config.host_paths {
                let bin = if host.ends_with("bin") { host.clone() } else { host.join("bin") };
                if bin.is_dir() {
                    path.push(":");
                    path.push(bin);
                }
            }
            all.extend(self.config.host_env.iter().cloned());
        }
        path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let variables =
            entry.assignment.variables((!view).then_some(self.config.root.as_path()), self.uses_overlay(&entry.launch));
        let home = variables.get("LARDER_APP").cloned().unwrap_or_else(|| if view { "/app".into() } else { "/".into() });
        let fixed: [(&str, OsString); 6] = [
            ("PATH", path),
            ("HOME", home),
            ("LANG", "C.UTF-8".into()),
            // In a view, `/tmp` is private.
            ("TMPDIR", if view { "/tmp".into() } else { std::env::temp_dir().into() }),
            ("LARDER_BIN", binary.into()),
            ("LARDER_EXTRA", entry.extra.len().to_string().into()),
        ];
        if let (Some(unit), Role::Unit(request)) = (&entry.assignment.unit, entry.launch.role) {
            let action = if request.start { "start" } else { "stop" };
            all.push(("LARDER_UNIT_COMMAND".into(), self.config.units.0.clone().into()));
            all.extend([("LARDER_UNIT_ACTION".into(), action.into()), ("LARDER_UNIT".into(), unit.clone())]);
        }
        if entry.launch.role.packs() {
            all.push((LARGE_PAGES.0.into(), LARGE_PAGES.1.into()));
        }
        all.extend(fixed.into_iter().chain(variables).map(|(name, value)| (name.into(), value)));
        all
    }
}
