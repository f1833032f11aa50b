//! Problems and results as files: what is read back, what is refused, and that nothing is left half
//! written.

use proptest::prelude::*;
use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView};
use spanforge_kernels::DecodeProblem;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::decoder::DecodeOutput;
use spanforge_runtime::{TensorFileError, read_problem, write_output, write_problem};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch};
use std::collections::HashMap;
use std::path::Path;

fn problem(dtype: Dtype, layout: KvLayout) -> DecodeProblem {
    let attention = AttentionShape {
        dtype,
        kv_dtype: KvDtype::Same,
        query_heads: 4,
        kv_heads: 2,
        head_dim: 64,
        page_size: 3,
        layout,
    };
    let bits = |count, seed: u16| (0..count).map(|i: u16| i.wrapping_mul(seed)).collect();
    DecodeProblem {
        attention,
        scale: 0.1,
        soft_cap: 0.0,
        sinks: Vec::new(),
        k_scales: Vec::new(),
        v_scales: Vec::new(),
        pages: 2,
        max_pages: 2,
        kv_len: vec![5, 2],
        page_table: vec![1, 0, 1, -9],
        row_request: vec![1, 0],
        // Unsorted, overlapping, repeated, empty.
        spans: SpanBatch::from_raw(vec![0, 1, 5], vec![[0, 2], [3, 5], [0, 1], [2, 4], [1, 1]])
            .unwrap(),
        q: bits(2 * 4 * 64, 31),
        k: bits(2 * 3 * 2 * 64, 7),
        v: bits(2 * 3 * 2 * 64, 5),
    }
}

/// A file of the format's own implementation, whose tensors can be changed one by one.
#[derive(Clone)]
struct File {
    tensors: HashMap<&'static str, (FileDtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl File {
    fn good() -> Self {
        let p = problem(Dtype::F16, KvLayout::Nhd);
        let half = |v: &[u16]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let int = |v: &[i32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let tensors = HashMap::from([
            ("q", (FileDtype::F16, vec![2, 4, 64], half(&p.q))),
            ("k", (FileDtype::F16, vec![2, 3, 2, 64], half(&p.k))),
            ("v", (FileDtype::F16, vec![2, 3, 2, 64], half(&p.v))),
            ("page_table", (FileDtype::I32, vec![2, 2], int(&p.page_table))),
            ("row_request", (FileDtype::I32, vec![2], int(&p.row_request))),
            ("span_ptr", (FileDtype::I32, vec![3], int(p.spans.span_ptr()))),
            ("spans", (FileDtype::I32, vec![5, 2], int(p.spans.spans().as_flattened()))),
            ("kv_len", (FileDtype::I32, vec![2], int(&p.kv_len))),
        ]);
        Self { tensors, metadata: HashMap::from([("format".into(), "pt".into())]) }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }

    fn with(mut self, name: &'static str, dtype: FileDtype, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        self.tensors.insert(name, (dtype, shape.to_vec(), vec![0; bytes]));
        self
    }

    fn with_integers(mut self, name: &'static str, values: &[i32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors.get_mut(name).unwrap().2 = data;
        self
    }

    fn with_metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.remove(name);
        self
    }
}

fn read_bytes(bytes: &[u8]) -> Result<DecodeProblem, TensorFileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    std::fs::write(&path, bytes).unwrap();
    read_problem(&path)
}

fn message(file: &File) -> String {
    read_bytes(&file.bytes()).unwrap_err().to_string()
}

#[test]
fn a_problem_that_is_written_reads_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in Dtype::ALL {
        for layout in KvLayout::ALL {
            let problem = problem(dtype, layout);
            let path = folder.path().join("p.safetensors");
            write_problem(&path, &problem).unwrap();
            assert_eq!(read_problem(&path).unwrap(), problem);
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the file is left");
}

#[test]
fn what_is_optional_is_written_and_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.safetensors");
    // Two rows and two KV heads, each with spans of its own.
    let spans = vec![[0, 2], [1, 2], [3, 5], [0, 1], [2, 4]];
    let problem = DecodeProblem {
        soft_cap: 30.0,
        sinks: vec![0.5, f32::NEG_INFINITY, -3.25, 1e4],
        spans: SpanBatch::from_raw(vec![0, 1, 2, 5, 5], spans).unwrap(),
        ..problem(Dtype::Bf16, KvLayout::Hnd)
    };
    assert_eq!(problem.span_heads(), 2);
    write_problem(&path, &problem).unwrap();
    assert_eq!(read_problem(&path).unwrap(), problem);
}

#[test]
fn a_cache_of_8_bits_is_written_and_read_with_its_factors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.safetensors");
    let of_16_bits = problem(Dtype::Bf16, KvLayout::Nhd);
    let bytes = |bits: &[u16]| bits.iter().map(|x| x & 0xff).collect::<Vec<u16>>();
    let mut problem =
        DecodeProblem { k: bytes(&of_16_bits.k), v: bytes(&of_16_bits.v), ..of_16_bits };
    problem.attention.kv_dtype = KvDtype::E4m3;
    for scales in [(vec![], vec![]), (vec![0.25, 3.0], vec![1e-3, 7.5]), (vec![], vec![2.0, 1.0])] {
        (problem.k_scales, problem.v_scales) = scales;
        write_problem(&path, &problem).unwrap();
        assert_eq!(read_problem(&path).unwrap(), problem);
        let file = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(tensors.tensor("k").unwrap().dtype(), FileDtype::F8_E4M3);
    }
    problem.v_scales = vec![1.0, 0.0];
    let error = write_problem(&path, &problem).unwrap_err().to_string();
    assert!(error.ends_with("v_scales: that of KV head 1 is 0: not a positive number"), "{error}");
}

#[test]
fn a_file_of_another_writer_is_read_with_the_defaults() {
    let expected = DecodeProblem { scale: 0.125, ..problem(Dtype::F16, KvLayout::Nhd) };
    let file = File::good().with("comment", FileDtype::U8, &[3]);
    assert_eq!(read_bytes(&file.bytes()).unwrap(), expected);
    let file = File::good().with_metadata("scale", "2.5e-1").with_metadata("layout", "NHD");
    assert_eq!(read_bytes(&file.bytes()).unwrap().scale, 0.25);
}

#[test]
fn a_problem_without_rows_is_one() {
    let file = File::good()
        .with("q", FileDtype::F16, &[0, 4, 64])
        .with("row_request", FileDtype::I32, &[0])
        .with("span_ptr", FileDtype::I32, &[1])
        .with("spans", FileDtype::I32, &[0, 2]);
    assert_eq!(read_bytes(&file.bytes()).unwrap().rows(), 0);
}

#[test]
fn what_is_wrong_with_a_tensor_is_named() {
    use FileDtype::{BF16, F8_E4M3, F16, F32, I32, I64};
    let good = File::good;
    for (file, part) in [
        (
            good().without("span_ptr"),
            "there is no tensor `span_ptr` ([rows + 1] I32, or [rows * kv_heads + 1]); the file has: k, kv_len, page_table, q, row_request, spans, v",
        ),
        (good().with("q", F32, &[2, 4, 64]), "tensor `q` is F32, expected F16 or BF16"),
        (good().with("v", BF16, &[2, 3, 2, 64]), "tensor `v` is BF16, expected F16 as q"),
        (
            good().with("v", F8_E4M3, &[2, 3, 2, 64]),
            "tensor `v` is F8_E4M3, expected F16 as q, or both k and v F8_E4M3",
        ),
        (good().with("k", F8_E4M3, &[2, 3, 2, 64]), "tensor `v` is F16, expected F8_E4M3 as k"),
        (
            good().with("k_scales", F32, &[4]),
            "tensor `k_scales` has shape [4], expected [2]: k has 2 KV heads",
        ),
        (
            good().with("v_scales", F32, &[2]),
            "v_scales: only a cache of 8-bit elements has factors; leave them out",
        ),
        (good().with("spans", I64, &[5, 2]), "tensor `spans` is I64, expected I32"),
        (
            good().with("q", F16, &[2, 256]),
            "tensor `q` has shape [2, 256], expected [rows, query_heads, head_dim]",
        ),
        (good().with("k", F16, &[6, 2, 64]), "tensor `k` has shape [6, 2, 64], expected [pages"),
        (
            good().with("v", F16, &[2, 3, 4, 32]),
            "tensor `v` has shape [2, 3, 4, 32], expected [2, 3, 2, 64], the shape of k",
        ),
        (
            good().with("q", F16, &[2, 4, 128]),
            "tensor `k` has shape [2, 3, 2, 64], expected [.., .., .., 128]",
        ),
        (
            good().with("row_request", I32, &[3]),
            "tensor `row_request` has shape [3], expected [2]: q has 2 rows",
        ),
        (
            good().with("span_ptr", I32, &[2]),
            "tensor `span_ptr` has shape [2], expected [rows + 1], or [rows * kv_heads + 1] where each KV head has its own spans: q has 2 rows and k has 2 KV heads",
        ),
        (good().with("spans", I32, &[2, 5]), "tensor `spans` has shape [2, 5], expected [n, 2]"),
        (good().with("spans", I32, &[10]), "tensor `spans` has shape [10], expected [n, 2]"),
        (
            good().with("kv_len", I32, &[1]),
            "tensor `kv_len` has shape [1], expected [2]: page_table has 2 requests",
        ),
        (
            good().with("page_table", I32, &[4]),
            "tensor `page_table` has shape [4], expected [requests, max_pages]",
        ),
        (
            good().with_metadata("layout", "NDH"),
            "metadata `layout` is \"NDH\", expected \"NHD\" or \"HND\"",
        ),
        (
            good().with_metadata("scale", "1/8"),
            "metadata `scale` is \"1/8\", expected a finite number",
        ),
        (
            good().with_metadata("scale", "1e99"),
            "metadata `scale` is \"1e99\", expected a finite number",
        ),
        (
            good().with_metadata("soft_cap", "none"),
            "metadata `soft_cap` is \"none\", expected a finite number",
        ),
        (good().with_metadata("soft_cap", "-1"), "soft_cap is -1: it must be a number from 1e-30"),
        (good().with("sinks", F16, &[4]), "tensor `sinks` is F16, expected F32"),
        (
            good().with("sinks", F32, &[3]),
            "tensor `sinks` has shape [3], expected [4]: q has 4 query",
        ),
        (good().with("q", F16, &[2, 3, 64]), "3 query heads and 2 KV heads are not served"),
        // Read as HND, a page has 2 tokens and there are 3 KV heads.
        (good().with_metadata("layout", "HND"), "query heads and 3 KV heads are not served"),
        (good().with_integers("span_ptr", &[0, 4, 3]), "row 1: span_ptr goes from 4 to 3"),
        (good().with_integers("span_ptr", &[0, 1, 4]), "span_ptr ends at 4 but there are 5 spans"),
        (
            good().with_integers("kv_len", &[4, 2]),
            "row 1, span 0: [3, 5) ends past the KV length 4 of request 0",
        ),
        (
            good().with_integers("kv_len", &[7, 2]),
            "kv_len[0] is 7, but the page table has room for 6",
        ),
        (
            good().with_integers("row_request", &[0, 2]),
            "row 1 belongs to request 2, but there are 2",
        ),
        (
            good().with_integers("page_table", &[1, 2, 1, 0]),
            "page_table[0, 1] is 2, but row 1 selects tokens there and the cache has pages 0 to 1",
        ),
    ] {
        let message = message(&file);
        assert!(message.contains(part), "{message}\nexpected: {part}");
        assert!(message.contains("in.safetensors"), "{message}");
    }
}

#[test]
fn sizes_of_nothing_are_refused_without_a_panic() {
    for (name, shape) in [
        ("k", vec![usize::MAX / 2, 0, 2, 64]),
        ("k", vec![usize::MAX, 3, 0, 64]),
        ("k", vec![2, usize::MAX, 0, 64]),
        ("k", vec![0, usize::MAX, 2, 64]),
        ("page_table", vec![0, usize::MAX]),
        ("page_table", vec![usize::MAX, 0]),
        ("q", vec![usize::MAX, 0, 64]),
        ("q", vec![0, usize::MAX, 64]),
        ("span_ptr", vec![0]),
        ("spans", vec![usize::MAX, 0]),
    ] {
        let mut tensors = File::good().tensors;
        for name in [name, if name == "k" { "v" } else { name }] {
            let tensor = tensors.get_mut(name).unwrap();
            (tensor.1, tensor.2) = (shape.clone(), Vec::new());
        }
        // By hand, since the format's own writer refuses some of these.
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in tensors {
            let from = data.len();
            data.extend(bytes);
            let offsets = [from, data.len()];
            let tensor =
                serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            header.insert(name.to_owned(), tensor);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        let error = read_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("in.safetensors"), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_byte() {
    let bytes = File::good().bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for end in (0..bytes.len()).rev() {
        file.set_len(end as u64).unwrap();
        let error = read_problem(&path).unwrap_err();
        assert!(matches!(error, TensorFileError::Malformed { .. }), "{end}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    let error = read_bytes(&longer).unwrap_err().to_string();
    assert!(error.contains("follow the header"), "{error}");
}

#[test]
fn headers_of_any_claimed_length_are_refused_before_they_are_read() {
    for length in [1u64, 9, 100_000_000, 100_000_001, 1 << 40, u64::MAX - 7, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        let error = read_bytes(&bytes).unwrap_err();
        assert!(matches!(error, TensorFileError::Malformed { .. }), "{length}: {error}");
    }
    let deep = "[".repeat(100_000);
    let bytes = [&(deep.len() as u64).to_le_bytes()[..], deep.as_bytes()].concat();
    assert!(matches!(read_bytes(&bytes).unwrap_err(), TensorFileError::Malformed { .. }));
}

proptest! {
    /// Whatever happens to the bytes of the header, and to any integer, reading returns.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((0..4000usize, any::<u8>()), 1..6),
    ) {
        let mut bytes = File::good().bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = read_bytes(&bytes);
    }

    /// A problem that is accepted has passed every check, whatever its integers.
    #[test]
    fn integers_of_any_value_are_checked(
        name in prop::sample::select(vec!["page_table", "row_request", "span_ptr", "spans", "kv_len"]),
        at in any::<prop::sample::Index>(),
        value in prop_oneof![-3..8i32, Just(i32::MAX), Just(i32::MIN), any::<i32>()],
    ) {
        let file = File::good();
        let mut values: Vec<i32> = file.tensors[name].2.as_chunks().0.iter()
            .map(|b| i32::from_le_bytes(*b)).collect();
        let at = at.index(values.len());
        values[at] = value;
        if let Ok(problem) = read_bytes(&file.with_integers(name, &values).bytes()) {
            for (row, request) in problem.row_request.iter().enumerate() {
                for token in problem.spans.row(row).tokens() {
                    prop_assert!((token as i32) < problem.kv_len[*request as usize]);
                    let page = problem.page_table[*request as usize * 2 + token as usize / 3];
                    prop_assert!((0..2).contains(&page));
                }
            }
        }
    }
}

fn output() -> DecodeOutput {
    DecodeOutput { out: (0..512).collect(), lse: vec![f32::NEG_INFINITY; 8] }
}

#[test]
fn results_are_written_in_the_dtype_of_q() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    std::fs::write(&path, "an earlier result").unwrap();
    write_output(&path, &problem(Dtype::Bf16, KvLayout::Nhd), &output()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (out, lse) = (file.tensor("out").unwrap(), file.tensor("lse").unwrap());
    assert_eq!((out.dtype(), out.shape()), (FileDtype::BF16, &[2, 4, 64][..]));
    assert_eq!((lse.dtype(), lse.shape()), (FileDtype::F32, &[2, 4][..]));
    assert_eq!(out.data()[..6], [0, 0, 1, 0, 2, 0]);
    assert!(lse.data().chunks(4).all(|b| b == f32::NEG_INFINITY.to_le_bytes()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&fresh), "as readable as any other new file");
    }
}

#[test]
fn nothing_is_left_where_a_result_cannot_be_written() {
    let problem = problem(Dtype::F16, KvLayout::Nhd);
    let folder = tempfile::tempdir().unwrap();
    let error = write_output(&folder.path().join("missing/out"), &problem, &output()).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
    assert!(error.to_string().contains("missing/out"), "{error}");
    let error = write_output(folder.path(), &problem, &output()).unwrap_err();
    assert!(matches!(error, TensorFileError::NotAFile(_)), "{error}");
    assert!(matches!(read_problem(folder.path()), Err(TensorFileError::NotAFile(_))));

    // Results of another size than the problem's: the earlier file stays.
    let path = folder.path().join("out");
    std::fs::write(&path, "an earlier result").unwrap();
    let short = DecodeOutput { out: vec![0; 511], ..output() };
    assert!(write_output(&path, &problem, &short).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"an earlier result");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_file_is_not_replaced() {
    let problem = problem(Dtype::F16, KvLayout::Nhd);
    let error = write_output(Path::new("/dev/null"), &problem, &output()).unwrap_err();
    assert_eq!(error.to_string(), "/dev/null is not a regular file");
}
