//! Correctness of kernels: problem generators and the check against the oracle.
