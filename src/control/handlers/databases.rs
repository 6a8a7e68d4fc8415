//! Requests about the databases of an environment. Listing needs the right to push. All other requests need the right to operate: they read or
//! replace data that users have written, or use the operator's database server.

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::{backup::of_points, configuration::of_snapshots, deployments::of_pipeline};
use crate::{
    backup::{
        BackupError, BackupFailure, DatabaseAccount, DatabaseAt, DatabaseJob, DatabaseServer, DatabaseStream, DatabaseUrl,
        SHELL_VARIABLE, check_database,
    },
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, run_blocking, usage},
        request::{Confirmation, Context, Reply, Request, RunningCommand, Stream},
        state::Control,
    },
    host::launch::Stdio,
    model::{Access, DatabaseEngine, Environment, Target, UserName, sanitise_line},
    pipeline::{PointsError, StoredUrlError},
    runtime::{Boot, RunJob},
};

/// The name of the database that `larder db create` creates.
const MAIN: &str = "main";

/// The request to list the databases of an environment.
#[derive(Debug)]
pub struct DatabaseList {
    /// The environment.
    pub target: Target,
}

/// The request to create a database on the operator's server.
#[derive(Debug)]
pub struct DatabaseCreate {
    /// The environment.
    pub target: Target,
    /// The engine.
    pub engine: DatabaseEngine,
}

/// The request to start the interactive client of a database.
#[derive(Debug)]
pub struct DatabaseShell {
    /// The environment.
    pub target: Target,
    /// The name of the database; absent if the environment has only one.
    pub name: Option<String>,
}

/// The request to write a dump to the caller.
#[derive(Debug)]
pub struct DatabaseDump {
    /// The environment.
    pub target: Target,
    /// The name of the database; absent if the environment has only one.
    pub name: Option<String>,
}

/// The request to replace a database with a dump from the caller.
#[derive(Debug)]
pub struct DatabaseLoad {
    /// The environment.
    pub target: Target,
    /// The name of the database; absent if the environment has only one.
    pub name: Option<String>,
    /// The name of the project, typed again by the caller as a confirmation.
    pub confirm: Option<String>,
}

/// The request to drop the database that [`DatabaseCreate`] created.
#[derive(Debug)]
pub struct DatabaseDestroy {
    /// The environment.
    pub target: Target,
    /// The name of the project, typed again by the caller as a confirmation.
    pub confirm: Option<String>,
}

/// A database of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseView {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The name.
    pub name: String,
    /// The engine: `postgres`, `mysql`, `sqlite` or `redis`.
    pub engine: DatabaseEngine,
    /// The server and the database on this server, or the path of a file below `data/`. Never contains a password.
    pub location: String,
    /// True if `larder db create` created the database.
    pub created: bool,
    /// The id of the restore point that was taken before the database was dropped; absent while the database exists.
    pub restore_point: Option<String>,
}

fn view(environment: &Environment, job: &DatabaseJob, created: Option<&DatabaseUrl>) -> DatabaseView {
    let location = match &job.at {
        DatabaseAt::File(path) => format!("data/{}", path.display()),
        DatabaseAt::Url(url) => url.address().map_or_else(
            |failure| failure.why,
            |address| {
                let host = address.host.clone().unwrap_or_else(|| String::from("localhost"));
                let port = address.port.map(|port| format!(":{port}")).unwrap_or_default();
                format!("{host}{port}/{}", address.database.unwrap_or_default())
            },
        ),
    };
    DatabaseView {
        environment: environment.title(),
        name: job.name.to_string(),
        engine: job.engine,
        location: sanitise_line(&location),
        created: matches!((&job.at, created), (DatabaseAt::Url(url), Some(created)) if url == created),
        restore_point: None,
    }
}

fn of_failure(failure: BackupFailure) -> CommandError {
    of_points(&PointsError::Worker(BackupError::Failed(failure)))
}

fn of_stored(error: &StoredUrlError) -> CommandError {
    match error {
        StoredUrlError::NotNow(why) => of_pipeline(why),
        StoredUrlError::File { .. } => CommandError::internal(error),
    }
}

fn jobs(control: &Control, environment: &Environment) -> Result<Vec<DatabaseJob>, CommandError> {
    control.pipeline().known_databases(environment).map_err(|error| of_points(&error))
}

/// Returns the database with a name, or the only database.
fn named(control: &Control, environment: &Environment, name: Option<&str>) -> Result<DatabaseJob, CommandError> {
    let mut jobs = jobs(control, environment)?;
    let names: Vec<_> = jobs.iter().map(|job| job.name.to_string()).collect();
    let title = environment.title();
    match name {
        Some(name) => jobs.into_iter().find(|job| job.name.as_str() == name).ok_or_else(|| {
            let seen: String = sanitise_line(name).chars().take(60).collect();
            not_found(format!("{title} has no database {seen}")).hint("list the databases with `larder db list`")
        }),
        None if jobs.len() > 1 => {
            Err(usage(format!("{title} has several databases")).hint(format!("name one of {}", names.join(", "))))
        }
        None => jobs.pop().ok_or_else(|| {
            not_found(format!("{title} has no database"))
                .hint("create one with `larder db create`, or declare it with `databases:` in larder.yml and deploy")
        }),
    }
}

/// Checks the confirmation of a request, which is the name of the project.
fn check_confirmation(confirm: &str, environment: &Environment) -> Result<(), CommandError> {
    let (seen, expected) = (sanitise_line(confirm), &environment.project);
    match confirm == expected.as_str() {
        true => Ok(()),
        false => Err(usage(format!("cannot confirm the request: --confirm names {seen:?} (expected {expected})"))),
    }
}

impl Request for DatabaseList {
    type View = Vec<DatabaseView>;
    const NAME: &'static str = "db list";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<DatabaseView>>, CommandError> {
        let environment = control.environment(&self.target)?;
        let created = control.pipeline().stored_database_url(&environment).map_err(|error| of_stored(&error))?;
        let jobs = jobs(control, &environment)?;
        Ok(jobs.iter().map(|job| view(&environment, job, created.as_ref())).collect::<Vec<_>>().into())
    }
}

/// Opens the operator's server of an engine.
fn server(control: &Control, engine: DatabaseEngine) -> Result<DatabaseServer, CommandError> {
    let servers = &control.pipeline().services().config.databases;
    let (key, file) = match engine {
        DatabaseEngine::Postgres => ("postgres", &servers.postgres),
        DatabaseEngine::Mysql => ("mariadb", &servers.mariadb),
        DatabaseEngine::Sqlite | DatabaseEngine::Redis => {
            return Err(usage(format!("cannot create a {} database (expected postgres or mariadb)", engine.title())));
        }
    };
    let Some(file) = file else {
        return Err(refused(format!("the operator of this server has named no {} server", engine.title()))
            .hint(format!("set `databases: {{{key}: FILE}}` in the server file; FILE contains the URL of an administrator")));
    };
    DatabaseServer::open(engine, file).map_err(of_failure)
}

fn job_of(url: DatabaseUrl, engine: DatabaseEngine) -> Result<DatabaseJob, CommandError> {
    let name = MAIN.parse().map_err(|error| CommandError::internal(&error))?;
    Ok(DatabaseJob { name, engine, at: DatabaseAt::Url(url), is_declared: true })
}

impl Request for DatabaseCreate {
    type View = DatabaseView;
    const NAME: &'static str = "db create";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<DatabaseView>, CommandError> {
        let (environment, engine) = (control.environment(&self.target)?, self.engine);
        let control = Control::clone(control);
        run_blocking(move || create(&control, &environment, engine).map(Reply::View)).await
    }
}

/// Creates a database. The password is stored before the database is created: after a kill, a repetition continues with the stored password.
fn create(control: &Control, environment: &Environment, engine: DatabaseEngine) -> Result<DatabaseView, CommandError> {
    let (pipeline, title) = (control.pipeline(), environment.title());
    let server = server(control, engine)?;
    let account = match pipeline.stored_database_url(environment).map_err(|error| of_stored(&error))? {
        Some(url) => {
            let stored = DatabaseEngine::of_scheme(url.scheme());
            if stored != Some(engine) || check_database(&job_of(url.clone(), engine)?).is_ok() {
                return Err(refused(format!("{title} already has a database"))
                    .hint("list the databases with `larder db list`, or drop it with `larder db destroy`"));
            }
            DatabaseAccount::of_url(&url).map_err(of_failure)?
        }
        None => {
            if jobs(control, environment)?.iter().any(|job| job.name.as_str() == MAIN) {
                return Err(refused(format!("{title} already has a database {MAIN}, in its own configuration"))
                    .hint("remove DATABASE_URL and the database from the project's configuration, and deploy"));
            }
            let account = DatabaseAccount::new(environment).map_err(|error| CommandError::internal(&error))?;
            if server.has(&account).map_err(of_failure)? {
                let name = account.name();
                return Err(refused(format!("cannot create the database: the server already has a database or a user {name}"))
                    .hint("drop or rename it as an administrator of the database server"));
            }
            account
        }
    };
    let url = account.url(engine, &server.address().map_err(of_failure)?);
    pipeline.store_database_url(environment, Some(&url)).map_err(|error| of_stored(&error))?;
    server.create(&account).map_err(of_failure)?;
    let job = job_of(url.clone(), engine)?;
    check_database(&job).map_err(|failure| {
        let hint = failure.hint.unwrap_or_else(|| String::from("correct the database server, and repeat the command"));
        refused(format!("the database was created, but an application cannot use it: {}", sanitise_line(&failure.why))).hint(hint)
    })?;
    tracing::info!(environment = title, engine = engine.as_str(), database = account.name(), "database created");
    Ok(view(environment, &job, Some(&url)))
}

impl Request for DatabaseShell {
    type View = ();
    const NAME: &'static str = "db shell";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let database = named(control, &environment, self.name.as_deref())?;
        let live = control.pipeline().live(environment.id);
        let live = live.ok_or_else(|| {
            not_found(format!("cannot start the client: nothing is live in {}", environment.title()))
                .hint("deploy first; `larder db load` needs no live release")
        })?;
        let facts = control.pipeline().facts(&environment, live.release).map_err(|error| CommandError::internal(&error))?;
        let mut env: Vec<_> = facts.env.clone().into_iter().collect();
        let database = serde_json::to_string(&database).map_err(|error| CommandError::internal(&error))?;
        env.push((SHELL_VARIABLE.to_owned(), database));
        let configuration = control.pipeline().configuration_of(&environment, live.release);
        let configuration = configuration.map_err(|error| of_snapshots(&error))?;
        let arguments = ["larder", "database-shell"].map(str::to_owned).into();
        let job = RunJob { arguments, env, configuration, ..RunJob::default() };
        let logs = control.root().environment(&environment.project, &environment.name).log();
        let boot = Boot::for_tasks(environment, live.slot, live.release, logs);
        let runtime = control.pipeline().services().runtime.clone();
        let start = move |stdio: Stdio| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let started = runtime.task(&boot, &job, stdio).await;
                started.map(RunningCommand::from).map_err(|error| CommandError::internal(&error))
            })
        };
        Ok(Reply::Stream(Stream::Interactive(Box::new(start))))
    }
}

/// Returns the answer of a dump or a load.
fn streamed(control: &Control, environment: Environment, stream: DatabaseStream) -> Reply<()> {
    let pipeline = control.pipeline().clone();
    let start = move |stdio: Stdio| -> BoxFuture<'static, _> {
        Box::pin(async move {
            let started = pipeline.stream_database(&environment, stream, stdio).await;
            started.map(RunningCommand::from).map_err(|error| of_points(&PointsError::Worker(error)))
        })
    };
    Reply::Stream(Stream::Run(Box::new(start)))
}

impl Request for DatabaseDump {
    type View = ();
    const NAME: &'static str = "db dump";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let database = named(control, &environment, self.name.as_deref())?;
        Ok(streamed(control, environment, DatabaseStream::Dump(database)))
    }
}

impl Request for DatabaseLoad {
    type View = ();
    const NAME: &'static str = "db load";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let database = named(control, &environment, self.name.as_deref())?;
        let (project, name) = (&environment.project, &database.name);
        match self.confirm {
            Some(confirm) => check_confirmation(&confirm, &environment)?,
            None => {
                return Err(refused(format!("nothing was changed: the dump would replace the database {name}"))
                    .hint(format!("confirm with --confirm {project}")));
            }
        }
        if database.engine == DatabaseEngine::Sqlite {
            return Err(usage(format!("cannot load the SQLite database {name}: a running application has its file open"))
                .hint("use `larder db shell` with `.restore FILE`, or `larder backup restore`"));
        }
        let reason = format!("before a dump was loaded into the database {name}");
        let (pipeline, by) = (control.pipeline().clone(), caller.name());
        let start = move |stdio: Stdio| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let started = pipeline.load_database(&environment, by, reason, database, stdio).await;
                let (child, locked) = started.map_err(|error| of_points(&error))?;
                Ok(RunningCommand { child, copy: None, locked: Some(locked) })
            })
        };
        Ok(Reply::Stream(Stream::Run(Box::new(start))))
    }
}

impl Request for DatabaseDestroy {
    type View = DatabaseView;
    const NAME: &'static str = "db destroy";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DatabaseView>, CommandError> {
        let environment = control.environment(&self.target)?;
        let stored = control.pipeline().stored_database_url(&environment).map_err(|error| of_stored(&error))?;
        let Some(url) = stored else {
            return Err(not_found(format!("{} has no database that `larder db create` created", environment.title())));
        };
        let (control, by) = (Control::clone(control), caller.name());
        match self.confirm {
            Some(confirm) => {
                check_confirmation(&confirm, &environment)?;
                destroy(control, environment, url, by).await.map(Reply::View)
            }
            None => {
                let engine = DatabaseEngine::of_scheme(url.scheme()).unwrap_or(DatabaseEngine::Postgres);
                let view = view(&environment, &job_of(url.clone(), engine)?, Some(&url));
                let word = environment.project.to_string();
                let proceed = move || -> BoxFuture<'static, _> {
                    Box::pin(async move { destroy(control, environment, url, by).await.map(Reply::View) })
                };
                Ok(Reply::Confirm(Box::new(Confirmation { view, word, proceed: Box::new(proceed) })))
            }
        }
    }
}

/// Takes a restore point with a dump of the database, and drops the database.
async fn destroy(
    control: Control,
    environment: Environment,
    url: DatabaseUrl,
    by: UserName,
) -> Result<DatabaseView, CommandError> {
    let engine = DatabaseEngine::of_scheme(url.scheme()).ok_or_else(|| refused("the stored URL has an unknown scheme"))?;
    let account = DatabaseAccount::of_url(&url).map_err(of_failure)?;
    let server = server(&control, engine)?;
    let reason = format!("before the database {} was dropped", account.name());
    let point = control.pipeline().take_point(&environment, by, Some(reason)).await.map_err(|error| of_points(&error))?;
    let dumps = point.label.map(|label| label.databases).unwrap_or_default();
    if !dumps.iter().any(|dump| dump.engine == engine && dump.name.as_str() == MAIN) {
        return Err(refused(format!("nothing was dropped: the restore point {} has no dump of the database", point.id))
            .hint("deploy the release that uses the database, and repeat the command"));
    }
    run_blocking(move || {
        server.drop(&account).map_err(of_failure)?;
        control.pipeline().store_database_url(&environment, None).map_err(|error| of_stored(&error))?;
        tracing::info!(environment = environment.title(), database = account.name(), "database dropped");
        let mut view = view(&environment, &job_of(url.clone(), engine)?, Some(&url));
        view.restore_point = Some(point.id);
        Ok(view)
    })
    .await
}
