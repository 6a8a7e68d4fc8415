//! Counts the ref updates that a client requests from receive-pack. The type to read first is [`CommandCounter`].
//!
//! git's receive-pack exits with status 0 even if it refuses every ref. receive-pack also refuses refs before any hook runs, for example
//! hidden refs, or all refs if the pack is invalid. If more updates were requested than the hooks have received, git has refused some refs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The number of updates that the client has requested so far. All clones of a value share one number.
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
    /// The number of hexadecimal digits at the start of the current payload. `None` as soon as the counter knows whether the packet is an
    /// update.
    id_digits: Option<usize>,
    /// True after the flush packet or an invalid packet.
    is_over: bool,
}

impl CommandCounter {
    /// Creates a counter that adds the updates to `commands`.
    pub fn new(commands: PushCommands) -> CommandCounter {
        CommandCounter { commands, digits: Vec::with_capacity(4), payload: 0, id_digits: None, is_over: false }
    }

    /// Parses the next bytes of the input.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let (false, Some((first, rest))) = (self.is_over, bytes.split_first()) {
            if self.payload > 0 {
                let taken = self.payload.min(bytes.len());
                let (payload, rest) = bytes.split_at_checked(taken).unwrap_or_default();
                self.find_update(payload);
                self.payload = self.payload.saturating_sub(taken);
                bytes = rest;
                continue;
            }
            self.digits.push(*first);
            bytes = rest;
            if self.digits.len() == 4 {
                let length = std::str::from_utf8(&self.digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
                self.digits.clear();
                self.payload = length.unwrap_or(0).saturating_sub(4);
                self.id_digits = Some(0);
                // Nothing is parsed after an invalid packet, because git refuses the push.
                self.is_over = length.is_none_or(|length| length < 4);
            }
        }
    }

    /// Parses the next bytes of a payload. An update begins with an object id of 40 (SHA-1) or 64 (SHA-256) digits and a space. A packet
    /// that begins with other text, such as `shallow` or `push-cert`, is not counted. In a signed push, each line of the certificate is a
    /// packet; some of these lines are the updates.
    fn find_update(&mut self, payload: &[u8]) {
        for byte in payload {
            let Some(digits) = self.id_digits else { return };
            self.id_digits = (byte.is_ascii_hexdigit() && digits < 64).then_some(digits.saturating_add(1));
            if *byte == b' ' && matches!(digits, 40 | 64) {
                self.commands.0.fetch_add(1, Ordering::Relaxed);
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
    fn line_of_a_push_certificate_that_is_no_update_is_not_counted() {
        let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let (old, new) = ("0".repeat(40), "a".repeat(64));
        let update = packet(&format!("{old} {} refs/heads/main\n", "b".repeat(40)));
        let input = [
            packet("push-cert\0report-status\n"),
            packet("certificate version 0.1\n"),
            packet("pusher ada <ada@example.com> 1700000000 +0000\n"),
            packet("pushee ssh://larder@example.com/shop\n"),
            packet("nonce 1700000000-0123456789abcdef\n"),
            packet("\n"),
            update.clone(),
            packet(&format!("{new} {new} refs/tags/v1\n")),
            packet("-----BEGIN PGP SIGNATURE-----\n"),
            packet("\n"),
            packet("deadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeef\n"),
            packet("=abcd\n"),
            packet("-----END PGP SIGNATURE-----\n"),
            packet("push-cert-end\n"),
            String::from("0000"),
        ]
        .concat();
        for piece in [1, 3, 64, 4096] {
            assert_eq!(count(input.as_bytes(), piece), 2, "pieces of {piece}");
        }
        // An object id alone, and a digit string of another length, are no updates.
        assert_eq!(count(packet(&old).as_bytes(), 1) + count(packet(&format!("{} x", "a".repeat(41))).as_bytes(), 1), 0);
    }

    #[test]
    fn input_without_updates_counts_none() {
        for input in [&b"0000"[..], b"", b"zzzz0000", b"0003", b"0004000400000008abcd", b"00"] {
            assert_eq!(count(input, 1), 0, "{input:?}");
        }
    }
}
