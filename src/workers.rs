//! The worker role: reads one sealed job and hands it to the trade that knows how.
