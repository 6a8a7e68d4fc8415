//! Sends a restore point of a repository to the dump worker, which stores the restore point in the environment.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::unix::{ffi::OsStrExt, net::UnixStream},
};

use larder_points::{Kind, PointParts};
use rustic_core::{IndexedFullStatus, LsOptions, Repository, RusticError, repofile::Node};

use super::{
    super::error::{BackupFailure, FailureKind},
    OffsiteStore,
    exchange::write_block,
    repository::OpenRepository,
    source::{INDEX, MANIFEST, OWN},
};

/// Sends the restore point `name`: an id, the end of exactly one id, or `latest`. Returns the id.
pub(super) fn fetch(store: &OffsiteStore, name: &str, socket: UnixStream) -> Result<String, BackupFailure> {
    let opened = OpenRepository::existing(store)?;
    let points = opened.points()?;
    let missing = |why: String| BackupFailure {
        hint: Some(String::from("name a restore point that `larder backup import --list` shows")),
        ..BackupFailure::new(FailureKind::NotFound, why)
    };
    let fits = |id: &str| id == name || (name.len() >= 4 && (id.starts_with(name) || id.ends_with(name)));
    let found: Vec<_> = match name {
        "latest" => points.iter().take(1).collect(),
        _ => points.iter().filter(|(point, _)| fits(&point.id)).collect(),
    };
    let (point, snapshot) = match found.as_slice() {
        [one] => one,
        [] => return Err(missing(format!("the repository has no restore point {name}"))),
        _ => return Err(missing(format!("more than one restore point has an id that begins or ends with {name}"))),
    };
    let failed = opened.failed(&format!("read {}", point.id));
    let tree = snapshot.tree;
    let indexed = opened.repository.to_indexed().map_err(&failed)?;
    let mut own = [MANIFEST, INDEX].into_iter().map(|file| {
        let node = indexed.node_from_path(tree, &std::path::Path::new("/").join(OWN).join(file))?;
        let mut bytes = Vec::new();
        indexed.dump(&node, &mut bytes)?;
        Ok::<_, Box<RusticError>>(bytes)
    });
    let (Some(manifest), Some(index)) = (own.next(), own.next()) else { return Err(missing(String::from("no manifest"))) };
    let parts = PointParts::decode(manifest.map_err(&failed)?, index.map_err(&failed)?)?;
    let nodes = nodes(&indexed, tree).map_err(&failed)?;
    let sending = |e: io::Error| BackupFailure::io("send the restore point to the dump worker", &e);
    let mut socket = io::BufWriter::with_capacity(1 << 20, socket);
    write_block(&mut socket, &parts.manifest_bytes).map_err(sending)?;
    write_block(&mut socket, &parts.index_bytes).map_err(sending)?;
    for entry in parts.entries.iter().filter(|entry| matches!(entry.kind, Kind::File { .. })) {
        let node = nodes.get(&entry.path).ok_or_else(|| {
            let why = format!("cannot read {}: the snapshot has no file {}", point.id, entry.shown());
            BackupFailure::new(FailureKind::Damaged, why)
        })?;
        indexed.dump(node, &mut Blocks(&mut socket)).map_err(&failed)?;
        write_block(&mut socket, &[]).map_err(sending)?;
    }
    socket.flush().map_err(sending)?;
    Ok(point.id.clone())
}

/// Returns the files of a tree by their paths.
fn nodes(indexed: &Repository<IndexedFullStatus>, tree: rustic_core::TreeId) -> Result<HashMap<Vec<u8>, Node>, Box<RusticError>> {
    let top = indexed.node_from_path(tree, std::path::Path::new("/"))?;
    let mut nodes = HashMap::new();
    for found in indexed.ls(&top, &LsOptions::default())? {
        let (path, node) = found?;
        if node.is_file() {
            nodes.insert(path.as_os_str().as_bytes().to_vec(), node);
        }
    }
    Ok(nodes)
}

/// A writer that sends each write as a block.
struct Blocks<'a, W: Write>(&'a mut W);

impl<W: Write> Write for Blocks<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            write_block(self.0, bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
