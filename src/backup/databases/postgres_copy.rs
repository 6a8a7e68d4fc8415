//! Copies of PostgreSQL databases on their server by `CREATE DATABASE … TEMPLATE`, and the return of a copy by a rename.
//!
//! The server copies the files of the database, so a copy needs much less time than a dump, and is exact because no other session can be
//! connected to the database meanwhile. One transaction gives the database another name, and the copy the name of the database. A kill leaves
//! the old or the returned database. A copy has the rights, the comment and the connection limit of its database after the return.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    DatabaseAt, DatabaseJob, Engine, ServerCopies,
    postgres::{Postgres, failed, major_of, psql, query},
    tool::Tool,
};
use crate::backup::{BackupFailure, FailureKind};

/// The databases to which sessions are connected that create, rename or drop other databases. Every server has them.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];

/// The suffix of the replaced database after the return of a copy.
const REPLACED: &str = "_old";

/// The maximum length of the name of a database, in bytes (`NAMEDATALEN` - 1).
const MAX_NAME: usize = 63;

/// Ends the sessions of the role itself on a database.
const END_SESSIONS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = {name} and pid <> pg_backend_pid() and usename = current_user;";

/// The time limit for the end of the sessions of a killed worker. The server ends a session in the middle of a copy within moments.
const ENDING: Duration = Duration::from_secs(60);

/// The pause between two looks at the sessions of a killed worker.
const POLL: Duration = Duration::from_millis(50);

/// Returns a name as an identifier of SQL.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a text as a string constant of SQL.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Returns the database of a job.
fn name_of(job: &DatabaseJob) -> Result<String, BackupFailure> {
    let address = job.address()?;
    let named = address.parameters.get("dbname").cloned().or(address.database).or(address.user);
    named.ok_or_else(|| job.refused("its URL names no database"))
}

/// Returns the job for another database of the same server.
fn of_database(job: &DatabaseJob, name: &str) -> Result<DatabaseJob, BackupFailure> {
    let DatabaseAt::Url(url) = &job.at else { return Err(job.refused("its location is a file, not a URL")) };
    Ok(DatabaseJob { at: DatabaseAt::Url(url.with_database(name)?), ..job.clone() })
}

/// Returns the job for a database to which the role can connect and which is not the database of `job`.
fn maintenance(job: &DatabaseJob) -> Result<DatabaseJob, BackupFailure> {
    let mut last = None;
    for name in MAINTENANCE {
        let other = of_database(job, name)?;
        match query(&other, "select 1;") {
            Ok(_) => return Ok(other),
            Err(failure) => last = Some(failure),
        }
    }
    Err(last.unwrap_or_else(|| job.refused("the server has no other database")))
}

/// Returns true for each of `names` that is a database of the server.
fn exist<const N: usize>(admin: &DatabaseJob, names: [&str; N]) -> Result<[bool; N], BackupFailure> {
    let columns = names.map(|name| format!("exists (select 1 from pg_database where datname = {})", literal(name))).join(", ");
    let row = query(admin, &format!("select {columns};"))?;
    Ok(std::array::from_fn(|at| row.get(at).is_some_and(|found| found == "t")))
}

/// Drops a database of larder, and ends the sessions on it.
fn drop_database(admin: &DatabaseJob, name: &str) -> Result<(), BackupFailure> {
    // `drop database … with (force)` needs PostgreSQL 13.
    let sessions = END_SESSIONS.replace("{name}", &literal(name));
    query(admin, &format!("{sessions}\ndrop database if exists {};\n", identifier(name))).map(drop)
}

/// Ends the sessions of killed workers that create or rename `copy`, and waits until the server has ended them. The server may still commit the
/// last statement of such a session, so the databases of the server are certain only after the end of the session.
fn end_sessions_of(admin: &DatabaseJob, copy: &str) -> Result<(), BackupFailure> {
    let condition = format!("application_name = {} and usename = current_user and pid <> pg_backend_pid()", literal(copy));
    query(admin, &format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where {condition};\n"))?;
    let begun = Instant::now();
    while query(admin, &format!("select count(*) from pg_stat_activity where {condition};\n"))? != ["0"] {
        if begun.elapsed() > ENDING {
            return Err(admin.refused(format!("a session of a killed worker still uses the copy {copy}")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Returns `psql` with the name of a copy as the name of its session, so that a later worker can end the session of a killed worker.
fn psql_of(admin: &DatabaseJob, copy: &str) -> Result<Tool, BackupFailure> {
    Ok(psql(admin)?.env("PGAPPNAME", copy))
}

impl ServerCopies for Postgres {
    fn name(&self, job: &DatabaseJob, point: &str) -> Result<String, BackupFailure> {
        let mut start = name_of(job)?;
        let digest = blake3::hash(format!("{point}/{}", job.name).as_bytes()).to_hex();
        let end = format!("_larder_{}", digest.get(..12).unwrap_or_default());
        while start.len() + end.len() + REPLACED.len() > MAX_NAME {
            start.pop();
        }
        Ok(start + &end)
    }

    fn obstacle(&self, job: &DatabaseJob) -> Result<Option<String>, BackupFailure> {
        let name = name_of(job)?;
        if MAINTENANCE.contains(&name.as_str()) {
            return Ok(Some(format!("{name} is a database of the server itself")));
        }
        let admin = match maintenance(job) {
            Ok(admin) => admin,
            Err(failure) => return Ok(Some(format!("no other database of the server can be used: {}", failure.why))),
        };
        let facts = format!(
            "select r.rolcreatedb or r.rolsuper, pg_has_role(current_user, d.datdba, 'USAGE'), d.datistemplate or not d.datallowconn, \
             (select count(*) from pg_db_role_setting s where s.setdatabase = d.oid), \
             (select count(*) from pg_replication_slots l where l.database = d.datname) \
             + (select count(*) from pg_subscription u where u.subdbid = d.oid), \
             (select count(*) from pg_prepared_xacts x where x.database = d.datname), \
             (select count(*) from aclexplode(d.datacl) a where a.grantor <> d.datdba), \
             (select count(*) from pg_stat_activity a where a.datid = d.oid and a.usesysid <> r.oid), \
             (select min(a.usename) from pg_stat_activity a where a.datid = d.oid and a.usesysid <> r.oid) \
             from pg_database d, pg_roles r where d.datname = {} and r.rolname = current_user;\n",
            literal(&name)
        );
        let row = query(&admin, &facts)?;
        let [create, owns, special, settings, logical, prepared, grantors, sessions, user] = row.as_slice() else {
            return Ok(Some(String::from("the server does not describe the database")));
        };
        let is_some = |count: &String| count != "0";
        Ok(if create != "t" {
            Some(String::from("the role in its URL may not create databases (CREATEDB)"))
        } else if owns != "t" {
            Some(String::from("the role in its URL does not own the database"))
        } else if is_some(sessions) {
            Some(format!("other sessions use the database: {sessions}, of {user}"))
        } else if is_some(settings) {
            Some(String::from("the database has settings of its own (ALTER DATABASE SET)"))
        } else if is_some(logical) {
            Some(String::from("the database has replication slots or subscriptions"))
        } else if is_some(prepared) {
            Some(String::from("the database has prepared transactions"))
        } else if is_some(grantors) {
            Some(String::from("other roles than its owner have granted rights on the database"))
        } else if special == "t" {
            Some(String::from("the database is a template, or allows no connections"))
        } else {
            None
        })
    }

    fn copy(&self, job: &DatabaseJob, copy: &str) -> Result<u64, BackupFailure> {
        let (admin, name) = (maintenance(job)?, name_of(job)?);
        query(&admin, &END_SESSIONS.replace("{name}", &literal(&name)))?;
        // The server itself waits 5 seconds for other sessions. `obstacle` finds them at once.
        if let Some(why) = self.obstacle(job)? {
            return Err(job.refused(why));
        }
        drop_database(&admin, copy)?;
        let version = query(&admin, "select split_part(current_setting('server_version'), ' ', 1);")?;
        // Older servers copy files in any case. The other strategy writes each page to the write-ahead log.
        let is_new = version.first().is_some_and(|version| major_of(version) >= 15);
        let strategy = if is_new { " strategy file_copy" } else { "" };
        let create = format!("create database {} template {}{strategy};\n", identifier(copy), identifier(&name));
        psql_of(&admin, copy)?.output(create.as_bytes())?.map_err(|error| failed(job, "copy", &error))?;
        let size = query(&admin, &format!("select pg_database_size({});", literal(copy)))?;
        Ok(size.first().and_then(|bytes| bytes.parse().ok()).unwrap_or(0))
    }

    fn put_back(&self, job: &DatabaseJob, copy: &str, scratch: &Path) -> Result<(), BackupFailure> {
        let (admin, name) = (maintenance(job)?, name_of(job)?);
        let replaced = format!("{copy}{REPLACED}");
        end_sessions_of(&admin, copy)?;
        match exist(&admin, [&name, copy, &replaced])? {
            // An earlier call has exchanged the databases.
            [true, false, true] => return Ok(()),
            [true, true, false] => {}
            [true, true, true] => drop_database(&admin, &replaced)?,
            _ => {
                let why = format!("cannot put {} back: the server has no copy {copy} of the database {name}", job.name);
                return Err(BackupFailure::new(FailureKind::Damaged, why));
            }
        }
        match exchange(&admin, job, (&name, copy, &replaced)) {
            Err(failure) if failure.kind == FailureKind::Refused => {
                // Another session prevents the rename. A restore in one transaction needs only locks on the tables.
                let dump = scratch.join(".larder-copy.dump");
                let removed = || match fs::remove_file(&dump) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(BackupFailure::io("remove the dump of a copy", &error))
                    }
                    _ => Ok(()),
                };
                removed()?;
                self.dump(&of_database(job, copy)?, &dump)?;
                let restored = self.restore(job, &dump);
                removed()?;
                restored
            }
            other => other,
        }
    }

    fn of_copy(&self, job: &DatabaseJob, copy: &str) -> Result<Option<DatabaseJob>, BackupFailure> {
        let [found] = exist(&maintenance(job)?, [copy])?;
        found.then(|| of_database(job, copy)).transpose()
    }

    fn discard(&self, job: &DatabaseJob, copy: &str) -> Result<(), BackupFailure> {
        let admin = maintenance(job)?;
        end_sessions_of(&admin, copy)?;
        drop_database(&admin, copy)?;
        drop_database(&admin, &format!("{copy}{REPLACED}"))
    }
}

/// Exchanges the names of the database and its copy in one transaction. The copy gets the rights, the comment and the connection limit of the
/// database, which the server does not copy.
fn exchange(admin: &DatabaseJob, job: &DatabaseJob, (name, copy, replaced): (&str, &str, &str)) -> Result<(), BackupFailure> {
    let sessions = [name, copy].map(|name| END_SESSIONS.replace("{name}", &literal(name))).join("\n");
    query(admin, &sessions)?;
    let (live, old) = (literal(name), literal(replaced));
    let script = format!(
        "begin;\n\
         alter database {of_live} rename to {of_old};\n\
         alter database {of_copy} rename to {of_live};\n\
         select format('revoke all on database %I from public', {live}) from pg_database where datname = {old} and datacl is not null \
         \\gexec\n\
         select format('grant %s on database %I to %s%s', a.privilege_type, {live}, \
         case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end, \
         case when a.is_grantable then ' with grant option' else '' end) \
         from pg_database d, aclexplode(d.datacl) a where d.datname = {old} and a.grantee <> d.datdba \\gexec\n\
         select format('alter database %I connection limit %s', {live}, datconnlimit) from pg_database \
         where datname = {old} and datconnlimit <> -1 \\gexec\n\
         select format('comment on database %I is %L', {live}, shobj_description(oid, 'pg_database')) from pg_database \
         where datname = {old} and shobj_description(oid, 'pg_database') is not null \\gexec\n\
         commit;\n",
        of_live = identifier(name),
        of_old = identifier(replaced),
        of_copy = identifier(copy),
    );
    psql_of(admin, copy)?.output(script.as_bytes())?.map(drop).map_err(|error| failed(job, "put back", &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backup::DatabaseUrl, model::DatabaseEngine};

    fn job(url: &str) -> DatabaseJob {
        let at = DatabaseAt::Url(DatabaseUrl::new(url));
        DatabaseJob { name: "main".parse().unwrap(), engine: DatabaseEngine::Postgres, at, is_declared: true }
    }

    #[test]
    fn name_of_a_copy_fits_and_differs_by_point() {
        let long = format!("postgres://u:p@h/{}", "a".repeat(63));
        for url in ["postgres://u:p@h/shop", long.as_str()] {
            let (one, two) = (Postgres.name(&job(url), "one").unwrap(), Postgres.name(&job(url), "two").unwrap());
            assert!(one != two && one.len() + REPLACED.len() <= MAX_NAME, "{one} {two}");
        }
        assert!(Postgres.name(&job("postgres://u:p@h/shop"), "one").unwrap().starts_with("shop_larder_"));
    }

    #[test]
    fn other_database_of_a_server_replaces_path_and_parameter() {
        let other = of_database(&job("postgres://u:p%40s@h:5/shop?dbname=other&sslmode=require"), "a b").unwrap();
        let address = other.address().unwrap();
        assert_eq!(name_of(&other).unwrap(), "a b");
        assert_eq!((address.password.as_deref(), address.port), (Some("p@s"), Some(5)));
        assert_eq!(address.parameters.get("sslmode").map(String::as_str), Some("require"));
        let socket = of_database(&job("postgresql:///shop?host=/run/postgresql&user=larder"), "postgres").unwrap();
        assert_eq!(name_of(&socket).unwrap(), "postgres");
        assert_eq!(socket.address().unwrap().parameters.len(), 2);
    }
}
