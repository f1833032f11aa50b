//! What the search space promises: every constraint prunes something, every shape has a default, and
//! identifiers and points name exactly one kernel.

use super::*;
use crate::configuration::{HEAD_DIMS, KernelSpec};
use proptest::prelude::*;
use spanforge_spans::{Dtype, KvDtype};

const H200: Limits = Limits {
    shared_bytes_per_block: 232_448,
    shared_bytes_per_multiprocessor: 233_472,
    threads_per_multiprocessor: 2048,
    warpgroups: true,
};

fn shape(head_dim: u32, group_size: u32) -> KernelShape {
    KernelShape::new(Dtype::F16, head_dim, group_size)
}

#[test]
fn llama_3_8b_has_over_ten_parameters_and_a_thousand_configurations() {
    let space = SearchSpace::new(shape(128, 4), H200);
    assert_eq!(space.parameters().len(), 15);
    let census = space.census();
    assert!(census.valid > 1000, "{census:?}");
    assert_eq!(census.points, census.valid + census.pruned.iter().map(|p| p.1).sum::<u64>());
    assert_eq!(census.valid, space.valid().count() as u64);
    // Every constraint earns its place in at least one shape.
    let large = SearchSpace::new(shape(512, 12), H200).census();
    let small = SearchSpace::for_rows(shape(64, 4), H200, 4).census();
    let others = large.pruned.iter().zip(&small.pruned).map(|(l, s)| l.1 + s.1);
    for ((name, here), there) in census.pruned.iter().zip(others) {
        // Two rules bind hand-written configurations only: the space has no such values.
        let hand_written = ["positive", "heads-balanced"].contains(name);
        assert!(here + there > 0 || hand_written, "{name} prunes nothing");
    }
}

#[test]
fn every_shape_has_a_default_that_keeps_all_constraints() {
    for head_dim in HEAD_DIMS {
        for group_size in [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 71] {
            if head_dim > 128 && group_size > 32 {
                continue; // the states of so many wide heads exceed a block's shared memory
            }
            let of_8_bits = KernelShape { kv_dtype: KvDtype::E4m3, ..shape(head_dim, group_size) };
            let space = SearchSpace::new(of_8_bits, H200);
            let default = space.default_configuration().unwrap();
            assert_eq!(space.broken_constraint(&default).map(|b| b.name), None);
            let space = SearchSpace::new(shape(head_dim, group_size), H200);
            let default = space.default_configuration();
            let fault = default.map(|c| space.broken_constraint(&c).map(|b| b.name));
            assert_eq!(fault, Some(None), "d{head_dim} g{group_size}");
            for rows in [2, 16] {
                let space = SearchSpace::for_rows(shape(head_dim, group_size), H200, rows);
                let default = space.default_configuration().unwrap();
                assert!(space.point_of(&default).is_some(), "d{head_dim} g{group_size} {rows}");
                assert_eq!(space.broken_constraint(&default).map(|b| b.name), None);
                // Large groups fill products with one row.
                let several = default.query_rows > 1 && default.query_rows < 2 * rows;
                assert!(several || group_size * 2 > 16, "d{head_dim} g{group_size} {rows}");
            }
        }
    }
}

#[test]
fn hand_written_nonsense_breaks_a_constraint_and_nothing_else() {
    let space = SearchSpace::new(shape(128, 2), H200);
    let mut c = space.default_configuration().unwrap();
    c.token_warps = u32::MAX;
    assert_eq!(space.broken_constraint(&c).map(|b| b.name), Some("positive"));
    let mut c = space.default_configuration().unwrap();
    c.tile_tokens = 4096;
    assert_eq!(space.broken_constraint(&c).map(|b| b.name), Some("thread-per-token"));
    c.tile_tokens = 128;
    c.stages = 4;
    assert_eq!(space.broken_constraint(&c).map(|b| b.name), Some("shared-memory"));
}

fn any_point() -> impl Strategy<Value = Vec<usize>> {
    let sizes: Vec<usize> = SearchSpace::for_rows(shape(128, 4), H200, 32)
        .parameters()
        .iter()
        .map(|p| p.values.len())
        .collect();
    sizes.into_iter().map(|n| 0..n).collect::<Vec<_>>()
}

proptest! {
    /// An identifier says everything about a kernel, valid or not.
    #[test]
    fn ids_name_exactly_one_kernel(
        point in any_point(), head_dim in 0..4usize, group_size in 1..=128u32, of_8_bits: bool,
    ) {
        let kv_dtype = if of_8_bits { KvDtype::E4m3 } else { KvDtype::Same };
        let shape = KernelShape { kv_dtype, ..shape(HEAD_DIMS[head_dim], group_size) };
        let space = SearchSpace::for_rows(KernelShape { group_size: 4, ..shape }, H200, 32);
        let configuration = space.at(&point).unwrap();
        prop_assert_eq!(space.point_of(&configuration), Some(point));
        let spec = KernelSpec { shape, configuration };
        prop_assert_eq!(spec.to_string().parse::<KernelSpec>().unwrap(), spec);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<KernelSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn no_text_makes_the_id_parser_panic(text in "[a-z0-9-]{0,80}") {
        let _ = text.parse::<KernelSpec>();
    }
}
