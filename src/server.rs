//! The composition root of the server role: creates each module once, connects the modules, and starts, drains and stops the server.

mod observers;
mod reports;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{HttpConfig, HttpScheme, ServerConfig, SshProfile},
    control::{Caller, CommandError, Control, ErrorKind, KeyOffer, Login, LoginRefusal, Registry, ServerKeys},
    git::{
        Repositories, RepositoryId, RepositoryKind, Service,
        hook::{Listener, PushRegistry},
    },
    host::{
        launch::{Launcher, ProcessEvent, Registration, Stdio, take_inherited},
        root::Root,
        stream::Outlet,
    },
    model::{Environment, UserNumbers},
    notify::Notifier,
    pipeline::{BuildNumbers, Permits, Pipeline, Services, chain, observe::Observers},
    proxy::{Proxy, ProxySettings, Scheme},
    release::{SigningKey, SigningKeyError},
    remote::{self, DeliverableStores, ssh::PullKey},
    runtime::{Label, LogLimits, LogPlace, Logs, Ports, Runtime},
    snapshots::{SnapshotError, SnapshotStore},
    surface::{
        cli::{self, session, session::Io, socket},
        git::Pushes,
        ssh::{self, Credential, ExecCall, ExecHandler, ExecIo, ExecRequest, GitService, KeyAnswer, KeyRefusal, SshIdentity},
        user_limit::UserLimit,
    },
};

/// The maximum time for which HTTP requests without a route wait after a start, because the recovery of their environments may still be in
/// progress.
const RECOVERY_WAIT: Duration = Duration::from_secs(5);

/// The size of the stack of a thread, in bytes. Only used pages need memory. The nested futures of a restore in the recovery of a deployment
/// need more than the default of 2 MiB in builds without optimisation.
const THREAD_STACK: usize = 8 << 20;

/// The time within which deployments and requests of ssh clients may finish during a stop. The next server takes over unfinished
/// deployments.
const WORK_DRAIN: Duration = Duration::from_secs(30);

/// The maximum number of simultaneous ssh requests of one user. Most requests start a process.
const MAX_REQUESTS_PER_USER: usize = 16;

/// The time within which a client must read an error.
const ERROR_TIMEOUT: Duration = Duration::from_secs(10);

/// The time within which HTTP requests may finish after [`WORK_DRAIN`]. This time is short, because new requests are not answered
/// meanwhile. The sum of `WORK_DRAIN` and `HTTP_DRAIN` must be less than the keeper's limit for a stop (`SERVER_GRACE`).
const HTTP_DRAIN: Duration = Duration::from_secs(10);

/// The reason why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// The action that failed: the words that follow "cannot" in the message.
        doing: &'static str,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The server file is invalid.
    #[error("{0}")]
    Config(String),
    /// The host key or the pull key cannot be used.
    #[error("cannot use the host key or the pull key")]
    HostKey(#[source] ssh::keys::HostKeyError),
    /// The signing key cannot be used.
    #[error(transparent)]
    Signing(SigningKeyError),
    /// The key of the configuration snapshots cannot be used.
    #[error(transparent)]
    Snapshots(SnapshotError),
    /// A request to the keeper failed.
    #[error("cannot complete a request to the keeper")]
    Keeper(#[source] crate::host::launch::LaunchError),
}

impl ServerError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            ServerError::HostKey(error) => error.hint(),
            ServerError::Signing(error) => error.hint(),
            ServerError::Snapshots(error) => error.hint(),
            ServerError::System { .. } | ServerError::Config(_) | ServerError::Keeper(_) => None,
        }
    }
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::System { doing, source }
}

/// Runs the server role until SIGTERM or SIGINT.
pub fn main(root: Root) -> Result<ExitCode, ServerError> {
    // The guard `_faults` keeps failpoints active until the process exits. Only test builds have failpoints.
    let _faults = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_stack_size(THREAD_STACK).enable_all().build();
    let runtime = runtime.map_err(system("start the runtime"))?;
    runtime.block_on(run(root))?;
    // The next server finishes or unwinds deployments that are still in flight.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

async fn run(root: Root) -> Result<(), ServerError> {
    let config = ServerConfig::load(&root.server_file()).map_err(|problems| ServerError::Config(listed(&problems)))?;
    let inherited = Inherited::take()?;
    let (key, fingerprint) = ssh::keys::load_or_create_host_key(&root.host_key()).map_err(ServerError::HostKey)?;
    let launcher = Launcher::from_inherited().map_err(system("reach the keeper"))?;
    let signing = SigningKey::load_or_make(&root.signing_key()).map_err(ServerError::Signing)?;
    let pull_key = PullKey::load_or_make(&root.pull_key()).map_err(ServerError::HostKey)?;
    let keys = ServerKeys {
        host: ssh::keys::host_key_line(&key).map_err(ServerError::HostKey)?,
        fingerprint: fingerprint.clone(),
        signing: signing.public(),
        pull: Some(pull_key.line()),
    };
    let users = launcher.capabilities().await.map_err(ServerError::Keeper)?.users;
    let for_observers = Arc::default();
    let secrets = Secrets { signing, pull_key };
    let services = services(root.clone(), config, launcher.clone(), users, secrets, &inherited, &for_observers)?;
    let registry = Registry::load(&root.registry_file()).map_err(system("read the registry"))?;
    let environments: Vec<_> = registry.projects.iter().flat_map(|project| project.environments.clone()).collect();
    let pipeline = Pipeline::new(services.clone());
    let control = Control::new(root.clone(), pipeline.clone(), registry, keys);
    let _ = for_observers.set(control.clone());
    pipeline.check_starts(Arc::new(control.clone()));
    pipeline.limit_projects(Arc::new(control.clone()));
    let stop = Stop::on_signals().map_err(system("listen for signals"))?;

    let environments = register(&services, &control, environments).await?;
    follow_processes(&services, &pipeline, &environments).await?;
    pipeline.await_all(&environments);
    let proxy = services.proxy.clone();
    // The proxy starts before environments are recovered, because a resumed deployment checks its pages through the proxy. For the same
    // reason, the proxy runs during a stop until all deployments are drained.
    let starting = proxy.close_startup_gate();
    let shut = CancellationToken::new();
    let front_door = tokio::spawn({
        let (listener, shut) = (inherited.http, shut.clone());
        async move { proxy.serve(listener, shut).await }
    });
    let opened = open_environments(&pipeline, environments);
    let attached = tokio::time::timeout(RECOVERY_WAIT, opened).await;
    drop(starting);
    if attached.is_err() {
        tracing::warn!("environments are still being recovered; requests without a route no longer wait");
    }

    pipeline.run_upkeep();
    pipeline.guard_disk();
    pipeline.watch_sites();
    pipeline.watch_checkouts();
    pipeline.run_offsite();
    tokio::spawn(reports::run(control.clone()));
    let delivered = CancellationToken::new();
    let notifications = tokio::spawn(services.notifier.clone().run(delivered.clone()));
    let tokens = PushRegistry::new();
    let pushes = Pushes::new(control.clone(), tokens.clone());
    let hooks = Listener::bind(&root.hook_socket(), 0o666, None, tokens).map_err(system("open the hook socket"))?;
    let hooks = tokio::spawn(pushes.clone().answer_hooks(hooks));
    let socket = socket::bind(&root.control_socket()).map_err(system("open the control socket"))?;
    let socket = tokio::spawn(socket::serve(socket, control.clone(), stop.requested.clone()));
    let mut ssh_config = ssh::SshServerConfig::new(key);
    ssh_config.drain = WORK_DRAIN;
    ssh_config.profile = match services.config.ssh.profile {
        SshProfile::Strict => ssh::Profile::Strict,
        SshProfile::Default => ssh::Profile::Default,
    };
    let handler = Arc::new(SshHandler { control, pushes, limit: UserLimit::new(MAX_REQUESTS_PER_USER) });
    let ssh = tokio::spawn(ssh::serve(inherited.ssh, ssh_config, handler, stop.requested.clone()));
    announce(&services, &fingerprint);

    stop.requested.cancelled().await;
    tracing::info!("stopping");
    pipeline.drain(WORK_DRAIN).await;
    shut.cancel();
    delivered.cancel();
    let _ = tokio::join!(front_door, ssh, socket, notifications);
    hooks.abort();
    Ok(())
}

/// The listeners that the keeper opened and passed to this process.
struct Inherited {
    ssh: TcpListener,
    ssh_address: SocketAddr,
    http: TcpListener,
    http_address: SocketAddr,
}

impl Inherited {
    fn take() -> Result<Inherited, ServerError> {
        let names = std::env::var("LARDER_LISTENERS").unwrap_or_default();
        let one = |wanted: &str| {
            let number = names.split(',').find_map(|pair| pair.strip_prefix(wanted)?.strip_prefix('=')?.parse().ok());
            let number = number.ok_or_else(|| io::Error::other(format!("LARDER_LISTENERS names no socket for {wanted}")))?;
            let listener = TcpListener::from(take_inherited(number)?);
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (ssh, ssh_address) = one("ssh").map_err(system("take over the socket for ssh"))?;
        let (http, http_address) = one("http").map_err(system("take over the socket for http"))?;
        Ok(Inherited { ssh, ssh_address, http, http_address })
    }
}

/// The private keys of this server, besides the host key.
struct Secrets {
    signing: SigningKey,
    pull_key: PullKey,
}

/// Creates the subsystems. `for_observers` is set later, because the state of all requests needs the subsystems.
fn services(
    root: Root,
    config: ServerConfig,
    launcher: Launcher,
    users: Option<UserNumbers>,
    Secrets { signing, pull_key }: Secrets,
    inherited: &Inherited,
    for_observers: &Arc<OnceLock<Control>>,
) -> Result<Arc<Services>, ServerError> {
    let notifier = Notifier::open(root.messages(), &config).map_err(system("read the queue of notifications"))?;
    let limits = remote::TransferLimits {
        archive_bytes: config.limits.archive_bytes.bytes(),
        pack_bytes: config.limits.push_bytes.bytes(),
        ..remote::TransferLimits::default()
    };
    let (from, to) = config.ports;
    let logs = Logs::new(LogLimits { max_bytes: config.log.max_bytes.bytes(), keep: config.log.keep.into() });
    Ok(Arc::new(Services {
        runtime: Runtime::new(launcher.clone(), Ports::new(from, to), logs),
        repositories: Repositories::new(launcher.clone()),
        places: DeliverableStores::new(pull_key, limits),
        deploy_keys: remote::ssh::DeployKeyStore::new(root.deploy_keys()),
        proxy: Proxy::new(front_door(&config.http)),
        permits: Permits::new(&config),
        ssh: inherited.ssh_address,
        http: reachable(inherited.http_address),
        routes: Default::default(),
        drift: Default::default(),
        observers: Observers::start(observers::all(&notifier, for_observers)),
        notifier,
        snapshots: SnapshotStore::open(&root.configuration_key()).map_err(ServerError::Snapshots)?,
        numbers: BuildNumbers::open(root.build_numbers()).map_err(system("read the build numbers"))?,
        root,
        config,
        launcher,
        users,
        signing,
    }))
}

fn front_door(config: &HttpConfig) -> ProxySettings {
    let scheme = match config.scheme {
        HttpScheme::Http => Scheme::Http,
        HttpScheme::Https => Scheme::Https,
    };
    ProxySettings { trusted: config.trusted.clone(), scheme, shutdown_limit: HTTP_DRAIN, ..ProxySettings::default() }
}

/// Returns the address at which this machine reaches a socket that may be bound to all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}

/// Registers all environments. Returns the environments that can be used: without those of a project whose own file system cannot be
/// mounted, so that a damaged file system stops only its project. A project whose quota cannot be set is used without its quota.
async fn register(
    services: &Arc<Services>,
    control: &Control,
    mut environments: Vec<Environment>,
) -> Result<Vec<Environment>, ServerError> {
    for registration in control.registrations() {
        let (project, storage) = (registration.project.0, registration.storage);
        let Err(error) = services.launcher.register(registration.clone()).await else { continue };
        let Some((kind, _)) = storage else { return Err(ServerError::Keeper(error)) };
        control.storage_failed(project, chain(&error));
        if kind.is_file_system() {
            tracing::error!(project = project.0, error = chain(&error), "cannot use the file system of a project");
            environments.retain(|environment| environment.project_id != project);
        } else {
            tracing::error!(project = project.0, error = chain(&error), "cannot set the quota of a project");
            let without = Registration { storage: None, ..registration };
            services.launcher.register(without).await.map_err(ServerError::Keeper)?;
        }
    }
    Ok(environments)
}

/// Takes over the processes of the previous server, and handles their exits.
async fn follow_processes(
    services: &Arc<Services>,
    pipeline: &Pipeline,
    environments: &[Environment],
) -> Result<(), ServerError> {
    let mut events = services.launcher.events();
    let logs = |label: &Label| {
        let environment = environments.iter().find(|environment| environment.id == label.environment)?;
        let paths = services.root.environment(&environment.project, &environment.name);
        // The values that the process got are those of one of the last configurations.
        let redactor = services.snapshots.redactor(&paths.configuration());
        Some(LogPlace { directory: paths.log(), redactor })
    };
    let adopted = services.runtime.adopt(logs).await.map_err(ServerError::Keeper)?;
    tracing::debug!(adopted, "took over processes of the previous server");
    let (runtime, pipeline) = (services.runtime.clone(), pipeline.clone());
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                // Only an exit after which the keeper restarts the process is recorded. After the last exit, the process is not restarted,
                // because it was stopped on request or runs only once.
                Ok(ProcessEvent::Exited { id, exit, last: false, .. }) => {
                    if let Some(label) = runtime.exited(id, exit) {
                        pipeline.process_ended(&label, exit);
                    }
                }
                Ok(_) => {}
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => tracing::warn!(missed, "missed keeper events"),
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    Ok(())
}

async fn open_environments(pipeline: &Pipeline, environments: Vec<Environment>) {
    let projects: BTreeMap<_, _> =
        environments.iter().map(|environment| (environment.project_id, &environment.project)).collect();
    let repositories = &pipeline.services().repositories;
    join_all(projects.into_iter().map(|(id, project)| async move {
        for repository in [RepositoryId::from(id), RepositoryId::pillar(id)] {
            if let Err(error) = repositories.remove_locks(repository).await {
                tracing::warn!(%project, error = chain(&error), "cannot remove stale git locks");
            }
        }
    }))
    .await;
    // Each environment has its own task, so that the time limit of the caller does not cancel the recovery.
    let tasks = environments.into_iter().map(|environment| {
        let pipeline = pipeline.clone();
        tokio::spawn(async move {
            let title = environment.title();
            if let Err(error) = pipeline.attach(environment).await {
                tracing::error!(environment = title, error = chain(&error), "cannot take an environment into service");
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await;
}

/// Reports that the server is ready: prints a line for scripts, and notifies systemd.
fn announce(services: &Services, fingerprint: &str) {
    tracing::info!(%fingerprint, "the SSH host key");
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "ready ssh={} http={}", services.ssh, services.http);
    let _ = stdout.flush();
    // Without the variable `NOTIFY_SOCKET`, this call does nothing.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot report readiness to systemd");
    }
}

fn listed(problems: &[crate::config::ConfigError]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The request to stop the server, which SIGTERM and SIGINT make.
struct Stop {
    requested: CancellationToken,
}

impl Stop {
    fn on_signals() -> io::Result<Stop> {
        let requested = CancellationToken::new();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut signals, requested) = (signal(kind)?, requested.clone());
            tokio::spawn(async move {
                signals.recv().await;
                requested.cancel();
            });
        }
        Ok(Stop { requested })
    }
}

/// The handler that identifies users of the SSH server and carries out their requests.
struct SshHandler {
    control: Control,
    pushes: Pushes,
    limit: Arc<UserLimit>,
}

impl ExecHandler for SshHandler {
    fn authenticate(&self, credential: &Credential, source: IpAddr) -> Result<SshIdentity, KeyRefusal> {
        let login = match credential {
            Credential::Key(key) => self.control.login(&key.fingerprint_sha256, source),
            Credential::Certificate(certificate) => self.control.certified_login(certificate, source),
        };
        let login = login.map_err(|LoginRefusal { user, reason }| KeyRefusal { user, reason })?;
        // The keeper prepares a process now, because nearly every request of a user starts a process.
        self.control.pipeline().services().launcher.prewarm();
        let Login { user, key, certificate, .. } = login;
        Ok(SshIdentity { user, key, certificate })
    }

    fn accepts_certificates(&self) -> bool {
        self.control.accepts_certificates()
    }

    fn recheck_after(&self, identity: &SshIdentity) -> Option<Duration> {
        self.control.expires_in(&identity.key, identity.certificate.as_deref())
    }

    fn answered(&self, answer: KeyAnswer) {
        let KeyAnswer { kind, fingerprint, certificate, source, outcome } = answer;
        let (user, refused) = match outcome {
            Ok(user) => (Some(user), None),
            Err(KeyRefusal { user, reason }) => (user, Some(reason)),
        };
        self.control.offers().record(KeyOffer { user, kind, fingerprint, certificate, source, refused });
    }

    fn key_changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.control.changes()
    }

    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32> {
        let (control, pushes) = (self.control.clone(), self.pushes.clone());
        let permit = self.limit.acquire(&call.identity.user);
        Box::pin(async move {
            let SshIdentity { user, key, certificate } = call.identity;
            let caller = Caller::User(Login { user, key, source: call.source, certificate });
            // The permit is held until the request has ended.
            let Some(_permit) = permit else {
                tracing::warn!(%caller, "too many requests of one user");
                let error = CommandError::new(
                    ErrorKind::Refused,
                    format!("cannot start the request: {caller} has {MAX_REQUESTS_PER_USER} requests in progress (the limit)"),
                )
                .hint("wait until a request has ended, or end a request such as `logs --follow`");
                return refuse(call.io.stderr, &error).await;
            };
            let ExecIo { stdin, stdout, stderr, gone, commands } = call.io;
            let words = match call.request {
                ExecRequest::Git { service, path } => {
                    let service = match service {
                        GitService::ReceivePack => Service::ReceivePack,
                        GitService::UploadPack => Service::UploadPack,
                    };
                    let Ok(mine) = stderr.try_clone() else { return 70 };
                    let stdio = Stdio { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), extra: Vec::new() };
                    let kind = if path.pillar { RepositoryKind::Pillar } else { RepositoryKind::Code };
                    let repository = (&path.project, kind);
                    return match pushes.serve(caller, repository, service, call.git_protocol, stdio, &commands).await {
                        Ok(code) => code,
                        Err(error) => refuse(mine, &error).await,
                    };
                }
                ExecRequest::Verb(words) => words,
                ExecRequest::Shell => vec![String::from("whoami")],
            };
            let io = Io::of_client([stdin, stdout, stderr], call.terminal, call.colours, gone);
            u32::from(session::run(&control, &caller, &words, io).await)
        })
    }
}

/// Writes an error to the client. Returns the exit status of the error.
async fn refuse(stderr: OwnedFd, error: &CommandError) -> u32 {
    // If the client does not read within the time limit, the error is dropped.
    if let Ok(mut stderr) = Outlet::within(stderr, ERROR_TIMEOUT) {
        let _ = stderr.write(cli::error_text(error).as_bytes()).await;
    }
    u32::from(error.kind.exit_code())
}
