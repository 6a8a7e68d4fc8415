//! Tunnels of WebSocket connections (RFC 6455). If the application of a replaced release ends without a close frame, the proxy sends the
//! client a close frame, so that the client connects again instead of reporting an error.
//!
//! A close frame may only be between two frames. [`FrameTracker`] therefore follows the headers of the application's frames. The content of
//! frames is neither stored nor examined.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    time::timeout,
};

/// The close frame with the status 1012 (service restart) of the IANA registry. A server does not mask its frames.
const SERVICE_RESTART: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];

/// The maximum time from the end of the application to the end of the tunnel. In this time, the client reads the close frame and answers.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// The size of a tunnel's buffer in each direction, in bytes.
pub(super) const BUFFER: usize = 16 * 1024;

/// The opcode of close frames.
const CLOSE: u8 = 0x8;

/// The position in a sequence of frames.
#[derive(Debug, Default, PartialEq, Eq)]
struct FrameTracker {
    /// The bytes of the current header that were seen: at most 2 bytes, 8 bytes of the length, and 4 bytes of the mask.
    header: Vec<u8>,
    /// The number of bytes of the current frame that follow.
    left: u64,
    /// True after the header of a close frame.
    has_closed: bool,
}

impl FrameTracker {
    /// Follows the next bytes of the application.
    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left = self.left.saturating_sub(skipped as u64);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            self.header.push(*first);
            bytes = rest;
            let (Some(opcode), Some(length)) = (self.header.first(), self.header.get(1)) else { continue };
            let extended = match length & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let mask = if length & 0x80 == 0 { 0 } else { 4 };
            if self.header.len() < 2 + extended + mask {
                continue;
            }
            let number = self.header.get(2..2 + extended).unwrap_or_default();
            let number = number.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            self.left = if extended == 0 { u64::from(length & 0x7f) } else { number };
            self.has_closed |= opcode & 0xf == CLOSE;
            self.header.clear();
        }
    }

    /// Returns true if a frame may be inserted here.
    fn is_between_frames(&self) -> bool {
        self.left == 0 && self.header.is_empty() && !self.has_closed
    }
}

/// The number of bytes that a tunnel has carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    pub up: u64,
    pub down: u64,
}

/// Copies bytes in both directions until a side ends, or until `ending` is ready. Then sends a close frame to the client if `is_replaced`
/// returns true or `ending` is ready, unless the application has sent a close frame or ended within a frame.
pub(super) async fn carry<A, B>(
    client: A,
    application: B,
    ending: impl Future<Output = ()>,
    is_replaced: impl Fn() -> bool,
    carried: &mut Carried,
) where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = split(client);
    let (mut from_application, mut to_application) = split(application);
    let mut frames = FrameTracker::default();
    let mut is_ending = false;
    {
        let (up, down) = (&mut carried.up, &mut carried.down);
        // If the application has ended, a write to the application fails before the end of its bytes is read. The other direction then
        // continues to the end.
        let upwards = async {
            let mut buffer = vec![0; BUFFER];
            let mut is_open = true;
            loop {
                match from_client.read(&mut buffer).await {
                    Ok(0) => break to_application.shutdown().await.is_ok() && is_open,
                    Err(_) => break false,
                    Ok(count) if is_open => {
                        is_open = to_application.write_all(buffer.get(..count).unwrap_or_default()).await.is_ok();
                        *up += count as u64;
                    }
                    Ok(_) => {}
                }
            }
        };
        let downwards = async {
            let mut buffer = vec![0; BUFFER];
            let mut ending = std::pin::pin!(ending);
            loop {
                let read = tokio::select! {
                    biased;
                    read = from_application.read(&mut buffer) => read,
                    // Within a frame, the rest of the frame comes first. The caller limits the time.
                    () = &mut ending, if !is_ending => {
                        is_ending = true;
                        if frames.is_between_frames() { break true } else { continue }
                    }
                };
                let Ok(count @ 1..) = read else { break true };
                let bytes = buffer.get(..count).unwrap_or_default();
                frames.follow(bytes);
                *down += count as u64;
                if to_client.write_all(bytes).await.is_err() {
                    break false;
                }
                if is_ending && frames.is_between_frames() {
                    break true;
                }
            }
        };
        let (mut upwards, mut downwards) = (std::pin::pin!(upwards), std::pin::pin!(downwards));
        let is_readable = tokio::select! {
            readable = &mut downwards => readable,
            // The client has ended. A WebSocket client ends its side only after the close frames.
            half_closed = &mut upwards => half_closed && downwards.await,
        };
        if !is_readable {
            return;
        }
    }
    let farewell = async {
        if frames.is_between_frames() && (is_ending || is_replaced()) {
            to_client.write_all(&SERVICE_RESTART).await?;
            carried.down += SERVICE_RESTART.len() as u64;
        }
        to_client.shutdown().await?;
        // A close with unread bytes would reset the connection, and the client could lose the close frame.
        let mut buffer = [0; 1024];
        while from_client.read(&mut buffer).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(CLOSE_LIMIT, farewell).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..=125 => frame.push(mask | u8::try_from(length).unwrap()),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + if masked { 4 } else { 0 } + length, 0x88);
        frame
    }

    #[test]
    fn tracker_finds_the_boundaries_of_frames_in_pieces_of_any_size() {
        let frames: Vec<_> = [(1, 0), (2, 5), (0, 125), (9, 126), (2, 0xffff), (2, 0x1_0001), (1, 3)]
            .into_iter()
            .flat_map(|(opcode, length)| [frame(opcode, length, false), frame(opcode, length, true)])
            .collect();
        let ends: Vec<usize> = frames.iter().scan(0, |end, frame| Some(std::mem::replace(end, *end + frame.len()))).collect();
        let all = frames.concat();
        for size in [1, 2, 3, 7, 4096, all.len()] {
            let mut tracker = FrameTracker::default();
            let mut done = 0;
            for piece in all.chunks(size) {
                tracker.follow(piece);
                done += piece.len();
                assert_eq!(tracker.is_between_frames(), ends.contains(&done) || done == all.len(), "{size} {done}");
            }
            tracker.follow(&frame(8, 2, false));
            assert!(tracker.has_closed && !tracker.is_between_frames());
        }
        // A length of 64 bits that no frame has does not overflow.
        let mut tracker = FrameTracker::default();
        tracker.follow(&[0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 1]);
        assert_eq!(tracker.left, u64::MAX - 1);
    }

    /// Carries the bytes `sent` of an application that then ends, or, if `ends` is false, of an application that stays while the tunnel is
    /// ended. Returns the bytes that the client got.
    async fn received(sent: &[u8], ends: bool, is_replaced: bool) -> Vec<u8> {
        let (mut client, near) = duplex(1 << 16);
        let (far, mut application): (DuplexStream, DuplexStream) = duplex(1 << 16);
        let ending = CancellationToken::new();
        let token = ending.clone();
        let tunnel = tokio::spawn(async move {
            let mut carried = Carried::default();
            carry(near, far, token.cancelled(), || is_replaced, &mut carried).await;
            carried
        });
        client.write_all(b"from the client").await.unwrap();
        application.write_all(sent).await.unwrap();
        let mut up = [0; 15];
        application.read_exact(&mut up).await.unwrap();
        let mut got = vec![0; sent.len()];
        client.read_exact(&mut got).await.unwrap();
        let kept = Some(application).filter(|_| !ends);
        if !ends {
            ending.cancel();
        }
        client.read_to_end(&mut got).await.unwrap();
        drop((client, kept));
        let carried = tunnel.await.unwrap();
        assert_eq!((carried.up, carried.down), (15, got.len() as u64));
        got.split_off(sent.len())
    }

    #[tokio::test]
    async fn client_of_a_replaced_application_gets_a_close_frame_between_frames() {
        let whole = [frame(1, 5, false), frame(2, 300, false)].concat();
        let close = frame(8, 0, false);
        let closed = [whole.clone(), close].concat();
        let cut = whole.split_at(whole.len() - 1).0;
        for (sent, ends, is_replaced, expected) in [
            (whole.as_slice(), true, true, SERVICE_RESTART.as_slice()),
            (b"", true, true, &SERVICE_RESTART),
            (&whole, false, false, &SERVICE_RESTART),
            // An application that fails by itself, one that has closed, and one that ended within a frame.
            (&whole, true, false, b""),
            (&closed, true, true, b""),
            (cut, true, true, b""),
        ] {
            assert_eq!(received(sent, ends, is_replaced).await, expected, "{} bytes, {ends} {is_replaced}", sent.len());
        }
    }

    #[tokio::test]
    async fn end_within_a_frame_waits_for_the_rest_of_the_frame() {
        let (mut client, near) = duplex(1 << 16);
        let (far, mut application) = duplex(1 << 16);
        let ending = CancellationToken::new();
        let token = ending.clone();
        let tunnel = tokio::spawn(async move {
            carry(near, far, token.cancelled(), || false, &mut Carried::default()).await;
        });
        let sent = frame(2, 10, false);
        let (start, rest) = sent.split_at(4);
        application.write_all(start).await.unwrap();
        let mut got = vec![0; start.len()];
        client.read_exact(&mut got).await.unwrap();
        ending.cancel();
        tokio::task::yield_now().await;
        application.write_all(rest).await.unwrap();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, [sent.as_slice(), &SERVICE_RESTART].concat());
        drop(client);
        tunnel.await.unwrap();
    }
}
