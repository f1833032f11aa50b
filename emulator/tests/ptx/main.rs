//! The emulator against independent arithmetic and hand-written kernels.

mod async_hazards;
mod checks;
mod copies;
mod counts;
mod coverage;
mod deadlocks;
mod floats;
mod hopper;
mod integers;
mod kernels;
mod loading;
mod races;
mod regressions;
mod trail;
mod undefined;
mod warps;
