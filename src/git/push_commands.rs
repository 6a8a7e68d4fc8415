//! Counts the ref updates that a client requests from receive-pack. The type to read first is [`CommandCounter`].
//!
//! git's receive-pack exits with status 0 even if it refuses every ref. receive-pack also refuses refs before any hook runs, for example
//! hidden refs, or all refs if the pack is invalid. If more updates were requested than the hooks have received, git has refused some refs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The number of updates that the client has requested so far. Clones share the number.
#[derive(Debug, Clone, Default)]
pub struct PushCommands(Arc<AtomicUsize>);

impl PushCommands {
    /// Returns the number of requested updates.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Parses a copy of the client's input and counts the updates, up to the first flush packet (gitprotocol-pack(5), "Reference Update Request
/// and Packfile Transfer").
#[derive(Debug)]
pub struct CommandCounter {
    commands: PushCommands,
    /// The length digits of the current packet that have arrived so far.
    digits: Vec<u8>,
    /// The number of bytes of the current packet that have not arrived yet.
    payload: usize,
    /// True if no byte of the current payload has arrived.
    at_start: bool,
    /// True after the flush packet or an invalid packet.
    is_over: bool,
}

impl CommandCounter {
    /// Creates a counter that adds the updates to `commands`.
    pub fn new(commands: PushCommands) -> CommandCounter {
        CommandCounter { commands, digits: Vec::with_capacity(4), payload: 0, at_start: false, is_over: false }
    }

    /// Parses the next bytes of the input.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let (false, Some((first, rest))) = (self.is_over, bytes.split_first()) {
            if self.payload > 0 {
                // An update begins with an object id. Other packets begin with `shallow` or `push-cert`.
                if std::mem::take(&mut self.at_start) && first.is_ascii_hexdigit() {
                    self.commands.0.fetch_add(1, Ordering::Relaxed);
                }
                let taken = self.payload.min(bytes.len());
                self.payload = self.payload.saturating_sub(taken);
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            self.digits.push(*first);
            bytes = rest;
            if self.digits.len() == 4 {
                let length = std::str::from_utf8(&self.digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
                self.digits.clear();
                self.payload = length.unwrap_or(0).saturating_sub(4);
                self.at_start = true;
                // Nothing is parsed after an invalid packet, because git refuses the push.
                self.is_over = length.is_none_or(|length| length < 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(input: &[u8], piece: usize) -> usize {
        let commands = PushCommands::default();
        let mut counter = CommandCounter::new(commands.clone());
        input.chunks(piece).for_each(|piece| counter.feed(piece));
        commands.count()
    }

    #[test]
    fn updates_in_pieces_of_any_size_are_counted_up_to_the_flush_packet() {
        let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let (old, new) = ("0".repeat(40), "a".repeat(40));
        let input = [
            packet(&format!("shallow {new}")),
            packet(&format!("{old} {new} refs/heads/main\0report-status")),
            packet(&format!("{old} {new} refs/tags/v1\n")),
            String::from("0000"),
            packet(&format!("{old} {new} not/a/command")),
            String::from("PACK"),
        ]
        .concat();
        for piece in [1, 2, 3, 5, 64, 4096] {
            assert_eq!(count(input.as_bytes(), piece), 2, "pieces of {piece}");
        }
    }

    #[test]
    fn input_without_updates_counts_none() {
        for input in [&b"0000"[..], b"", b"zzzz0000", b"0003", b"0004000400000008abcd", b"00"] {
            assert_eq!(count(input, 1), 0, "{input:?}");
        }
    }
}
