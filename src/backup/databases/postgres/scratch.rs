//! The scratch database of a drill on a PostgreSQL server.

use super::{failed, psql, query};
use crate::backup::{
    BackupFailure,
    databases::{DatabaseAt, DatabaseJob, url::SCRATCH_SUFFIX},
};

/// The maximum length of the name of a database, in bytes. The server cuts longer names.
const MAX_NAME: usize = 63;

/// The comment that marks a scratch database.
const MARK: &str = "scratch database of a drill of larder";

/// The states of the scratch database on its server.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Scratch,
    /// A database without the mark. A drill that was killed between the creation and the comment left an empty one.
    Unmarked,
}

/// Quotes a name for SQL.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string for SQL.
fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "\'\'");
    format!("E'{text}'")
}

/// Returns the name of the scratch database.
pub(in crate::backup::databases) fn name(job: &DatabaseJob) -> Result<String, BackupFailure> {
    let live = query(job, "select current_database();")?.into_iter().next().unwrap_or_default();
    let name = format!("{live}{SCRATCH_SUFFIX}");
    if name.len() > MAX_NAME {
        return Err(job.refused(format!("the name of its scratch database is too long: {name}")));
    }
    Ok(name)
}

fn find(job: &DatabaseJob, name: &str) -> Result<Found, BackupFailure> {
    let name = literal(name);
    let row = query(
        job,
        &format!(
            "select count(*), count(*) filter (where shobj_description(oid, 'pg_database') = {}) from pg_database where datname = {name};",
            literal(MARK)
        ),
    )?;
    Ok(match row.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["0", ..] => Found::Nothing,
        [_, "1"] => Found::Scratch,
        _ => Found::Unmarked,
    })
}

/// Returns the statements that create the marked scratch database `name`. `owner` is a clause about its owner, or empty.
pub(in crate::backup::databases) fn creation(live: &str, name: &str, owner: &str) -> String {
    format!(
        "select format('create database %I {owner} template template0 encoding %L lc_collate %L lc_ctype %L', {}, \
         pg_encoding_to_char(encoding), datcollate, datctype) from pg_database where datname = {} \\gexec\n\
         comment on database {} is {};\n",
        literal(name),
        literal(live),
        identifier(name),
        literal(MARK)
    )
}

/// Creates the scratch database with the extensions of the live database, and returns its name. A scratch database that the administrator has
/// created is used.
pub(in crate::backup::databases) fn create(job: &DatabaseJob) -> Result<String, BackupFailure> {
    let name = name(job)?;
    match find(job, &name)? {
        Found::Scratch => {}
        Found::Unmarked => return Err(job.refused(format!("a database {name} exists that larder did not create"))),
        Found::Nothing => {
            let live = query(job, "select current_database();")?.into_iter().next().unwrap_or_default();
            let created = psql(job)?.output(creation(&live, &name, "").as_bytes())?;
            created.map_err(|error| BackupFailure {
                hint: Some(String::from("as an administrator of the server, run: ALTER ROLE the role of the URL CREATEDB")),
                ..failed(job, "create a scratch database beside", &error)
            })?;
        }
    }
    let all =
        query(job, "select coalesce(string_agg(quote_ident(extname), ','), '') from pg_extension where extname <> 'plpgsql';");
    let all = all?.into_iter().next().unwrap_or_default();
    let statements: String = all
        .split(',')
        .filter(|one| !one.is_empty())
        .map(|one| format!("create extension if not exists {one} cascade;\n"))
        .collect();
    if !statements.is_empty() {
        query(&beside(job, &name)?, &statements)?;
    }
    Ok(name)
}

/// Returns the job of the scratch database.
fn beside(job: &DatabaseJob, name: &str) -> Result<DatabaseJob, BackupFailure> {
    match &job.at {
        DatabaseAt::Url(live) => Ok(DatabaseJob { at: DatabaseAt::Url(live.with_database(name)?), ..job.clone() }),
        DatabaseAt::File(_) => Err(job.refused("its location is a file, not a URL")),
    }
}

/// Drops the scratch database. An unmarked database is dropped only if it has no tables, views, sequences or functions.
pub(in crate::backup::databases) fn drop(job: &DatabaseJob) -> Result<(), BackupFailure> {
    let name = match name(job) {
        Ok(name) => name,
        // No scratch database can have such a name.
        Err(failure) if failure.why.contains("too long") => return Ok(()),
        Err(failure) => return Err(failure),
    };
    match find(job, &name)? {
        Found::Nothing => return Ok(()),
        Found::Scratch => {}
        Found::Unmarked => {
            let own = "select (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                where n.nspname !~ '^pg_' and n.nspname <> 'information_schema') \
                + (select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
                where n.nspname !~ '^pg_' and n.nspname <> 'information_schema');";
            if query(&beside(job, &name)?, own)?.first().is_none_or(|count| count != "0") {
                return Err(job.refused(format!("a database {name} exists that larder did not create")));
            }
        }
    }
    let (quoted, text) = (identifier(&name), literal(&name));
    query(
        job,
        &format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = {text} and usename = current_user;\n\
             drop database if exists {quoted};\n"
        ),
    )
    .map(|_| ())
}
