//! Correctness of kernels: problems that prefer the edges, and the check of a kernel's answer, of
//! its accesses and of the bytes it fetches against the oracle.

pub mod agreement;
pub mod case;
pub mod check;
pub mod conformance;
pub mod fuzz;
pub mod fuzz_coverage;
pub mod generate;
pub mod ledger;
pub mod mutants;
pub mod process;
pub mod recipe;
pub mod shrink;
pub mod source_map;
pub mod workers;

pub use agreement::{Agreement, agreement};
pub use case::{Case, CaseError, Trial};
pub use check::{CaseReport, Fault, VerifyError, check_problem, check_seeds, compare_with_oracle};
pub use generate::{Edges, generate, generate_recipe};
pub use recipe::{Recipe, RecipeError};
pub use source_map::SourceMap;
pub use workers::check_with_workers;
