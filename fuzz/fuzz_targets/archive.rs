//! A hostile archive with a matching manifest. The reader must refuse the archive, or return exactly the files of the manifest, with paths
//! inside the tree.
//!
//! An input is a mode byte, the entries as a line of JSON, and the content of the frames. The rest of the manifest (offsets, sizes,
//! digests of frames, seek table) is computed to match, as the owner of a signing key could do. Otherwise nearly every input would be
//! refused at the first digest.

#![no_main]

mod seen;

use std::io::Write;

use larder_archive::{Archive, ArchiveInfo, ArchiveInfoExt, ArchiveLimits, Digest, Entry, EntryKind, Frame, FrameReader};
use libfuzzer_sys::fuzz_target;
use seen::Seen;

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(mut entries) = serde_json::from_slice::<Vec<Entry>>(&rest[..end]) else { return };
    let content = &rest[end + 1..];
    if mode & 1 == 1 {
        fit_digests(&mut entries, content);
    }
    // The content is raw tar, which is compressed here, or already compressed.
    let packed =
        if mode & 2 == 2 { zstd::bulk::compress(content, 1).expect("bytes can be compressed") } else { content.to_vec() };
    let raw: u64 = entries.iter().map(span).sum::<u64>() + 1024;
    let frame = Frame {
        offset: 0,
        bytes: packed.len() as u64,
        raw: if mode & 4 == 4 { content.len() as u64 } else { raw },
        entries: entries.len() as u32,
        digest: Digest::of(&packed),
    };
    let info = ArchiveInfo::of_frames(vec![frame]);
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&packed).expect("space on the disk");
    file.write_all(&info.seek_table()).expect("space on the disk");
    let Ok(archive) = Archive::open(&file, &entries, &info, &ArchiveLimits::default()) else { return };
    let mut reader = FrameReader::new().expect("memory");
    let mut seen = Seen::new();
    let _ = archive.read(0, &mut reader, &mut seen);
});

/// Returns the bytes of an entry in a tar with short names. With long names the size of the frame does not fit and is refused.
fn span(entry: &Entry) -> u64 {
    512 + if let EntryKind::File { size, .. } = entry.kind { size.saturating_add(511) / 512 * 512 } else { 0 }
}

/// Sets the digests of the entries to those of the bytes at their places.
fn fit_digests(entries: &mut [Entry], content: &[u8]) {
    let mut at = 0_usize;
    for entry in entries {
        at = at.saturating_add(512);
        if let EntryKind::File { size, digest, .. } = &mut entry.kind {
            let Ok(size) = usize::try_from(*size) else { return };
            let Some(part) = at.checked_add(size).and_then(|end| content.get(at..end)) else { return };
            *digest = Digest::of(part);
            at = at.saturating_add(size.div_ceil(512).saturating_mul(512));
        }
    }
}
