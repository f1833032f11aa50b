//! Decode problems and their results as safetensors files: what `spanforge run` reads and writes.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `q` | `[rows, query_heads, head_dim]` | F16 or BF16 |
//! | `k`, `v` | `[pages, page_size, kv_heads, head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]` (HND) | as `q`, or both F8_E4M3 |
//! | `k_scales`, `v_scales`, or absent | `[kv_heads]`: factors of F8_E4M3 | F32 |
//! | `page_table` | `[requests, max_pages]` | I32 |
//! | `row_request` | `[rows]` | I32 |
//! | `span_ptr` | `[rows + 1]`, or `[rows * kv_heads + 1]` where each KV head has its own spans | I32 |
//! | `spans` | `[n, 2]` | I32 |
//! | `kv_len` | `[requests]` | I32 |
//! | `sinks`, or absent | `[query_heads]` | F32 |
//!
//! Metadata: `layout`, "NHD" (default) or "HND"; `scale`, a number (default 1/sqrt(head_dim));
//! `soft_cap`, a number (default 0: none).
//! Other metadata and other tensors are left alone. Results are `out`, as `q`, and `lse`
//! `[rows, query_heads]` F32.

use crate::tensor_file::{Elements, StagedFile, TensorFile, TensorFileError};
use safetensors::tensor::Dtype as FileDtype;
use spanforge_kernels::DecodeProblem;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::decoder::DecodeOutput;
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch};
use std::collections::HashMap;
use std::path::Path;

const Q: &str = "[rows, query_heads, head_dim] F16 or BF16";
const KV: &str = "[pages, page_size, kv_heads, head_dim] (NHD) or \
                  [pages, kv_heads, page_size, head_dim] (HND), the dtype of q or F8_E4M3";
const PAGE_TABLE: &str = "[requests, max_pages] I32";
const ROW_REQUEST: &str = "[rows] I32";
const SPAN_PTR: &str = "[rows + 1] I32, or [rows * kv_heads + 1]";
const SINKS_TENSOR: &str = "sinks";
const SCALE_TENSORS: [&str; 2] = ["k_scales", "v_scales"];
const SINKS: &str = "[query_heads] F32, or absent";
const SCALES: &str = "[kv_heads] F32, or absent";
const SPANS: &str = "[n, 2] I32";
const KV_LEN: &str = "[requests] I32";

/// Reads a problem and checks it: a problem that is returned can be launched. Raw spans may
/// overlap, repeat, touch, be empty and be unsorted.
pub fn read_problem(path: &Path) -> Result<DecodeProblem, TensorFileError> {
    let mut file = TensorFile::open(path)?;
    let at_fault = |source| TensorFileError::Problem { path: path.to_owned(), source };

    // Everything that the header says, before any data is read.
    let dtype = element_type(&file, "q", Q)?;
    let kv_dtype = match file.info("k", KV)?.dtype {
        FileDtype::F8_E4M3 => KvDtype::E4m3,
        _ => KvDtype::Same,
    };
    let (of_kv, expected) = match kv_dtype {
        KvDtype::Same => {
            (file_dtype(dtype), format!("{} as q, or both k and v F8_E4M3", file_dtype(dtype)))
        }
        KvDtype::E4m3 => (FileDtype::F8_E4M3, "F8_E4M3 as k".to_owned()),
    };
    for tensor in ["k", "v"] {
        let found = file.info(tensor, KV)?.dtype;
        if found != of_kv {
            return Err(TensorFileError::Dtype {
                path: path.to_owned(),
                tensor: tensor.to_owned(),
                found: found.to_string(),
                expected,
            });
        }
    }
    let [rows, query_heads, head_dim] = shape(&file, "q", Q)?;
    let k = shape::<4>(&file, "k", KV)?;
    let v = shape::<4>(&file, "v", KV)?;
    if k != v {
        return Err(wrong_shape(&file, "v", &v, format!("{k:?}, the shape of k")));
    }
    if k[3] != head_dim {
        let expected = format!("[.., .., .., {head_dim}]: head_dim is {head_dim} in q");
        return Err(wrong_shape(&file, "k", &k, expected));
    }
    let layout = layout(&file)?;
    let (page_size, kv_heads) = match layout {
        KvLayout::Nhd => (k[1], k[2]),
        KvLayout::Hnd => (k[2], k[1]),
    };
    let narrow = |tensor, found: &[usize], size: usize| {
        u32::try_from(size)
            .map_err(|_| wrong_shape(&file, tensor, found, format!("sizes up to {}", u32::MAX)))
    };
    let attention = AttentionShape {
        dtype,
        kv_dtype,
        query_heads: narrow("q", &[rows, query_heads, head_dim], query_heads)?,
        kv_heads: narrow("k", &k, kv_heads)?,
        head_dim: narrow("q", &[rows, query_heads, head_dim], head_dim)?,
        page_size: narrow("k", &k, page_size)?,
        layout,
    };
    for (tensor, expected) in [
        ("page_table", PAGE_TABLE),
        ("row_request", ROW_REQUEST),
        ("span_ptr", SPAN_PTR),
        ("spans", SPANS),
        ("kv_len", KV_LEN),
    ] {
        expect_dtype(&file, tensor, expected, FileDtype::I32)?;
    }
    let [requests, max_pages] = shape(&file, "page_table", PAGE_TABLE)?;
    let found = shape::<1>(&file, "row_request", ROW_REQUEST)?;
    if found[0] != rows {
        let expected = format!("[{rows}]: q has {rows} rows");
        return Err(wrong_shape(&file, "row_request", &found, expected));
    }
    let found = shape::<1>(&file, "span_ptr", SPAN_PTR)?;
    let for_heads = rows.saturating_mul(attention.kv_heads as usize);
    if [rows, for_heads].iter().all(|sets| sets.checked_add(1) != Some(found[0])) {
        let expected = format!(
            "[rows + 1], or [rows * kv_heads + 1] where each KV head has its own spans: q has {rows} rows and k has {} KV heads",
            attention.kv_heads
        );
        return Err(wrong_shape(&file, "span_ptr", &found, expected));
    }
    let found = shape::<2>(&file, "spans", SPANS)?;
    if found[1] != 2 {
        return Err(wrong_shape(&file, "spans", &found, format!("{SPANS}: start and end")));
    }
    let found = shape::<1>(&file, "kv_len", KV_LEN)?;
    if found[0] != requests {
        let expected = format!("[{requests}]: page_table has {requests} requests");
        return Err(wrong_shape(&file, "kv_len", &found, expected));
    }
    let expected = format!("[{query_heads}]: q has {query_heads} query heads");
    let sinks = floats(&mut file, SINKS_TENSOR, SINKS, query_heads, expected)?;
    let [k_scales, v_scales] = SCALE_TENSORS;
    let expected = || format!("[{kv_heads}]: k has {kv_heads} KV heads");
    let k_scales = floats(&mut file, k_scales, SCALES, kv_heads, expected())?;
    let v_scales = floats(&mut file, v_scales, SCALES, kv_heads, expected())?;
    let default_scale = (1.0 / f64::from(attention.head_dim).sqrt()) as f32;
    let scale = number(&file, "scale", "a finite number, such as 0.125")?.unwrap_or(default_scale);
    let soft_cap = number(&file, "soft_cap", "a finite number, such as 50")?.unwrap_or(0.0);
    attention.kernel_shape().map_err(|e| at_fault(e.into()))?;

    let integers = i32::from_le_bytes;
    let span_ptr = file.read("span_ptr", SPAN_PTR, integers)?;
    let spans = file.read("spans", SPANS, |b: [u8; 8]| {
        let [a, b, c, d, e, f, g, h] = b;
        [i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h])]
    })?;
    let problem = DecodeProblem {
        attention,
        scale,
        soft_cap,
        pages: k[0],
        max_pages,
        kv_len: file.read("kv_len", KV_LEN, integers)?,
        page_table: file.read("page_table", PAGE_TABLE, integers)?,
        row_request: file.read("row_request", ROW_REQUEST, integers)?,
        spans: SpanBatch::from_raw(span_ptr, spans).map_err(|e| at_fault(e.into()))?,
        sinks,
        k_scales,
        v_scales,
        q: file.read("q", Q, u16::from_le_bytes)?,
        k: elements(&mut file, "k", kv_dtype)?,
        v: elements(&mut file, "v", kv_dtype)?,
    };
    problem.check().map_err(at_fault)?;
    Ok(problem)
}

/// A tensor of `[count]` f32 that need not be there: empty where it is not. `shape_is` says where another
/// shape is wrong.
fn floats(
    file: &mut TensorFile,
    tensor: &str,
    expected: &str,
    count: usize,
    shape_is: String,
) -> Result<Vec<f32>, TensorFileError> {
    if !file.has(tensor) {
        return Ok(Vec::new());
    }
    expect_dtype(file, tensor, expected, FileDtype::F32)?;
    let found = shape::<1>(file, tensor, expected)?;
    if found[0] != count {
        return Err(wrong_shape(file, tensor, &found, shape_is));
    }
    file.read(tensor, expected, f32::from_le_bytes)
}

/// The bits of K or V.
fn elements(
    file: &mut TensorFile,
    tensor: &str,
    dtype: KvDtype,
) -> Result<Vec<u16>, TensorFileError> {
    match dtype {
        KvDtype::Same => file.read(tensor, KV, u16::from_le_bytes),
        KvDtype::E4m3 => file.read(tensor, KV, |[bits]: [u8; 1]| bits.into()),
    }
}

fn element_type(file: &TensorFile, tensor: &str, expected: &str) -> Result<Dtype, TensorFileError> {
    match file.info(tensor, expected)?.dtype {
        FileDtype::F16 => Ok(Dtype::F16),
        FileDtype::BF16 => Ok(Dtype::Bf16),
        other => Err(TensorFileError::Dtype {
            path: file.path().to_owned(),
            tensor: tensor.to_owned(),
            found: other.to_string(),
            expected: "F16 or BF16".into(),
        }),
    }
}

/// Fails for a tensor of another element type; `expected` is its shape in words.
fn expect_dtype(
    file: &TensorFile,
    tensor: &str,
    expected: &str,
    dtype: FileDtype,
) -> Result<(), TensorFileError> {
    let found = file.info(tensor, expected)?.dtype;
    if found == dtype {
        return Ok(());
    }
    Err(TensorFileError::Dtype {
        path: file.path().to_owned(),
        tensor: tensor.to_owned(),
        found: found.to_string(),
        expected: dtype.to_string(),
    })
}

fn shape<const N: usize>(
    file: &TensorFile,
    tensor: &str,
    expected: &str,
) -> Result<[usize; N], TensorFileError> {
    let found = &file.info(tensor, expected)?.shape;
    found.as_slice().try_into().map_err(|_| wrong_shape(file, tensor, found, expected.into()))
}

fn wrong_shape(
    file: &TensorFile,
    tensor: &str,
    found: &[usize],
    expected: String,
) -> TensorFileError {
    let (path, tensor) = (file.path().to_owned(), tensor.to_owned());
    TensorFileError::Shape { path, tensor, found: found.to_vec(), expected }
}

fn layout(file: &TensorFile) -> Result<KvLayout, TensorFileError> {
    let Some(name) = file.metadata("layout") else { return Ok(KvLayout::Nhd) };
    name.parse().map_err(|_| TensorFileError::Metadata {
        path: file.path().to_owned(),
        key: "layout",
        found: name.to_owned(),
        expected: "\"NHD\" or \"HND\"",
    })
}

/// A number of the file's metadata, if it is there.
fn number(
    file: &TensorFile,
    key: &'static str,
    expected: &'static str,
) -> Result<Option<f32>, TensorFileError> {
    let Some(text) = file.metadata(key) else { return Ok(None) };
    let number = text.trim().parse().ok().filter(|number: &f32| number.is_finite());
    number.map(Some).ok_or_else(|| TensorFileError::Metadata {
        path: file.path().to_owned(),
        key,
        found: text.to_owned(),
        expected,
    })
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F16 => FileDtype::F16,
        Dtype::Bf16 => FileDtype::BF16,
    }
}

/// Writes the results of a problem: `out` `[rows, query_heads, head_dim]` in its dtype and `lse`
/// `[rows, query_heads]` F32. The file is whole or absent.
pub fn write_output(
    path: &Path,
    problem: &DecodeProblem,
    output: &DecodeOutput,
) -> Result<(), TensorFileError> {
    write_output_to(StagedFile::create(path)?, problem, output)
}

/// [`write_output`] into a file that was started before the results were computed.
pub fn write_output_to(
    file: StagedFile,
    problem: &DecodeProblem,
    output: &DecodeOutput,
) -> Result<(), TensorFileError> {
    let a = &problem.attention;
    let heads = vec![problem.rows(), a.query_heads as usize];
    let elements = [heads.as_slice(), &[a.head_dim as usize]].concat();
    let out = Elements::Bits16(file_dtype(a.dtype), &output.out);
    file.write_tensors(None, &[("lse", heads, Elements::F32(&output.lse)), ("out", elements, out)])
}

/// Writes a problem as [`read_problem`] reads it. The file is whole or absent.
pub fn write_problem(path: &Path, problem: &DecodeProblem) -> Result<(), TensorFileError> {
    let at_fault = |source| TensorFileError::Problem { path: path.to_owned(), source };
    problem.check().map_err(at_fault)?;
    let a = &problem.attention;
    let [query_heads, kv_heads, head_dim, page_size] =
        [a.query_heads, a.kv_heads, a.head_dim, a.page_size].map(|n| n as usize);
    let pages = match a.layout {
        KvLayout::Nhd => vec![problem.pages, page_size, kv_heads, head_dim],
        KvLayout::Hnd => vec![problem.pages, kv_heads, page_size, head_dim],
    };
    let dtype = file_dtype(a.dtype);
    let of_kv = |bits| match a.kv_dtype {
        KvDtype::Same => Elements::Bits16(dtype, bits),
        KvDtype::E4m3 => Elements::LowerBytes(FileDtype::F8_E4M3, bits),
    };
    let mut metadata = HashMap::from([
        ("layout".to_owned(), a.layout.name().to_owned()),
        // The shortest text that reads back as the same f32.
        ("scale".to_owned(), problem.scale.to_string()),
    ]);
    if problem.soft_cap > 0.0 {
        metadata.insert("soft_cap".to_owned(), problem.soft_cap.to_string());
    }
    let (spans, rows) = (&problem.spans, problem.rows());
    let table = vec![problem.requests(), problem.max_pages];
    let mut tensors = vec![
        ("page_table", table, Elements::I32(&problem.page_table)),
        ("kv_len", vec![problem.requests()], Elements::I32(&problem.kv_len)),
        ("row_request", vec![rows], Elements::I32(&problem.row_request)),
        ("span_ptr", vec![spans.rows() + 1], Elements::I32(spans.span_ptr())),
        ("spans", vec![spans.spans().len(), 2], Elements::I32(spans.spans().as_flattened())),
        ("q", vec![rows, query_heads, head_dim], Elements::Bits16(dtype, &problem.q)),
        ("k", pages.clone(), of_kv(&problem.k)),
        ("v", pages, of_kv(&problem.v)),
    ];
    for (name, scales) in SCALE_TENSORS.into_iter().zip([&problem.k_scales, &problem.v_scales]) {
        if !scales.is_empty() {
            tensors.push((name, vec![kv_heads], Elements::F32(scales)));
        }
    }
    if !problem.sinks.is_empty() {
        tensors.push((SINKS_TENSOR, vec![query_heads], Elements::F32(&problem.sinks)));
    }
    StagedFile::create(path)?.write_tensors(Some(metadata), &tensors)
}
