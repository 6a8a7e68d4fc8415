//! The compression settings. A change of these settings, or of the version of zstd, changes the bytes of archives and must change [`NUMBER`].
//! A new archive copies frames only from a previous archive with the same number. Otherwise the bytes of the new archive would depend on
//! the version of larder that wrote the previous archive.

use std::io::{self, Write};

use zstd::{bulk::Compressor, stream::write::Encoder, zstd_safe::CParameter};

use super::{ArchiveError, LEVEL, frames};
use crate::ArchiveInfo;

/// The number of these settings, which the manifest of each archive contains.
pub(super) const NUMBER: u32 = 1;

/// The binary logarithm of the window in bytes. Back-references reach through a whole frame, unless the frame contains a single larger
/// file. The window of level 3 is only 2 MiB.
const WINDOW_LOG: u32 = frames::MAX.ilog2();

/// The binary logarithm of the number of entries in the table of long matches, for frames of more than [`SMALL`] bytes. The table is half
/// as large as the table of level 3, so that the table stays in the cache together with the table of short matches. The smaller table saves
/// 7 % of the time. The wider window saves more bytes than the smaller table costs.
const HASH_LOG: u32 = 16;

/// The size of the part of a streamed file that one thread compresses, in bytes.
const JOB: u32 = 8 << 20;

/// The maximum size of a frame, in bytes, for which zstd chooses the table size.
const SMALL: u64 = 256 << 10;

/// Returns a compressor for frames that are in memory as a whole.
pub(super) fn compressor() -> Result<Compressor<'static>, ArchiveError> {
    let failed = |e| ArchiveError::io("start to compress", e);
    let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
    // The digests of frames and files make checksums superfluous.
    compressor.set_parameter(CParameter::ChecksumFlag(false)).map_err(failed)?;
    compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(failed)?;
    Ok(compressor)
}

/// Prepares the compressor for a frame of `raw` bytes.
pub(super) fn tune(compressor: &mut Compressor<'static>, raw: u64) -> Result<(), ArchiveError> {
    let table = if raw > SMALL { HASH_LOG } else { 0 };
    compressor.set_parameter(CParameter::HashLog(table)).map_err(|e| ArchiveError::io("start to compress", e))
}

/// Prepares the encoder for a frame of `raw` bytes that is streamed. The bytes do not depend on `threads`.
pub(super) fn stream<W: Write>(encoder: &mut Encoder<'_, W>, raw: u64, threads: usize) -> io::Result<()> {
    encoder.set_parameter(CParameter::CompressionLevel(LEVEL))?;
    encoder.include_checksum(false)?;
    encoder.set_pledged_src_size(Some(raw))?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.set_parameter(CParameter::HashLog(HASH_LOG))?;
    encoder.multithread(u32::try_from(threads.clamp(1, 64)).unwrap_or(1))?;
    encoder.set_parameter(CParameter::JobSize(JOB))
}

/// Returns true if an archive was compressed with the current settings, so that the same tree gives the same bytes.
pub fn compresses_like(archive: &ArchiveInfo) -> bool {
    archive.settings == NUMBER
}
