//! Compresses a text with the help of a *reference*, a second text that sender and receiver have. zstd calls this `--patch-from`.
//!
//! [`pack`] takes the reference and the text in one buffer, the reference directly before the text. With separate buffers, the compressed
//! bytes would not be reproducible: zstd gives different bytes if the two buffers touch each other in memory by chance.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, find_frame_compressed_size, get_error_name};

use super::{ArchiveError, MAX_WINDOW_LOG, reader};

/// The size of reference and text together, in bytes, above which the search for long matches is enabled. Without this search, zstd does
/// not reach the whole reference.
const LONG: usize = 1 << 20;

/// The maximum size of reference and text together, in bytes.
pub const MAX_REACH: usize = 1 << MAX_WINDOW_LOG;

/// Compresses the text in `both` into one frame without a checksum, at `level`. The first `reference` bytes of `both` are the reference.
pub fn pack(both: &[u8], reference: usize, level: i32) -> Result<Vec<u8>, ArchiveError> {
    let failed = |code| ArchiveError::Unpatched { why: get_error_name(code) };
    let (before, text) = both.split_at_checked(reference).ok_or(ArchiveError::Unpatched { why: "its reference is missing" })?;
    if both.len() > MAX_REACH {
        return Err(ArchiveError::Unpatched { why: "its reference and its text are too large" });
    }
    let mut context = CCtx::create();
    let mut set = |parameter| context.set_parameter(parameter).map_err(failed);
    set(CParameter::CompressionLevel(level))?;
    set(CParameter::ChecksumFlag(false))?;
    set(CParameter::WindowLog(both.len().next_power_of_two().trailing_zeros().clamp(10, MAX_WINDOW_LOG)))?;
    if both.len() > LONG {
        set(CParameter::EnableLongDistanceMatching(true))?;
    }
    if !before.is_empty() {
        context.ref_prefix(before).map_err(failed)?;
    }
    let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(text.len()));
    context.compress2(&mut packed, text).map_err(failed)?;
    packed.shrink_to_fit();
    Ok(packed)
}

/// Decompresses one frame that [`pack`] made with the same `reference`, and replaces the content of `into`. Returns an error if the frame
/// does not contain exactly `raw` bytes. The caller must limit `raw`, because this much memory is allocated.
pub fn unpack(reference: &[u8], packed: &[u8], raw: usize, into: &mut Vec<u8>) -> Result<(), ArchiveError> {
    let refused = |why| ArchiveError::Patch { why };
    reader::window_of(packed, raw as u64).map_err(refused)?;
    if find_frame_compressed_size(packed).ok() != Some(packed.len()) {
        return Err(refused("it is not exactly one frame"));
    }
    let mut context = DCtx::create();
    if !reference.is_empty() {
        context.ref_prefix(reference).map_err(|code| refused(get_error_name(code)))?;
    }
    into.clear();
    into.reserve(raw);
    match context.decompress(into, packed) {
        Ok(size) if size == raw => Ok(()),
        Ok(_) => Err(refused("it is shorter than stated")),
        Err(code) => Err(refused(get_error_name(code))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::noise;

    #[test]
    fn patch_size_follows_the_change_and_reference_is_required() {
        for (size, level) in [(1000, 19), (300_000, 19), (3 << 20, 3), (3 << 20, 1), (20 << 20, 3)] {
            let old = noise(1, size);
            let mut new = old.clone();
            new.splice(size / 2..size / 2 + 10, *b"some other bytes");
            let both = [old.as_slice(), &new].concat();
            let packed = pack(&both, old.len(), level).unwrap();
            assert!(packed.len() < 200 + size / 500, "{size} at {level}: {}", packed.len());
            assert_eq!(packed, pack(&both, old.len(), level).unwrap());
            let mut back = Vec::new();
            unpack(&old, &packed, new.len(), &mut back).unwrap();
            assert_eq!(back, new);
            assert!(unpack(&old, &packed, new.len() - 1, &mut back).is_err());
            assert!(unpack(&old, &[packed.as_slice(), b"x"].concat(), new.len(), &mut back).is_err());
            assert!(unpack(&old, &packed[..packed.len() - 1], new.len(), &mut back).is_err());
            assert!(unpack(&old[..size / 4], &packed, new.len(), &mut back).is_err() || back != new);
        }
    }

    #[test]
    fn empty_reference_or_text_round_trips() {
        let mut back = vec![1];
        unpack(&[], &pack(b"text", 0, 19).unwrap(), 4, &mut back).unwrap();
        assert_eq!(back, b"text");
        unpack(b"ref", &pack(b"ref", 3, 3).unwrap(), 0, &mut back).unwrap();
        assert_eq!(back, b"");
        assert!(pack(b"ref", 4, 3).is_err());
    }
}
