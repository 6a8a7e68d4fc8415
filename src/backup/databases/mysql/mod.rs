//! MySQL and MariaDB: `mysqldump --single-transaction`, and a restore that exchanges all tables by one `RENAME TABLE` statement.

mod client;
mod exchange;
mod script;
mod version;

use std::{fs, path::Path};

use self::client::{Client, literal};
use super::{DatabaseJob, DatabaseSize, DumpInfo, Engine, EngineVersions, OtherSessions};
use crate::backup::BackupFailure;

/// Runs statements as the administrator of a server, and returns the rows of their answers.
pub(super) fn admin(job: &DatabaseJob, statements: &str) -> Result<Vec<Vec<String>>, BackupFailure> {
    Client::of_server(job)?.rows(statements)
}

/// Creates the scratch database of a drill, and returns its name.
pub(super) fn create_scratch(job: &DatabaseJob) -> Result<String, BackupFailure> {
    let client = Client::new(job)?;
    let name = exchange::drill_name(&client)?;
    exchange::drop_marked(&client, &name)?;
    exchange::create_marked(&client, &name)?;
    Ok(name)
}

/// Loads a dump into a scratch database. Events are left out, because the server would run them.
pub(super) fn load_scratch(target: &DatabaseJob, dump: &Path) -> Result<Vec<String>, BackupFailure> {
    let (script, client) = (script::open(dump)?, Client::new(target)?);
    client.run_part(client.database(), &script.file, &script.tables)?;
    client.run_part(client.database(), &script.file, &script.objects)?;
    let has_events = !script.events.is_empty();
    Ok(has_events
        .then(|| format!("the events of {} were not created, because the server would run them", target.name))
        .into_iter()
        .collect())
}

/// Drops the scratch database of a drill, if there is one.
pub(super) fn drop_scratch(job: &DatabaseJob) -> Result<(), BackupFailure> {
    let client = Client::new(job)?;
    match exchange::drill_name(&client) {
        Ok(name) => exchange::drop_marked(&client, &name),
        // No scratch database can have such a name.
        Err(_) => Ok(()),
    }
}

/// The engine of MySQL and MariaDB.
pub(super) struct Mysql;

impl Engine for Mysql {
    fn check(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        Client::new(job)?.check().map(|(versions, _)| versions)
    }

    fn check_restore(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        let client = Client::new(job)?;
        let (versions, _) = client.check()?;
        exchange::check(&client).map(|()| versions)
    }

    fn size(&self, job: &DatabaseJob) -> Result<DatabaseSize, BackupFailure> {
        let client = Client::new(job)?;
        let rows = client.rows(&format!(
            "SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.tables WHERE table_schema = {}",
            literal(client.database())
        ))?;
        let bytes = rows.into_iter().flatten().next().and_then(|text| text.parse().ok());
        Ok(DatabaseSize { bytes: bytes.ok_or_else(|| client.refused("the server states no size"))? })
    }

    fn other_sessions(&self, job: &DatabaseJob) -> Result<Option<OtherSessions>, BackupFailure> {
        let client = Client::new(job)?;
        // Without the right PROCESS, the server shows only the sessions of the same user.
        let rows = client.rows(&format!(
            "SELECT COUNT(*), MIN(CONCAT(user, ' from ', SUBSTRING_INDEX(host, ':', 1))) FROM information_schema.processlist \
             WHERE db = {} AND id <> CONNECTION_ID()",
            literal(client.database())
        ))?;
        let row = rows.into_iter().next().unwrap_or_default();
        let count = row.first().and_then(|count| count.parse().ok()).unwrap_or(0);
        Ok((count > 0).then(|| OtherSessions::new(job, count, &row.get(1..).unwrap_or_default().join(" "))))
    }

    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        let client = Client::new(job)?;
        let (versions, server) = client.check()?;
        script::write(&client, &server, into)?;
        let bytes = fs::metadata(into).map_err(|e| BackupFailure::io("read the dump", &e))?.len();
        Ok(DumpInfo::of(job, versions, bytes))
    }

    fn verify(&self, dump: &Path) -> Result<(), BackupFailure> {
        script::open(dump).map(drop)
    }

    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure> {
        let script = script::open(from)?;
        let client = Client::new(job)?;
        let (_, server) = client.check()?;
        if !server.accepts(&script.server) {
            return Err(client.refused(format!(
                "the dump is of {} {} (expected the product of the server, and a version up to {})",
                script.server.family.title(),
                script.server.text,
                server.text
            )));
        }
        exchange::restore(&client, &server, &script)
    }
}
