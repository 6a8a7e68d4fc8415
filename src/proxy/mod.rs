//! The HTTP front door: routes by host, holds, drains.
