//! The emulator against independent arithmetic and hand-written kernels.

mod checks;
mod counts;
mod coverage;
mod floats;
mod hopper;
mod integers;
mod kernels;
mod loading;
mod races;
mod regressions;
mod trail;
mod warps;
