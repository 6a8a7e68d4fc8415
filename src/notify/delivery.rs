//! [`DeliveryError`], the failure of a delivery. This file is separate, because mails and webhooks fail alike.

use std::fmt;

use crate::model::plain_line;

/// The maximum length of the reason of a failure, in characters.
const MAX_REASON: usize = 300;

/// The reason why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeliveryError {
    /// A later attempt may succeed.
    Temporary(String),
    /// The recipient's server refuses the message for good.
    Permanent(String),
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (DeliveryError::Temporary(why) | DeliveryError::Permanent(why)) = self;
        f.write_str(why)
    }
}

impl DeliveryError {
    /// Returns an error after which the delivery is repeated.
    pub fn temporary(why: impl fmt::Display) -> DeliveryError {
        DeliveryError::Temporary(plain_line(&why.to_string(), MAX_REASON))
    }

    /// Returns an error after which the delivery ends.
    pub fn permanent(why: impl fmt::Display) -> DeliveryError {
        DeliveryError::Permanent(plain_line(&why.to_string(), MAX_REASON))
    }
}
