//! Agents' sessions.
