//! What planning a step checks, copies and launches.

mod recording;

use recording::Recording;
use spanforge_device::{Buffer, Device, Image};
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::{KernelSpec, KvStrides, Limits, SearchSpace};
use spanforge_runtime::{
    AttentionError, DecodeStep, PageMap, PagedKv, SpanAttention, SpanAttentionLimits, StepOperands,
};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch};
use std::collections::BTreeMap;
use std::sync::Arc;

const ATTENTION: AttentionShape = AttentionShape {
    dtype: Dtype::F16,
    kv_dtype: KvDtype::Same,
    query_heads: 8,
    kv_heads: 2,
    head_dim: 64,
    page_size: 16,
    layout: KvLayout::Nhd,
};

const LIMITS: SpanAttentionLimits =
    SpanAttentionLimits { rows: 4, spans: 8, requests: 2, max_pages: 4 };

const TABLE: [i32; 8] = [3, 1, 4, 9, 2, 6, -7, 99];

/// The 32-bit integers at the start of the buffer of that name.
fn integers(device: &Recording, name: &str, count: usize) -> Vec<i32> {
    let state = device.state();
    let (_, bytes) = state.memory.values().find(|(n, _)| n == name).unwrap();
    bytes[..4 * count].as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn image() -> Image {
    Image {
        ptx: String::new(),
        cubin: None,
        architecture: "sm_90a".into(),
        resources: BTreeMap::new(),
    }
}

fn spec() -> KernelSpec {
    let shape = ATTENTION.kernel_shape().unwrap();
    let space = SearchSpace::new(shape, Limits::of(Recording::new().properties()));
    KernelSpec { shape, configuration: space.default_configuration().unwrap() }
}

fn attention(device: &Arc<Recording>) -> SpanAttention {
    SpanAttention::from_image(&image(), spec(), device.clone(), ATTENTION, LIMITS).unwrap()
}

fn batch(rows: &[&[[i32; 2]]]) -> SpanBatch {
    let ptr = std::iter::once(0)
        .chain(rows.iter().scan(0, |n, r| {
            *n += r.len() as i32;
            Some(*n)
        }))
        .collect();
    SpanBatch::from_raw(ptr, rows.concat()).unwrap()
}

fn step<'a>(spans: &'a SpanBatch, row_request: &'a [i32], kv_len: &'a [i32]) -> DecodeStep<'a> {
    let pages = PageMap { page_table: &TABLE, max_pages: 4, kv_len, pages: 10 };
    DecodeStep { spans, row_request, pages }
}

fn operands() -> StepOperands {
    let at = |address| Buffer { address, bytes: 1 << 20 };
    StepOperands {
        q: at(1 << 24),
        kv: PagedKv::new(at(2 << 24), at(3 << 24), KvStrides::packed(&ATTENTION)),
        out: at(4 << 24),
        lse: at(5 << 24),
        scale: 0.125,
        soft_cap: 0.0,
        sinks: None,
    }
}

#[test]
fn a_step_that_is_the_one_before_costs_nothing() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    let spans = batch(&[&[[0, 4], [20, 40]], &[[1, 2]]]);
    let first = attention.plan(&step(&spans, &[0, 1], &[64, 20])).unwrap();
    assert!(first.launches.len() == 1);
    // span_ptr 3, spans 6, row_request 2 and page_table 8 integers.
    assert_eq!(first.uploaded_bytes, 4 * (3 + 6 + 2 + 8));
    assert_eq!(integers(&device, "spans", 6), [0, 4, 20, 40, 1, 2]);
    device.state().uploads.clear();

    // The same set, written in another way.
    let raw = batch(&[&[[25, 40], [2, 4], [0, 3], [20, 30]], &[[1, 2], [1, 1]]]);
    let again = attention.plan(&step(&raw, &[0, 1], &[64, 20])).unwrap();
    assert_eq!((again.uploaded_bytes, again.launches.len()), (0, 0));
    assert!(device.state().uploads.is_empty());
    assert_eq!(device.state().launches.len(), 1);
    attention.run(&operands()).unwrap();
    let names: Vec<_> = device.state().launches.iter().map(|l| l.kernel.clone()).collect();
    assert_eq!(names, ["spanforge_plan", "spanforge_decode", "spanforge_merge"]);
}

#[test]
fn an_appended_token_copies_what_it_changed() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    let spans = batch(&[&[[0, 4], [20, 40]], &[[1, 2]]]);
    attention.plan(&step(&spans, &[0, 1], &[40, 20])).unwrap();
    device.state().uploads.clear();

    let grown = batch(&[&[[0, 4], [20, 41]], &[[1, 2]]]);
    let report = attention.plan(&step(&grown, &[0, 1], &[41, 20])).unwrap();
    assert!(report.launches.len() == 1);
    assert_eq!(device.state().uploads, [("spans".to_owned(), 4)]);
    assert_eq!(integers(&device, "spans", 6), [0, 4, 20, 41, 1, 2]);

    // Fewer rows: only the shorter offsets and spans, none of which are new.
    device.state().uploads.clear();
    let fewer = batch(&[&[[0, 4], [20, 41]]]);
    let report = attention.plan(&step(&fewer, &[0], &[41, 20])).unwrap();
    assert!(report.launches.len() == 1 && device.state().uploads.is_empty());
}

#[test]
fn a_longer_cache_under_the_same_spans_is_checked_and_not_planned_again() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    let spans = batch(&[&[[0, 4]]]);
    attention.plan(&step(&spans, &[0], &[40, 20])).unwrap();
    let report = attention.plan(&step(&spans, &[0], &[64, 20])).unwrap();
    assert_eq!((report.uploaded_bytes, report.launches.len()), (0, 0));
    let error = attention.plan(&step(&spans, &[0], &[3, 20])).unwrap_err().to_string();
    assert!(error.contains("[0, 4) ends past the KV length 3"), "{error}");
}

#[test]
fn steps_at_fault_are_refused_and_leave_no_plan() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    let good = batch(&[&[[0, 4]]]);
    let long: Vec<[i32; 2]> = (0..9).map(|i| [2 * i, 2 * i + 1]).collect();
    for (rows, row_request, kv_len, part) in [
        (vec![&[[0, 65]][..]], vec![0], [64, 0], "ends past the KV length 64"),
        (vec![&[[0, 4]]], vec![2], [64, 0], "row 0 belongs to request 2"),
        (vec![&[[0, 4]]], vec![-1], [64, 0], "row 0 belongs to request -1"),
        (vec![&[[0, 4]]], vec![0, 0], [64, 0], "row_request has 2 entries"),
        (vec![&[[30, 33]]], vec![1], [0, 64], "page_table[1, 2] is -7"),
        (vec![&[[63, 64]]], vec![1], [0, 64], "page_table[1, 3] is 99, but row 0"),
        (vec![&[[0, 4]]], vec![0], [65, 0], "kv_len[0] is 65, but the page table has room for 64"),
        (vec![&[[0, 4]]], vec![0], [64, -1], "kv_len[1] is -1"),
        (vec![&[]; 5], vec![0; 5], [64, 0], "5 rows, and the module was loaded for at most 4"),
        (vec![&long], vec![0], [64, 0], "9 spans, and"),
    ] {
        attention.plan(&step(&good, &[0], &[64, 0])).unwrap();
        let spans = batch(&rows);
        let error = attention.plan(&step(&spans, &row_request, &kv_len)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(matches!(attention.run(&operands()), Err(AttentionError::NotPlanned)), "{part}");
    }
    let short = PageMap { page_table: &TABLE[..7], max_pages: 4, kv_len: &[4, 0], pages: 10 };
    let at_fault = DecodeStep { spans: &good, row_request: &[0], pages: short };
    let error = attention.plan(&at_fault).unwrap_err().to_string();
    assert!(error.contains("page_table has 7 elements where 8 are expected"), "{error}");
}

#[test]
fn buffers_that_are_too_small_or_not_aligned_are_refused() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    attention.plan(&step(&batch(&[&[[0, 4]]]), &[0], &[64, 0])).unwrap();
    let run = |attention: &mut SpanAttention, change: &dyn Fn(&mut StepOperands)| {
        let mut operands = operands();
        change(&mut operands);
        attention.run(&operands).map(|_| ()).map_err(|e| e.to_string())
    };
    // 10 pages of 16 tokens, 2 heads of 64 elements of 2 bytes: 40960 bytes; 8 heads for q.
    assert_eq!(run(&mut attention, &|o| o.kv.k.bytes = 40960), Ok(()));
    assert_eq!(run(&mut attention, &|o| o.q.bytes = 1024), Ok(()));
    for (change, part) in [
        (
            &(|o: &mut StepOperands| o.kv.v.bytes = 40959) as &dyn Fn(&mut StepOperands),
            "v: the buffer has 40959 bytes, expected 40960",
        ),
        (&|o| o.q.bytes = 1023, "q: the buffer has 1023 bytes, expected 1024"),
        (&|o| o.lse.bytes = 31, "lse: the buffer has 31 bytes, expected 32"),
        (&|o| o.out.address += 8, "out: address 0x4000008 is not 16-byte aligned"),
        (&|o| o.scale = f32::NAN, "scale: NaN is not a finite number"),
        (&|o| o.kv.strides.token = 100, "token stride: 100 elements"),
        (&|o| o.kv.strides.page = 1 << 31, "page stride: 2147483648 elements"),
        (&|o| o.kv.v_scales = Some(o.lse), "v_scales: only a cache of 8-bit elements has factors"),
    ] {
        assert!(run(&mut attention, change).unwrap_err().contains(part), "{part}");
    }
}

#[test]
fn an_upload_that_fails_is_made_up_for() {
    for failing in 0..4 {
        let device = Arc::new(Recording::new());
        let mut attention = attention(&device);
        attention.plan(&step(&batch(&[&[[0, 4]]]), &[0], &[64, 20])).unwrap();
        let spans = batch(&[&[[5, 9], [20, 40]], &[[1, 2]]]);
        let table: Vec<i32> = TABLE.iter().rev().map(|p| p.rem_euclid(10)).collect();
        let pages = PageMap { page_table: &table, max_pages: 4, kv_len: &[64, 20], pages: 10 };
        let next = DecodeStep { spans: &spans, row_request: &[1, 0], pages };
        let next = DecodeStep { pages: PageMap { kv_len: &[64, 64], ..next.pages }, ..next };
        device.state().fail_upload_after = Some(failing);
        attention.plan(&next).unwrap_err();
        device.state().fail_upload_after = None;
        let report = attention.plan(&next).unwrap();
        assert!(report.launches.len() == 1, "after upload {failing} failed");
        assert_eq!(integers(&device, "span_ptr", 3), [0, 2, 3]);
        assert_eq!(integers(&device, "spans", 6), [5, 9, 20, 40, 1, 2]);
        assert_eq!(integers(&device, "row_request", 2), [1, 0]);
        assert_eq!(integers(&device, "page_table", 8), table);
    }
}

#[test]
fn after_a_failed_launch_arrivals_are_zeroed_again() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    let spans = batch(&[&[[0, 4]]]);
    attention.plan(&step(&spans, &[0], &[64, 0])).unwrap();
    device.state().fail_launches = true;
    attention.run(&operands()).unwrap_err();
    device.state().fail_launches = false;
    device.state().uploads.clear();
    assert!(matches!(attention.run(&operands()), Err(AttentionError::NotPlanned)));
    attention.plan(&step(&spans, &[0], &[64, 0])).unwrap();
    assert_eq!(device.state().uploads, [("arrivals".to_owned(), 4 * 4 * 2)]);
    attention.run(&operands()).unwrap();
}

#[test]
fn a_step_without_rows_launches_nothing() {
    let device = Arc::new(Recording::new());
    let mut attention = attention(&device);
    attention.plan(&step(&batch(&[]), &[], &[64, 0])).unwrap();
    assert_eq!(attention.run(&operands()).unwrap(), []);
    assert!(device.state().launches.is_empty());
}

#[test]
fn everything_is_given_back_and_wrong_shapes_take_nothing() {
    let device = Arc::new(Recording::new());
    drop(attention(&device));
    assert!(device.state().memory.is_empty() && device.state().loaded == 0);
    let other = AttentionShape { query_heads: 2, ..ATTENTION };
    let load = |attention, limits| {
        SpanAttention::from_image(&image(), spec(), device.clone(), attention, limits)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let error = load(other, LIMITS);
    assert!(error.contains("built for f16-d64-g4 and cannot serve f16-d64-g1"), "{error}");
    let error = load(AttentionShape { page_size: 0, ..ATTENTION }, LIMITS);
    assert!(error.contains("page_size is 0"), "{error}");
    for limits in [
        SpanAttentionLimits { rows: usize::MAX, ..LIMITS },
        SpanAttentionLimits { spans: usize::MAX, ..LIMITS },
        SpanAttentionLimits { max_pages: usize::MAX / 2 + 1, ..LIMITS },
    ] {
        assert!(load(ATTENTION, limits).contains("the kernels count up to 2147483647"));
    }
    assert!(device.state().memory.is_empty() && device.state().loaded == 0);
}
