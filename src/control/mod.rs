//! The one desk: requests, replies, and the only access decision.
