//! A GPU on the CPU: parses PTX, runs it warp by warp, checks every access, counts every
//! transaction and estimates time for a named GPU. It knows nothing of attention.

pub mod cost;
pub mod counters;
pub mod occupancy;
pub mod profile;
