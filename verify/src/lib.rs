//! Correctness of kernels: problems that prefer the edges, and the check of a kernel's answer, of
//! its accesses and of the bytes it fetches against the oracle.

pub mod agreement;
pub mod check;
pub mod generate;
pub mod workers;

pub use agreement::{Agreement, agreement};
pub use check::{CaseReport, Fault, VerifyError, check_problem, check_seeds, compare_with_oracle};
pub use generate::{Edges, generate};
pub use workers::check_with_workers;
