//! The decode kernels against the oracle: any shape, any valid configuration, any problem that the
//! generator draws, on the emulated device with all checks. Compiling costs more than running, so a
//! few dozen kernels are drawn from a fixed seed and each meets many problems.

use proptest::prelude::*;
use spanforge_device::{Compiler, Settings};
use spanforge_kernels::configuration::HEAD_DIMS;
use spanforge_kernels::{Decoder, KernelShape, KernelSpec, Limits, SearchSpace};
use spanforge_spans::Dtype;
use spanforge_tuner::export::compile;
use spanforge_tuner::search::strategy;
use spanforge_verify::check_seeds;

const DEVICE: &str = "emulated:h200";

fn compiler() -> Compiler {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    Compiler::new(&settings).expect("NVRTC is found or fetched")
}

fn assert_correct(compiler: &Compiler, spec: KernelSpec, seeds: std::ops::Range<u64>) {
    let device = spanforge_device::open(DEVICE).unwrap();
    let image = compile(compiler, &spec, "sm_90a").unwrap_or_else(|e| panic!("{spec}: {e}"));
    let decoder = Decoder::load(device.as_ref(), &image, spec).unwrap();
    for report in check_seeds(&decoder, seeds).unwrap() {
        if let Some(fault) = report.fault {
            panic!("{spec}, seed {}: {}\n{fault}", report.seed.unwrap(), report.problem);
        }
    }
}

fn space(shape: KernelShape) -> SearchSpace {
    let device = spanforge_device::open(DEVICE).unwrap();
    SearchSpace::new(shape, Limits::of(device.properties()))
}

/// The default configuration of every head dimension, of both types, for plain, odd and large groups.
#[test]
fn default_configurations_match_the_oracle() {
    let compiler = compiler();
    for (index, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (turn, group_size) in [1, 3, 6, 8].into_iter().enumerate() {
            let dtype = if (index + turn) % 2 == 0 { Dtype::F16 } else { Dtype::Bf16 };
            let shape = KernelShape { dtype, head_dim, group_size };
            let configuration = space(shape).default_configuration().unwrap();
            assert_correct(&compiler, KernelSpec { shape, configuration }, 0..16);
        }
    }
}

/// Groups that no number of warps divides evenly, and one that fills a block.
#[test]
fn unusual_groups_match_the_oracle() {
    let compiler = compiler();
    for (head_dim, group_size) in [(64, 71), (128, 7), (256, 5), (64, 12)] {
        let shape = KernelShape { dtype: Dtype::F16, head_dim, group_size };
        let configuration = space(shape).default_configuration().unwrap();
        assert_correct(&compiler, KernelSpec { shape, configuration }, 100..110);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Configurations drawn uniformly from all valid ones.
    #[test]
    fn any_valid_configuration_matches_the_oracle(
        seed: u64,
        head_dim in 0..4usize,
        group_size in prop_oneof![Just(1u32), Just(3), Just(4), Just(6), Just(8)],
        bf16: bool,
    ) {
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F16 };
        let shape = KernelShape { dtype, head_dim: HEAD_DIMS[head_dim], group_size };
        let space = space(shape);
        let point = strategy("random", seed).unwrap().propose(&space).unwrap();
        let configuration = space.at(&point).unwrap();
        let first = seed >> 1;
        assert_correct(&compiler(), KernelSpec { shape, configuration }, first..first + 8);
    }
}
