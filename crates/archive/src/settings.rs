//! How frames are compressed. Whatever is changed here, or in the version of zstd, changes the bytes of every archive: then [`NUMBER`] has to
//! change, too, or copied frames would depend on which version made the previous archive.

use std::io::{self, Write};

use zstd::{bulk::Compressor, stream::write::Encoder, zstd_safe::CParameter};

use super::{ArchiveError, LEVEL, frames};
use crate::ArchiveInfo;

/// Stands in the manifest of each archive that is compressed like this.
pub(super) const NUMBER: u32 = 1;

/// Back-references reach through a whole frame: as power of two, in bytes. Level 3 alone would stop at 2 MiB.
const WINDOW_LOG: u32 = frames::MAX.ilog2();

/// The table of long matches, as power of two, for frames of more than [`SMALL`] bytes. Half of what level 3 takes: with the table of short
/// ones it stays in the cache, which saves 7 % of the time. The wider window gives back more than the size that this costs.
const HASH_LOG: u32 = 16;

/// The part of a streamed file that one thread compresses, in bytes.
const JOB: u32 = 8 << 20;

/// Frames up to this size in bytes are left to zstd's own choice, which differs there.
const SMALL: u64 = 256 << 10;

/// A compressor for frames that are held as a whole.
pub(super) fn compressor() -> Result<Compressor<'static>, ArchiveError> {
    let failed = |e| ArchiveError::io("start to compress", e);
    let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
    // The digests of frames and files say more than a checksum inside would.
    compressor.set_parameter(CParameter::ChecksumFlag(false)).map_err(failed)?;
    compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(failed)?;
    Ok(compressor)
}

/// Prepares for a frame of `raw` bytes.
pub(super) fn tune(compressor: &mut Compressor<'static>, raw: u64) -> Result<(), ArchiveError> {
    let table = if raw > SMALL { HASH_LOG } else { 0 };
    compressor.set_parameter(CParameter::HashLog(table)).map_err(|e| ArchiveError::io("start to compress", e))
}

/// The same for a frame of `raw` bytes that is streamed, in `threads` threads; the bytes do not depend on how many.
pub(super) fn stream<W: Write>(encoder: &mut Encoder<'_, W>, raw: u64, threads: usize) -> io::Result<()> {
    encoder.set_parameter(CParameter::CompressionLevel(LEVEL))?;
    encoder.include_checksum(false)?;
    encoder.set_pledged_src_size(Some(raw))?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.set_parameter(CParameter::HashLog(HASH_LOG))?;
    encoder.multithread(u32::try_from(threads.clamp(1, 64)).unwrap_or(1))?;
    encoder.set_parameter(CParameter::JobSize(JOB))
}

/// Whether an archive was compressed as it would be now, so that the same tree has the same archive.
pub fn compresses_like(archive: &ArchiveInfo) -> bool {
    archive.settings == NUMBER
}
