//! Moves bodies from one side to the other.
