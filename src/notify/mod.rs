//! Notifications: mails and webhooks about deployments and about the state of environments.
//!
//! The composition root turns an event into a [`Notification`], which is data for a reader. [`Notifier::notify`] renders the notification and
//! adds one message for each recipient to a queue on the disk (`queue.rs`). A task ([`Notifier::run`]) delivers the messages in order, and
//! repeats failed attempts. No deployment waits for a delivery. The type to read first is [`Notifier`].

mod address;
mod delivery;
mod forge;
mod formats;
mod message;
mod notification;
mod notifier;
mod queue;
mod render;
mod sender;
mod sendmail;
mod smtp;
mod webhook;

pub use self::{
    message::{MessageRecord, MessageState},
    notification::{Advice, CommitChange, DetailList, FailureReport, Notification},
    notifier::{Notifier, NotifyError, Recipients},
};
