//! Replaces a MySQL or MariaDB database with a dump.
//!
//! The dump is loaded into a scratch database `NAME_larder_new`. One `RENAME TABLE` statement then moves all old tables to the scratch
//! database `NAME_larder_old` and all new tables to the live database. The server executes this statement whole or not at all, also if the
//! client is killed. A rename moves no view, trigger, routine or event. These objects are first created in the scratch database, as a
//! rehearsal. In the live database, the old objects are dropped before the exchange, and the restored objects are created after the
//! exchange. A kill in between leaves the old or the restored tables without these objects, and a repetition of the restore creates them.

use std::fmt::Write as _;

use super::{
    super::url::SCRATCH_SUFFIX,
    client::{Client, Objects, identifier, literal},
    script::{self, SqlScript},
    version::Version,
};
use crate::backup::{BackupFailure, FailureKind};

/// The maximum length of the name of a database, in characters.
const MAX_NAME: usize = 64;

/// The table that marks a scratch database. A database that has tables, but not this table, is never dropped.
const MARK: &str = "larder_scratch";

/// The statement that limits the wait for transactions of other clients. The server's default is a day.
const LOCK_LIMIT: &str = "SET SESSION lock_wait_timeout = 30;\n";

/// The names of the two scratch databases.
struct Scratch {
    new: String,
    old: String,
}

/// Checks that the database can be replaced, and leaves nothing behind.
pub(super) fn check(client: &Client) -> Result<(), BackupFailure> {
    let scratch = Scratch::of(client)?;
    scratch.drop(client)?;
    let created = scratch.create(client);
    created.and(scratch.drop(client))
}

/// Replaces the database of a client with a dump.
pub(super) fn restore(client: &Client, server: &Version, script: &SqlScript) -> Result<(), BackupFailure> {
    let scratch = Scratch::of(client)?;
    scratch.drop(client)?;
    let restored = scratch.create(client).and_then(|()| {
        client.run_part(&scratch.new, &script.file, &script.tables)?;
        // The rehearsal finds objects that this user may not create, before anything is changed.
        client.run_part(&scratch.new, &script.file, &script.objects)?;
        let rehearsed = client.objects(&scratch.new)?;
        client.run(None, drop_objects(&scratch.new, &rehearsed).as_bytes())?;
        exchange(client, server, script, &scratch, &rehearsed)
    });
    // The result of the restore is known already. The next restore drops a scratch database that stays.
    let _ = scratch.drop(client);
    restored
}

impl Scratch {
    /// Returns the scratch databases of a database that can be exchanged.
    fn of(client: &Client) -> Result<Scratch, BackupFailure> {
        let live = client.database();
        let scratch = Scratch { new: format!("{live}_larder_new"), old: format!("{live}_larder_old") };
        if scratch.new.chars().count() > MAX_NAME {
            return Err(client.refused(format!("the name of its scratch database is too long: {}", scratch.new)));
        }
        refuse_foreign_keys_of_others(client)?;
        Ok(scratch)
    }

    /// Drops the scratch databases of this or an earlier restore.
    fn drop(&self, client: &Client) -> Result<(), BackupFailure> {
        [&self.new, &self.old].into_iter().try_for_each(|name| drop_marked(client, name))
    }

    fn create(&self, client: &Client) -> Result<(), BackupFailure> {
        [&self.new, &self.old].into_iter().try_for_each(|name| create_marked(client, name))
    }
}

/// Returns the name of the scratch database of a drill.
pub(super) fn drill_name(client: &Client) -> Result<String, BackupFailure> {
    let name = format!("{}{SCRATCH_SUFFIX}", client.database());
    match name.chars().count() > MAX_NAME {
        true => Err(client.refused(format!("the name of its scratch database is too long: {name}"))),
        false => Ok(name),
    }
}

/// Drops a scratch database of larder, if there is one.
pub(super) fn drop_marked(client: &Client, name: &str) -> Result<(), BackupFailure> {
    let schema = literal(name);
    let found = client.rows(&format!(
        "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = {schema};\n\
                 SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {schema};\n\
                 SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {schema} AND table_name = '{MARK}';\n"
    ))?;
    let counts: Vec<&str> = found.iter().flatten().map(String::as_str).collect();
    match counts.as_slice() {
        ["0", ..] => {}
        [_, "0", _] | [_, _, "1"] => {
            client.run(None, format!("SET foreign_key_checks = 0;\nDROP DATABASE {};\n", identifier(name)).as_bytes())?;
        }
        _ => return Err(client.refused(format!("a database {name} exists that larder did not create"))),
    }
    Ok(())
}

/// Creates an empty scratch database with the mark.
pub(super) fn create_marked(client: &Client, name: &str) -> Result<(), BackupFailure> {
    let name = identifier(name);
    // A kill between the two statements leaves an empty database without the mark, which `drop` removes, too.
    let statements = format!("CREATE DATABASE {name};\nCREATE TABLE {name}.{MARK} (x INT);\n");
    client.run(None, statements.as_bytes()).map_err(|failure| BackupFailure {
        hint: Some(grant(client)),
        ..BackupFailure::new(failure.kind, format!("{} (while a scratch database was created)", failure.why))
    })
}

/// Returns the instruction that lets the user of the URL create the scratch databases.
fn grant(client: &Client) -> String {
    let user = client.rows("SELECT CURRENT_USER()").ok().and_then(|rows| rows.into_iter().flatten().next()).unwrap_or_default();
    let user = user.rsplit_once('@').map_or_else(|| String::from("USER"), |(user, host)| format!("'{user}'@'{host}'"));
    let pattern = client.database().replace('`', "``").replace('_', "\\_").replace('%', "\\%");
    format!("as an administrator of the server, run: GRANT ALL PRIVILEGES ON `{pattern}\\_larder\\_%`.* TO {user}")
}

/// Refuses a database to which foreign keys of another database refer. After the exchange, these keys would refer to the replaced tables.
fn refuse_foreign_keys_of_others(client: &Client) -> Result<(), BackupFailure> {
    let schema = literal(client.database());
    let rows = client.rows(&format!(
        "SELECT HEX(table_schema) FROM information_schema.key_column_usage \
         WHERE referenced_table_schema = {schema} AND table_schema <> {schema} AND table_schema NOT LIKE '%\\_larder\\_%' LIMIT 1;\n"
    ))?;
    match rows.is_empty() {
        true => Ok(()),
        false => Err(client.refused("foreign keys of another database refer to its tables")),
    }
}

/// Returns the statements that drop views, triggers, routines and events.
fn drop_objects(database: &str, objects: &Objects) -> String {
    let database = identifier(database);
    let mut text = String::from(LOCK_LIMIT);
    let mut add = |kind: &str, name: &str| {
        let _ = writeln!(text, "DROP {kind} IF EXISTS {database}.{};", identifier(name));
    };
    objects.triggers.iter().for_each(|name| add("TRIGGER", name));
    objects.views.iter().for_each(|name| add("VIEW", name));
    objects.events.iter().for_each(|name| add("EVENT", name));
    // The body of a package is dropped with the package.
    objects.routines.iter().filter(|(kind, _)| kind != "PACKAGE BODY").for_each(|(kind, name)| add(kind, name));
    text
}

/// Returns the one statement that exchanges all tables, or nothing if both databases are empty.
fn rename(live: &str, old: &[String], scratch: &Scratch, new: &[String]) -> String {
    let mut moves = Vec::new();
    let mut add = |tables: &[String], from: &str, to: &str| {
        let tables = tables.iter().filter(|table| *table != MARK).map(|table| identifier(table));
        moves.extend(tables.map(|table| format!("{}.{table} TO {}.{table}", identifier(from), identifier(to))));
    };
    add(old, live, &scratch.old);
    add(new, &scratch.new, live);
    if moves.is_empty() { String::new() } else { format!("{LOCK_LIMIT}RENAME TABLE {};\n", moves.join(",\n")) }
}

/// Exchanges the tables, and replaces the views, triggers, routines and events.
fn exchange(
    client: &Client,
    server: &Version,
    script: &SqlScript,
    scratch: &Scratch,
    new: &Objects,
) -> Result<(), BackupFailure> {
    let live = client.database();
    let old = client.objects(live)?;
    // The old objects are dropped before the exchange. Tables with triggers cannot move to another database, and a restored table may have
    // the name of an old view.
    let saved = script::save_objects(client, server, &old)?;
    client.run(None, drop_objects(live, &old).as_bytes())?;
    if let Err(failure) = client.run(None, rename(live, &old.tables, scratch, &new.tables).as_bytes()) {
        // The old tables are still in place, so the old views, triggers, routines and events are created again.
        let length = saved.metadata().map_err(|e| BackupFailure::io("read a private file", &e))?.len();
        client.run_part(live, &saved, &(0..length))?;
        return Err(failure);
    }
    let replaced = client.run_part(live, &script.file, &script.objects);
    replaced.and_then(|()| client.run_part(live, &script.file, &script.events)).map_err(|failure| BackupFailure {
        // A repetition of the restore creates the missing objects.
        kind: FailureKind::Machine,
        why: format!("{} (after the tables were replaced; views, triggers, routines or events are missing)", failure.why),
        hint: failure.hint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tables_are_exchanged_by_one_statement() {
        let scratch = Scratch { new: String::from("s_larder_new"), old: String::from("s_larder_old") };
        let (old, new) = ([String::from("a"), String::from("b`")], [String::from("a"), MARK.to_owned()]);
        let text = rename("s", &old, &scratch, &new);
        assert_eq!(
            text.strip_prefix(LOCK_LIMIT).unwrap(),
            "RENAME TABLE `s`.`a` TO `s_larder_old`.`a`,\n`s`.`b``` TO `s_larder_old`.`b```,\n`s_larder_new`.`a` TO `s`.`a`;\n"
        );
        assert_eq!(rename("s", &[], &scratch, &[MARK.to_owned()]), "");
    }
}
