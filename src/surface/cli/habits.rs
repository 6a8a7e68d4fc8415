//! The commands that people know from Heroku and Dokku. Each of them runs the command of larder with the same meaning, or is refused with the
//! command or the file that takes its place.

/// The answer of larder to a command of Heroku or Dokku.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    /// These words of larder take the place of the command. The arguments stay.
    Same(&'static str),
    /// As `Same`, and each argument `TYPE=NUMBER` becomes `--scale TYPE=NUMBER`.
    Scale,
    /// The command is refused with this instruction.
    Instead(&'static str),
}

use Habit::{Instead, Same, Scale};

/// The commands with their answers. A word that is a command of larder does not appear here.
pub(super) const HABITS: &[(&str, Habit)] = &[
    // Applications.
    ("create", Same("project create")),
    ("apps", Same("project list")),
    ("apps:create", Same("project create")),
    ("apps:list", Same("project list")),
    ("apps:info", Same("project info")),
    ("apps:report", Same("project info")),
    ("apps:destroy", Same("project destroy")),
    ("destroy", Same("project destroy")),
    ("info", Same("project info")),
    ("apps:open", Same("open")),
    ("apps:rename", Instead("a project keeps its name: create another project with `larder project create blog`")),
    (
        "apps:clone",
        Instead("create another environment of the project with `larder project create shop --env staging --branch next`"),
    ),
    ("apps:lock", Instead("stop a deployment with `larder deploy shop --cancel`")),
    ("apps:unlock", Instead("allow deployments again with `larder deploy shop --unfreeze`")),
    // Processes.
    ("ps:scale", Scale),
    ("scale", Scale),
    ("dyno:scale", Scale),
    ("ps:list", Same("ps")),
    ("ps:report", Same("ps")),
    ("ps:inspect", Same("ps")),
    ("ps:restart", Same("restart")),
    ("dyno:restart", Same("restart")),
    ("ps:rebuild", Same("deploy")),
    ("ps:stop", Instead("set the number of processes to zero with `larder ps shop --scale web=0`")),
    ("dyno:stop", Instead("set the number of processes to zero with `larder ps shop --scale web=0`")),
    ("ps:start", Instead("set the number of processes with `larder ps shop --scale web=1`")),
    (
        "ps:type",
        Instead(
            "set the number of processes with `larder ps shop --scale web=1`, and their memory with `processes:` in larder.yml",
        ),
    ),
    ("resource:limit", Instead("set the memory of a process with `processes:` in larder.yml (docs/recipe.md)")),
    ("run:detached", Instead("run the command in the foreground with `larder run shop -- COMMAND`")),
    ("run:inside", Same("run")),
    ("enter", Instead("run a shell with `larder run shop -- sh`")),
    ("bash", Instead("run a shell with `larder run shop -- sh`")),
    ("ps:exec", Instead("run a shell with `larder run shop -- sh`")),
    // Logs.
    ("tail", Same("logs --follow")),
    ("logs:failed", Same("deploy --follow")),
    ("nginx:access-logs", Same("logs")),
    ("logs:set", Instead("the size of logs is `logs:` in the server file (docs/server-file.md)")),
    ("drains:add", Instead("follow the logs with `larder logs shop --follow`")),
    // Releases.
    ("releases:info", Same("release show")),
    ("releases:rollback", Same("rollback")),
    ("builds", Same("releases")),
    ("builds:info", Same("deploy --follow")),
    ("builds:output", Same("deploy --follow")),
    ("builds:cancel", Same("deploy --cancel")),
    ("pipelines:promote", Same("promote")),
    ("pipelines:diff", Same("release diff")),
    ("git:report", Same("project info")),
    ("git:remote", Instead("add the git remote of an environment with `larder init shop --to ssh://larder@HOST:2222`")),
    ("git:sync", Instead("push the commit with `larder push`")),
    ("git:clone", Instead("clone with `git clone ssh://larder@HOST:2222/shop`")),
    (
        "git:set",
        Instead("the deploy branch belongs to the environment: `larder project create shop --env staging --branch next`"),
    ),
    ("git:from-archive", Instead("import a release with `larder release import shop`")),
    ("git:from-image", Instead("larder runs no images: push the source with `larder push`")),
    // Databases.
    ("psql", Same("db shell")),
    ("pg:psql", Same("db shell")),
    ("pg:info", Same("db list")),
    ("pg", Same("db list")),
    ("pg:backups", Same("backup list")),
    ("pg:backups:capture", Same("backup take")),
    ("pg:backups:info", Same("backup show")),
    ("pg:backups:schedules", Same("status")),
    ("pg:backups:restore", Same("backup restore")),
    (
        "pg:backups:download",
        Instead("write a dump with `larder db dump shop`, or a restore point with `larder backup export shop latest`"),
    ),
    ("pg:pull", Instead("write a dump with `larder db dump shop`")),
    ("pg:push", Instead("load a dump with `larder db load shop --confirm shop`")),
    ("pg:reset", Instead("drop the database with `larder db destroy shop`, and create it with `larder db create shop postgres`")),
    ("pg:credentials:url", Instead("print the address with `larder run shop -- printenv DATABASE_URL`")),
    ("addons", Same("db list")),
    ("addons:create", Instead("create a database with `larder db create shop postgres`")),
    ("addons:destroy", Instead("drop a database with `larder db destroy shop`")),
    ("postgres:create", Instead("create a database with `larder db create shop postgres`")),
    ("mysql:create", Instead("create a database with `larder db create shop mariadb`")),
    ("mariadb:create", Instead("create a database with `larder db create shop mariadb`")),
    ("redis:create", Instead("the operator installs redis; name it with REDIS_URL in `env:` of larder.yml (docs/data.md)")),
    ("postgres:list", Same("db list")),
    ("postgres:info", Same("db list")),
    ("postgres:connect", Same("db shell")),
    ("postgres:export", Same("db dump")),
    ("postgres:import", Same("db load")),
    ("postgres:destroy", Same("db destroy")),
    ("postgres:link", Instead("create the database of the environment with `larder db create shop postgres`")),
    ("mysql:connect", Same("db shell")),
    ("mysql:export", Same("db dump")),
    ("mysql:import", Same("db load")),
    ("mariadb:connect", Same("db shell")),
    ("mariadb:export", Same("db dump")),
    ("mariadb:import", Same("db load")),
    ("redis:cli", Same("db shell")),
    ("redis:connect", Same("db shell")),
    // Configuration.
    ("config:get", Same("config show")),
    ("config:keys", Same("config show")),
    ("config:clear", Instead("remove the variables with `larder config unset shop NAME`")),
    ("config:edit", Instead("edit the file of `larder config export shop`, and read it with `larder config import shop`")),
    ("config:bundle", Same("config export")),
    ("domains", Same("project info")),
    ("domains:report", Same("project info")),
    ("domains:add", Instead("write the name into `domains:` of larder.yml, commit, and push (docs/recipe.md)")),
    ("domains:remove", Instead("remove the name from `domains:` of larder.yml, commit, and push (docs/recipe.md)")),
    ("domains:set", Instead("write the names into `domains:` of larder.yml, commit, and push (docs/recipe.md)")),
    ("certs:add", Instead("run a TLS proxy in front of larder (docs/operating.md)")),
    ("certs:auto", Instead("run a TLS proxy in front of larder (docs/operating.md)")),
    ("certs:auto:enable", Instead("run a TLS proxy in front of larder (docs/operating.md)")),
    ("letsencrypt:enable", Instead("run a TLS proxy in front of larder (docs/operating.md)")),
    ("buildpacks", Instead("name the buildpacks with `buildpacks:` in larder.yml (docs/buildpacks.md)")),
    ("buildpacks:add", Instead("name the buildpacks with `buildpacks:` in larder.yml (docs/buildpacks.md)")),
    ("buildpacks:set", Instead("name the buildpacks with `buildpacks:` in larder.yml (docs/buildpacks.md)")),
    ("storage:mount", Instead("name the directory with `data:` in larder.yml (docs/recipe.md)")),
    ("storage:list", Same("disk")),
    ("checks:set", Instead("name the page with `health:` in larder.yml (docs/recipe.md)")),
    ("ports:add", Instead("a web process listens on $PORT; other names are `domains:` in larder.yml (docs/recipe.md)")),
    ("proxy:ports-add", Instead("a web process listens on $PORT; other names are `domains:` in larder.yml (docs/recipe.md)")),
    ("cron:list", Instead("run a process of your own for schedules, in the Procfile (docs/recipe.md)")),
    (
        "maintenance:on",
        Instead("set the number of processes to zero with `larder ps shop --scale web=0`; visitors get a page that says so"),
    ),
    ("maintenance:off", Instead("set the number of processes with `larder ps shop --scale web=1`")),
    // Users.
    ("access", Same("user list")),
    ("access:add", Instead("give the user a right with `larder user grant alice shop push`")),
    ("access:remove", Instead("take the right away with `larder user grant alice shop none`")),
    ("sharing:add", Instead("give the user a right with `larder user grant alice shop push`")),
    ("acl:add", Instead("give the user a right with `larder user grant alice shop push`")),
    ("keys", Same("user list")),
    ("keys:add", Instead("add the key of a user with `larder key add alice --key-file FILE`")),
    ("keys:remove", Same("key remove")),
    (
        "ssh-keys:add",
        Instead(
            "add a user with `larder user add alice --key-file FILE`, or a further key with `larder key add alice --key-file FILE`",
        ),
    ),
    ("ssh-keys:list", Same("user list")),
    ("ssh-keys:remove", Same("user remove")),
    ("login", Instead("larder knows you by your ssh key: `larder whoami`")),
    ("logout", Instead("larder knows you by your ssh key: `larder whoami`")),
    ("auth:login", Instead("larder knows you by your ssh key: `larder whoami`")),
    ("auth:whoami", Same("whoami")),
    ("plugin:install", Instead("larder has no plugins; `larder doctor` lists what the machine has")),
    ("version", Same("--version")),
];

/// Replaces a command of Heroku or Dokku. `verb` is the index of the word of the command. Returns the instruction if the command has no
/// equivalent.
pub(super) fn translated(mut words: Vec<String>, verb: usize) -> Result<Vec<String>, (String, &'static str)> {
    let Some(word) = words.get(verb) else { return Ok(words) };
    let Some((_, habit)) = HABITS.iter().find(|(known, _)| known == word) else { return Ok(words) };
    let replaced = match habit {
        Instead(instruction) => return Err((word.clone(), instruction)),
        Same(replacement) => replacement,
        Scale => {
            let arguments = words.split_off(verb.saturating_add(1));
            for argument in arguments {
                if !argument.starts_with('-') && argument.contains('=') {
                    words.push(String::from("--scale"));
                }
                words.push(argument);
            }
            "ps"
        }
    };
    words.splice(verb..=verb, replaced.split(' ').map(str::to_owned));
    Ok(words)
}
