//! Starts the process of an entry: prepares its directories, overlay, control group and environment variables.

use std::{
    ffi::OsString,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::{Mode, OFlags, open};

use super::{
    super::{
        cgroup::Limits,
        directories::relative,
        layers::LayerId,
        sandbox::{BINARY, View},
        spawn::{Process, ProcessSpec},
        users::User,
    },
    Table,
    entry::{Entry, Live},
};
use crate::{
    host::launch::LARGE_PAGES,
    model::{LimitClass, ProcessId, Role},
};

impl Table {
    /// Starts the process of an entry.
    pub(super) fn start(&mut self, id: ProcessId, entry: &Entry) -> Result<Live, String> {
        let mut layer = None;
        let started = self.try_start(id, entry, &mut layer);
        if let (Err(_), Some(layer)) = (&started, layer) {
            self.layers.release(layer);
        }
        started
    }

    fn try_start(&mut self, id: ProcessId, entry: &Entry, acquired: &mut Option<LayerId>) -> Result<Live, String> {
        let (launch, assignment) = (&entry.launch, &entry.assignment);
        if let (Role::Unpack, Some(env), Some(release)) = (launch.role, launch.environment, launch.release) {
            let (_, project, name) = self.registry.environment(env)?;
            let tree = relative().environment(project, name).tree(release);
            self.directories.make(tree, User::Unpack(env), 0o755).map_err(|error| error.to_string())?;
        }
        let mut writable = true;
        let mut view = None;
        if let Ok(base) = &self.base {
            let mut app = None;
            if let (Some(layer), Ok(())) = (&assignment.layer, &self.layers.works) {
                let (id, path, whole) = self
                    .layers
                    .acquire(layer, &self.directories)
                    .map_err(|error| format!("cannot mount the overlay of /app: {error}"))?;
                (app, writable, *acquired) = (Some(path), whole, Some(id));
            }
            view = Some(View {
                base: base.clone(),
                root: self.config.root.clone(),
                binds: assignment.binds(&self.config.root, app),
                worker: self.users.identity(assignment.user),
                binary: self.config.exe.clone(),
                temporary: self.config.temporary,
            });
        }
        let limits = Limits::of(launch.limits, &self.config);
        let group = self.groups.group(&id.0.to_string(), &limits);
        let program = self.program.as_ref().ok_or("no server has been started yet")?;
        // Reopened, so that each start reads the job from its beginning.
        let job = Path::new("/proc/self/fd").join(entry.job.as_raw_fd().to_string());
        let job = open(job, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("cannot open the job: {error}"))?;
        let null = self.null.as_raw_fd();
        let out = entry.output.as_ref().map(|(_, write)| write);
        let [stdin, stdout, stderr] = &entry.standard;
        let mut descriptors: Vec<_> =
            [stdin.as_ref(), stdout.as_ref().or(out), stderr.as_ref().or(out), Some(&job), entry.report.as_ref()]
                .map(|descriptor| descriptor.map_or(null, AsRawFd::as_raw_fd))
                .into();
        descriptors.extend(entry.extra.iter().map(AsRawFd::as_raw_fd));
        // Language runtimes reserve far more memory than they use, so RLIMIT_DATA would stop applications that are within their limit.
        let coarse = !matches!(launch.limits, LimitClass::Application { .. }) && !group.limits_memory();
        // RLIMIT_NPROC counts all processes of a user, and these users have processes of many projects.
        let sharing = if !self.users.system() || assignment.user == User::Git { 8 } else { 1 };
        let spec = ProcessSpec {
            argv: ["larder", "worker", entry.role_name()].map(OsString::from).into(),
            environment: self.environment(entry, view.is_some()),
            identity: self.users.system().then(|| self.users.identity(assignment.user)),
            directory: "/".into(),
            data: limits.memory.filter(|_| coarse),
            processes: (!group.limits_processes()).then(|| limits.processes.saturating_mul(sharing)),
            limits: Some(limits),
            descriptors,
            program: program.as_raw_fd(),
            guarded: true,
            view,
        };
        match Process::start(&spec, Some(&group)) {
            Ok(process) => {
                let (layer, since) = (acquired.take(), Instant::now());
                Ok(Live { process, group, layer, writable, since, failed: None, closed: false, ended: None })
            }
            Err(error) => {
                self.groups.remove(group);
                Err(format!("cannot start the process: {error}"))
            }
        }
    }

    /// Returns all environment variables of a worker.
    fn environment(&self, entry: &Entry, view: bool) -> Vec<(OsString, OsString)> {
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
        let overlay = self.layers.works.is_ok();
        let variables = entry.assignment.variables((!view).then_some(self.config.root.as_path()), overlay);
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
        if entry.launch.role.packs() {
            all.push((LARGE_PAGES.0.into(), LARGE_PAGES.1.into()));
        }
        all.extend(fixed.into_iter().chain(variables).map(|(name, value)| (name.into(), value)));
        all
    }
}
