//! Scratch databases of drills. A drill loads each dump into a scratch database on the server of the live database, so that the release can
//! start on the copy. For the database `shop`, the scratch database is `shop_larder_drill`, and for a number of Redis the highest unused number.
//!
//! A scratch database carries a mark. A database without the mark is never changed or dropped.

use std::path::Path;

use super::{DatabaseAt, DatabaseJob, DatabaseUrl, Engine as _, mysql, postgres, redis, sqlite};
use crate::{backup::BackupFailure, model::DatabaseEngine};

/// Creates an empty scratch database, and returns its URL. A refusal means that this server lets the user of the URL create no such database.
pub fn create_scratch(job: &DatabaseJob) -> Result<DatabaseUrl, BackupFailure> {
    let name = match job.engine {
        DatabaseEngine::Postgres => postgres::scratch::create(job)?,
        DatabaseEngine::Mysql => mysql::create_scratch(job)?,
        DatabaseEngine::Redis => redis::create_scratch(job)?.to_string(),
        DatabaseEngine::Sqlite => return Err(job.refused("its scratch database is a file of the restored data")),
    };
    match &job.at {
        DatabaseAt::Url(live) => live.with_database(&name),
        DatabaseAt::File(_) => Err(job.refused("its location is a file, not a URL")),
    }
}

/// Loads a dump into the scratch database at `scratch`. Returns sentences about parts of the dump that were not loaded.
pub fn load_scratch(job: &DatabaseJob, scratch: &DatabaseUrl, dump: &Path) -> Result<Vec<String>, BackupFailure> {
    let target = DatabaseJob { at: DatabaseAt::Url(scratch.clone()), ..job.clone() };
    match job.engine {
        DatabaseEngine::Postgres => postgres::Postgres.restore(&target, dump).map(|()| Vec::new()),
        DatabaseEngine::Mysql => mysql::load_scratch(&target, dump),
        DatabaseEngine::Redis => redis::load_scratch(job, &target, dump).map(|()| Vec::new()),
        DatabaseEngine::Sqlite => sqlite::Sqlite.verify(dump).map(|()| Vec::new()),
    }
}

/// Drops the scratch database of this or an earlier drill, if there is one.
pub fn drop_scratch(job: &DatabaseJob) -> Result<(), BackupFailure> {
    match job.engine {
        DatabaseEngine::Postgres => postgres::scratch::drop(job),
        DatabaseEngine::Mysql => mysql::drop_scratch(job),
        DatabaseEngine::Redis => redis::drop_scratch(job),
        DatabaseEngine::Sqlite => Ok(()),
    }
}
