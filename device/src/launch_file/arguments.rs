//! The arguments of a launch file: what each kind holds, how it is read, and how it is put into the
//! emulator's memory.

use super::LaunchFileError;
use super::fields::{Fault, Fields, read};
use fs_err as fs;
use serde_json::Value;
use spanforge_emulator as emulator;
use spanforge_emulator::{Memory, TensorMap, TensorMapError};
use std::path::{Path, PathBuf};

/// One argument as the file gives it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LaunchArgument {
    Buffer(Contents),
    /// The address of the map is the offset of its element 0 in the buffer.
    TensorMap(Tensor, TensorMap),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F32(f32),
    F64(f64),
}

/// Size of a buffer and what it begins with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contents {
    pub(super) bytes: Option<usize>,
    pub(super) file: Option<PathBuf>,
    pub(super) fill: Option<u8>,
}

/// The buffer that a tensor lies in.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tensor {
    Own(Contents),
    /// That of another argument.
    Of(usize),
}

/// A buffer in the emulator's memory: address and size in bytes.
pub(super) type Placed = (u64, usize);

impl LaunchArgument {
    pub(super) fn parse(value: Value, field: &str, folder: &Path) -> Result<Self, Fault> {
        const KINDS: &str = "expected one of buffer, tensor_map, i32, u32, i64, u64, f32, f64";
        let Fields { map, .. } = Fields::of(value, field)?;
        let mut entries = map.into_iter();
        let (Some((kind, value)), None) = (entries.next(), entries.next()) else {
            return Err(Fault::new(field, format!("not exactly one kind of argument; {KINDS}")));
        };
        let field = format!("{field}.{kind}");
        Ok(match kind.as_str() {
            "buffer" => Self::Buffer(Contents::parse(value, &field, folder)?),
            "tensor_map" => tensor_map(value, &field, folder)?,
            "i32" => Self::I32(read(value, &field)?),
            "u32" => Self::U32(read(value, &field)?),
            "i64" => Self::I64(read(value, &field)?),
            "u64" => Self::U64(read(value, &field)?),
            "f32" => {
                let wide = float(value, &field)?;
                let narrow = wide as f32;
                if wide.is_finite() && narrow.is_infinite() {
                    return Err(Fault::new(field, format!("{wide:e} is out of the range of f32")));
                }
                Self::F32(narrow)
            }
            "f64" => Self::F64(float(value, &field)?),
            _ => return Err(Fault::new(field, format!("no such kind of argument; {KINDS}"))),
        })
    }

    /// The buffer that comes with the argument, and where in the argument it is described.
    pub(super) fn contents(&self) -> Option<(&Contents, &'static str)> {
        match self {
            Self::Buffer(contents) => Some((contents, "buffer")),
            Self::TensorMap(Tensor::Own(contents), _) => Some((contents, "tensor_map.buffer")),
            _ => None,
        }
    }

    /// The argument as a kernel takes it. `index` is its own; `placed` holds the buffers of all.
    pub(super) fn value(
        &self,
        index: usize,
        placed: &[Option<Placed>],
    ) -> Result<emulator::Argument, Fault> {
        let address = |index: usize| placed.get(index).copied().flatten().map_or(0, |(at, _)| at);
        Ok(match self {
            Self::Buffer(_) => emulator::Argument::U64(address(index)),
            Self::TensorMap(tensor, map) => {
                let base = match tensor {
                    Tensor::Own(_) => address(index),
                    Tensor::Of(other) => address(*other),
                };
                let map = TensorMap { address: base.wrapping_add(map.address), ..*map };
                let wrong = map_fault(format!("args[{index}].tensor_map"));
                emulator::Argument::Bytes(map.encode().map_err(wrong)?.to_vec())
            }
            Self::I32(value) => emulator::Argument::I32(*value),
            Self::U32(value) => emulator::Argument::U32(*value),
            Self::I64(value) => emulator::Argument::I64(*value),
            Self::U64(value) => emulator::Argument::U64(*value),
            Self::F32(value) => emulator::Argument::F32(*value),
            Self::F64(value) => emulator::Argument::F64(*value),
        })
    }
}

impl Contents {
    fn parse(value: Value, field: &str, folder: &Path) -> Result<Self, Fault> {
        let mut fields = Fields::of(value, field)?;
        let bytes = fields.take("bytes")?;
        let file = fields.take::<PathBuf>("file")?.map(|file| folder.join(file));
        let fill = fields.take("fill")?;
        fields.finish(&["bytes", "file", "fill"])?;
        if bytes.is_none() && file.is_none() {
            return Err(fields.missing("bytes"));
        }
        Ok(Self { bytes, file, fill })
    }

    /// Allocates and fills the buffer. `name` is that of its argument, `field` that of the
    /// description; `path` is the launch file.
    pub(super) fn place(
        &self,
        memory: &mut Memory,
        name: &str,
        field: &str,
        path: &Path,
    ) -> Result<Placed, LaunchFileError> {
        let fault = |part: &str, fault: String| {
            Fault::new(format!("{name}.{field}{part}"), fault).in_file(path)
        };
        let data = self.file.as_deref().map(fs::read).transpose()?.unwrap_or_default();
        let bytes = self.bytes.unwrap_or(data.len());
        if bytes == 0 {
            return Err(fault("", "no bytes; a buffer has at least one".into()));
        }
        if data.len() > bytes {
            let found = format!("has {} bytes, which is more than `bytes`, {bytes}", data.len());
            let file = self.file.as_deref().unwrap_or(Path::new("")).display();
            return Err(fault(".file", format!("{file} {found}")));
        }
        let refused = |error: emulator::MemoryError| fault(".bytes", error.to_string());
        let address = memory.allocate(name, bytes).map_err(refused)?;
        memory.write(address, &data).map_err(refused)?;
        if let Some(fill) = self.fill {
            let rest = vec![fill; bytes - data.len()];
            memory.write(address + data.len() as u64, &rest).map_err(refused)?;
        }
        Ok((address, bytes))
    }
}

fn tensor_map(value: Value, field: &str, folder: &Path) -> Result<LaunchArgument, Fault> {
    let mut fields = Fields::of(value, field)?;
    let buffer: Option<Value> = fields.take("buffer")?;
    let tensor = match (buffer, fields.take("arg")?) {
        (Some(buffer), None) => {
            Tensor::Own(Contents::parse(buffer, &format!("{field}.buffer"), folder)?)
        }
        (None, Some(other)) => Tensor::Of(other),
        (Some(_), Some(_)) => {
            let fault = "there is a `buffer` already; the tensor lies in one of the two";
            return Err(Fault::new(format!("{field}.arg"), fault));
        }
        (None, None) => {
            let fault = "missing; give a `buffer`, or with `arg` the argument whose buffer it is";
            return Err(Fault::new(format!("{field}.buffer"), fault));
        }
    };
    let offset: u64 = fields.take("offset")?.unwrap_or(0);
    let element: emulator::TensorElement = fields.need("element")?;
    let shape: Vec<u64> = fields.need("shape")?;
    let tile: Vec<u32> = fields.need("tile")?;
    let strides: Option<Vec<u64>> = fields.take("strides")?;
    let steps: Option<Vec<u32>> = fields.take("element_strides")?;
    let swizzle = fields.take("swizzle")?.unwrap_or_default();
    let fill = fields.take("fill")?.unwrap_or_default();
    fields.finish(&[
        "buffer",
        "arg",
        "offset",
        "element",
        "shape",
        "strides",
        "tile",
        "element_strides",
        "swizzle",
        "fill",
    ])?;
    if !offset.is_multiple_of(16) {
        let fault = format!("{offset}, expected a multiple of 16");
        return Err(Fault::new(format!("{field}.offset"), fault));
    }
    let strides = strides.unwrap_or_else(|| dense(element.bytes(), &shape));
    let wrong = map_fault(field.to_owned());
    let mut map = TensorMap::new(element, offset, &shape, &strides, &tile).map_err(&wrong)?;
    if let Some(steps) = steps {
        if steps.len() != map.rank {
            let fault = format!("{} entries, expected {}", steps.len(), map.rank);
            return Err(Fault::new(format!("{field}.element_strides"), fault));
        }
        map.element_strides[..map.rank].copy_from_slice(&steps);
    }
    (map.swizzle, map.fill) = (swizzle, fill);
    map.check().map_err(&wrong)?;
    Ok(LaunchArgument::TensorMap(tensor, map))
}

/// Bytes from one element to the next in dimensions 1, 2, ... of a tensor without gaps.
fn dense(element_bytes: u64, shape: &[u64]) -> Vec<u64> {
    let next = |stride: &mut u64, size: &u64| {
        *stride = stride.saturating_mul(*size);
        Some(*stride)
    };
    shape[..shape.len().saturating_sub(1)].iter().scan(element_bytes, next).collect()
}

/// What is wrong with a tensor map, at its field.
fn map_fault(field: String) -> impl Fn(TensorMapError) -> Fault {
    move |error| {
        let text = error.to_string();
        Fault::new(&field, text.strip_prefix("tensor map: ").unwrap_or(&text))
    }
}

fn float(value: Value, field: &str) -> Result<f64, Fault> {
    match &value {
        Value::String(word) => match word.as_str() {
            "nan" => Ok(f64::NAN),
            "inf" => Ok(f64::INFINITY),
            "-inf" => Ok(f64::NEG_INFINITY),
            _ => Err(Fault::new(field, format!("{word:?}, expected a number, nan, inf or -inf"))),
        },
        _ => read(value, field),
    }
}
