//! Waits for descriptors and signals.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};

use super::sys;

/// Descriptors to wait for, each with a value that names the source of the event.
#[derive(Debug)]
pub struct Readiness<'fd, T> {
    polled: Vec<PollFd<'fd>>,
    values: Vec<T>,
}

impl<'fd, T> Readiness<'fd, T> {
    /// Returns an empty list.
    pub fn new() -> Readiness<'fd, T> {
        Readiness { polled: Vec::new(), values: Vec::new() }
    }

    /// Adds a descriptor, to wait until it is readable.
    pub fn read(&mut self, descriptor: &'fd impl AsFd, value: T) {
        self.add(descriptor, PollFlags::IN, value);
    }

    /// Adds a descriptor, to wait until it is readable or writable.
    pub fn read_and_write(&mut self, descriptor: &'fd impl AsFd, value: T) {
        self.add(descriptor, PollFlags::IN | PollFlags::OUT, value);
    }

    fn add(&mut self, descriptor: &'fd impl AsFd, flags: PollFlags, value: T) {
        self.polled.push(PollFd::new(descriptor, flags));
        self.values.push(value);
    }

    /// Waits until any of the descriptors is ready, or until `deadline`. Returns the values of the descriptors that are ready. A signal may
    /// interrupt the wait; the method then returns no values before the deadline.
    pub fn wait(mut self, deadline: Option<Instant>) -> io::Result<Vec<T>> {
        let timeout = deadline.map(|at| {
            // The timeout is one millisecond longer than the time left, so that the deadline has passed when the wait times out.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut self.polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let all = self.polled.iter().zip(self.values);
        Ok(all.filter(|(polled, _)| !polled.revents().is_empty()).map(|(_, value)| value).collect())
    }
}

impl<T> Default for Readiness<'_, T> {
    fn default() -> Self {
        Readiness::new()
    }
}

/// A descriptor that becomes readable when this process gets a signal.
#[derive(Debug)]
pub struct SignalReceiver(OwnedFd);

impl SignalReceiver {
    /// Blocks `signals`, so that only the returned receiver takes these signals.
    pub fn new(signals: &[Signal]) -> io::Result<SignalReceiver> {
        sys::signal_descriptor(signals).map(SignalReceiver)
    }

    /// Takes the numbers of all signals that have arrived.
    pub fn take(&self) -> Vec<i32> {
        // signalfd(2) gives one record of 128 bytes for each signal; its first field is the number.
        let (mut record, mut taken) = ([0; 128], Vec::new());
        while rustix::io::read(&self.0, &mut record).is_ok() {
            taken.extend(record.first_chunk().copied().map(i32::from_ne_bytes));
        }
        taken
    }
}

impl AsFd for SignalReceiver {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
