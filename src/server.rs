//! The composition root: builds each room once, wires them, starts, drains, stops.
