//! One launch of any kernel, described by a JSON file, on the emulator.
//!
//! ```json
//! {
//!   "source": "saxpy.cu", "arch": "sm_80", "options": ["-DN=4"],
//!   "entry": "saxpy", "grid": [2, 1, 1], "block": [64, 1, 1], "shared_bytes": 0,
//!   "args": [
//!     {"i32": 100}, {"f32": 1.5},
//!     {"buffer": {"bytes": 400, "file": "x.bin"}},
//!     {"buffer": {"bytes": 400, "fill": 0}}
//!   ],
//!   "outputs": [{"arg": 3, "file": "y.bin"}]
//! }
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `source` or `ptx` | CUDA C++ for NVRTC, or PTX; one of the two |
//! | `arch` | what the source is compiled for, such as `sm_80`; with `source` only |
//! | `options` | options for NVRTC; with `source` only. The source's folder is an include folder |
//! | `entry` | name of the kernel in the PTX: declare it `extern "C"` |
//! | `grid`, `block` | blocks, and threads of a block, in x, y and z |
//! | `shared_bytes` | dynamic shared memory of a block; 0 where left out |
//! | `instruction_budget` | warp instructions a block may run before it counts as hanging; 2^28 where left out |
//! | `args` | arguments in order: a buffer, a tensor map, or a scalar `i32`, `u32`, `i64`, `u64`, `f32`, `f64` |
//! | `outputs` | buffers to write to files once the launch has passed every check |
//!
//! A float may be given as `"nan"`, `"inf"` or `"-inf"`. A buffer has `bytes` bytes, or those of its
//! `file` where `bytes` is left out. It begins with the bytes of `file`; what they do not cover is
//! set to the byte `fill`, or uninitialised where there is no `fill`. A file longer than `bytes` is
//! an error. Paths are relative to the launch file.
//!
//! A tensor map, for a parameter `const __grid_constant__ CUtensorMap`, is what
//! `cuTensorMapEncodeTiled` takes; lists begin with the innermost dimension:
//!
//! ```json
//! {"tensor_map": {
//!   "buffer": {"file": "k.bin"}, "element": "f16", "shape": [64, 192], "strides": [128],
//!   "tile": [64, 64], "swizzle": "128B"
//! }}
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `buffer` or `arg` | the buffer that the tensor lies in: its own, described like that of a buffer argument, or that of another argument by its number |
//! | `offset` | bytes into the buffer where element 0 is; 0 where left out |
//! | `element` | `u8`, `u16`, `u32`, `i32`, `u64`, `i64`, `f16`, `f32`, `f64`, `bf16` or `tf32` |
//! | `shape` | elements in each of 1 to 5 dimensions |
//! | `strides` | bytes from one element to the next in dimensions 1, 2, ...; without gaps where left out |
//! | `tile` | elements that a copy spans in each dimension (`boxDim`) |
//! | `element_strides` | every how many elements a copy takes one; 1 where left out |
//! | `swizzle` | `none`, `32B`, `64B` or `128B`; `none` where left out |
//! | `fill` | what stands for elements outside: `zero` or `nan`; `zero` where left out |
//!
//! An output may name any argument that has a buffer of its own. Nearly a third of the file is its tests.

mod arguments;
mod fields;

use crate::compiler::{Architecture, Compiler, Source, Target};
use crate::error::{CompileError, NvrtcError};
use crate::nvrtc::Nvrtc;
use crate::settings::Settings;
use arguments::{LaunchArgument, Tensor};
use fields::{Fault, Fields};
use fs_err as fs;
use serde_json::Value;
use spanforge_emulator as emulator;
use spanforge_emulator::counters::Counters;
use spanforge_emulator::{Finding, LineCount, Memory, Module, profile};
use std::io;
use std::path::{Path, PathBuf};

/// Warp instructions of a block that take the emulator some seconds.
const INSTRUCTION_BUDGET: u64 = 1 << 28;

/// A launch that cannot be read or run. What the checks find in the kernel is no error but part of
/// the [`Emulation`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchFileError {
    /// A file cannot be read; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Json {
        /// The launch file.
        path: PathBuf,
        /// What the parser found, with line and column.
        source: serde_json::Error,
    },
    /// A field is missing, unknown, or has a value that cannot be.
    #[error("{}: `{field}`: {fault}", path.display())]
    Field {
        /// The launch file.
        path: PathBuf,
        /// The field, such as `args[2].buffer.bytes`.
        field: String,
        /// What is wrong, and what was expected.
        fault: String,
    },
    /// NVRTC is not at hand.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// The source does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The PTX cannot be executed.
    #[error("{}: {source}", path.display())]
    Load {
        /// The PTX, or the source that was compiled to it.
        path: PathBuf,
        /// The line, and what is wrong there.
        source: emulator::LoadError,
    },
    /// The kernel cannot be launched in this way.
    #[error("{}: {source}", path.display())]
    Launch {
        /// The launch file.
        path: PathBuf,
        /// Why.
        source: emulator::LaunchError,
    },
}

/// A launch file, read and checked. Files that it names are read when it is run.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchFile {
    path: PathBuf,
    code: Code,
    entry: String,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    instruction_budget: u64,
    arguments: Vec<LaunchArgument>,
    outputs: Vec<Output>,
}

#[derive(Clone, Debug, PartialEq)]
enum Code {
    Source { path: PathBuf, architecture: String, options: Vec<String> },
    Ptx(PathBuf),
}

#[derive(Clone, Debug, PartialEq)]
struct Output {
    argument: usize,
    file: PathBuf,
}

/// A CUDA source on disk. Its folder comes last among the include folders.
pub fn read_source(path: &Path, options: &[String]) -> io::Result<Source> {
    let mut source = Source::new(path.display().to_string(), fs::read_to_string(path)?);
    source.options = options.to_vec();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    source.options.push(format!("-I{}", folder.display()));
    Ok(source)
}

/// A compiler for sources on disk. It keeps nothing: compiled code is kept by the text of its
/// source, which says nothing of the files that a user's source includes.
pub fn compiler_of_files(settings: &Settings) -> Result<Compiler, NvrtcError> {
    Ok(Compiler::without_cache(Nvrtc::find(settings)?))
}

/// What a launch did.
#[derive(Clone, Debug)]
pub struct Emulation {
    /// What the checks reported, in the order of execution; empty where all is well.
    pub findings: Vec<Finding>,
    /// What was counted.
    pub counters: Counters,
    /// What the kernel printed with `printf`: the first MiB of it.
    pub printed: String,
    /// How often each source line of the kernel was executed, where its PTX has line information.
    pub lines: Vec<LineCount>,
    /// The files to write and their contents; empty where a check reported.
    pub outputs: Vec<(PathBuf, Vec<u8>)>,
}

impl LaunchFile {
    /// Reads a launch file.
    pub fn read(path: &Path) -> Result<Self, LaunchFileError> {
        Self::parse(path, &fs::read_to_string(path)?)
    }

    /// Reads the text of a launch file; `path` names it in errors, and paths in it are relative to
    /// its folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, LaunchFileError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|source| LaunchFileError::Json { path: path.to_owned(), source })?;
        Self::from_value(path, value).map_err(|fault| fault.in_file(path))
    }

    fn from_value(path: &Path, value: Value) -> Result<Self, Fault> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut fields = Fields::of(value, "")?;
        let options: Option<Vec<String>> = fields.take("options")?;
        let architecture: Option<String> = fields.take("arch")?;
        let code = match (fields.take::<PathBuf>("source")?, fields.take::<PathBuf>("ptx")?) {
            (Some(source), None) => Code::Source {
                path: folder.join(source),
                architecture: architecture.ok_or_else(|| fields.missing("arch"))?,
                options: options.unwrap_or_default(),
            },
            (None, Some(ptx)) => match (options, architecture) {
                (None, None) => Code::Ptx(folder.join(ptx)),
                (Some(_), _) => {
                    return Err(Fault::new("options", "PTX is not compiled: leave out"));
                }
                (_, Some(_)) => {
                    return Err(Fault::new("arch", "PTX names its own target: leave out"));
                }
            },
            (Some(_), Some(_)) => return Err(Fault::new("ptx", "there is a `source` already")),
            (None, None) => return Err(Fault::new("source", "missing; give `source` or `ptx`")),
        };
        let entry = fields.need("entry")?;
        let grid = fields.need("grid")?;
        let block = fields.need("block")?;
        let shared_bytes = fields.take("shared_bytes")?.unwrap_or(0);
        let instruction_budget = fields.take("instruction_budget")?.unwrap_or(INSTRUCTION_BUDGET);
        let arguments =
            fields.list("args", |value, field| LaunchArgument::parse(value, field, folder))?;
        let outputs = fields.list("outputs", |value, field| output(value, field, folder))?;
        fields.finish(&[
            "source",
            "ptx",
            "arch",
            "options",
            "entry",
            "grid",
            "block",
            "shared_bytes",
            "instruction_budget",
            "args",
            "outputs",
        ])?;
        for (index, argument) in arguments.iter().enumerate() {
            if let LaunchArgument::TensorMap(Tensor::Of(other), _) = argument {
                has_buffer(&arguments, *other, format!("args[{index}].tensor_map.arg"))?;
            }
        }
        for (index, output) in outputs.iter().enumerate() {
            has_buffer(&arguments, output.argument, format!("outputs[{index}].arg"))?;
            if outputs[..index].iter().any(|earlier| earlier.file == output.file) {
                let field = format!("outputs[{index}].file");
                return Err(Fault::new(field, "an earlier output is written to the same file"));
            }
        }
        let path = path.to_owned();
        Ok(Self {
            path,
            code,
            entry,
            grid,
            block,
            shared_bytes,
            instruction_budget,
            arguments,
            outputs,
        })
    }

    /// Name of the kernel.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// The file of the kernel's code: CUDA source or PTX.
    pub fn code(&self) -> &Path {
        match &self.code {
            Code::Ptx(path) | Code::Source { path, .. } => path,
        }
    }

    /// Blocks and threads of a block, in x, y and z.
    pub fn shape(&self) -> ([u32; 3], [u32; 3]) {
        (self.grid, self.block)
    }

    /// Compiles the source, if it is one, and runs the launch on the emulator with all checks and
    /// counters. `seed` decides the order in which warps run, `matrix` how tensor cores add. Nothing
    /// is written.
    pub fn run(
        &self,
        settings: &Settings,
        seed: u64,
        matrix: emulator::MatrixModel,
    ) -> Result<Emulation, LaunchFileError> {
        let module = self.load(settings)?;
        self.check_shared_memory(&module)?;
        let mut memory = Memory::new();
        let mut buffers = Vec::with_capacity(self.arguments.len());
        for (index, argument) in self.arguments.iter().enumerate() {
            buffers.push(match argument.contents() {
                Some((contents, field)) => {
                    let name = format!("args[{index}]");
                    Some(contents.place(&mut memory, &name, field, &self.path)?)
                }
                None => None,
            });
        }
        let values = self.arguments.iter().enumerate();
        let arguments = values
            .map(|(index, argument)| argument.value(index, &buffers))
            .collect::<Result<Vec<_>, Fault>>()
            .map_err(|fault| fault.in_file(&self.path))?;
        let launch = emulator::Launch {
            kernel: &self.entry,
            grid: self.grid,
            block: self.block,
            dynamic_shared_bytes: self.shared_bytes,
            arguments: &arguments,
        };
        let options = emulator::Options {
            checks: true,
            counters: true,
            lines: true,
            matrix,
            seed,
            instruction_budget: self.instruction_budget,
            ..Default::default()
        };
        let failed = |source| LaunchFileError::Launch { path: self.path.clone(), source };
        let report = emulator::launch(&module, &mut memory, &launch, &options).map_err(failed)?;
        let kernel = module.kernel(&self.entry);
        let lines = kernel.map(|kernel| kernel.line_counts(&report.executed)).unwrap_or_default();
        let mut outputs = Vec::new();
        if report.findings.is_empty() {
            for output in &self.outputs {
                let Some(Some((address, bytes))) = buffers.get(output.argument) else { continue };
                let mut data = vec![0; *bytes];
                memory.read(*address, &mut data).map_err(|error| failed(error.into()))?;
                outputs.push((output.file.clone(), data));
            }
        }
        Ok(Emulation {
            findings: report.findings,
            counters: report.counters,
            printed: report.printed,
            lines,
            outputs,
        })
    }

    fn load(&self, settings: &Settings) -> Result<Module, LaunchFileError> {
        let (ptx, path) = match &self.code {
            Code::Ptx(path) => (fs::read_to_string(path)?, path),
            Code::Source { path, architecture, options } => {
                let source = read_source(path, options)?;
                let compiler = compiler_of_files(settings)?;
                (compiler.compile(&source, &Target::Ptx(architecture.clone()))?.ptx, path)
            }
        };
        Module::parse(&ptx).map_err(|source| LaunchFileError::Load { path: path.clone(), source })
    }

    /// Refuses more shared memory than a block can have on GPUs of the architecture, where a
    /// profile knows.
    fn check_shared_memory(&self, module: &Module) -> Result<(), LaunchFileError> {
        let Code::Source { architecture, .. } = &self.code else { return Ok(()) };
        let number = |name: &str| Architecture::parse(name).map(|found| found.number);
        let asked = number(architecture);
        let profile = profile::names()
            .into_iter()
            .filter_map(|name| profile::find(name).ok())
            .find(|profile| asked.is_some() && number(&profile.architecture) == asked);
        let (Some(profile), Some(kernel)) = (profile, module.kernel(&self.entry)) else {
            return Ok(());
        };
        let fixed = u64::from(kernel.static_shared_bytes());
        let most = profile.shared_bytes_per_block.value;
        if fixed + u64::from(self.shared_bytes) > most {
            let fault = format!(
                "{} bytes and {fixed} static ones, but a block of {architecture} can have {most}",
                self.shared_bytes
            );
            return Err(Fault::new("shared_bytes", fault).in_file(&self.path));
        }
        Ok(())
    }
}

/// Refuses the number of an argument, given in `field`, that has no buffer of its own.
fn has_buffer(arguments: &[LaunchArgument], index: usize, field: String) -> Result<(), Fault> {
    let fault = match arguments.get(index) {
        Some(argument) if argument.contents().is_some() => return Ok(()),
        Some(_) => format!("args[{index}] is not a buffer"),
        None => format!("there is no argument {index}, but there are {}", arguments.len()),
    };
    Err(Fault::new(field, fault))
}

fn output(value: Value, field: &str, folder: &Path) -> Result<Output, Fault> {
    let mut fields = Fields::of(value, field)?;
    let argument = fields.need("arg")?;
    let file = folder.join(fields.need::<PathBuf>("file")?);
    fields.finish(&["arg", "file"])?;
    Ok(Output { argument, file })
}

#[cfg(test)]
mod tests {
    use super::arguments::Contents;
    use super::*;
    use serde_json::json;
    use spanforge_emulator::{OutOfBoundsFill, Swizzle, TensorElement, TensorMap};

    fn whole() -> Value {
        json!({
            "source": "k.cu", "arch": "sm_80", "options": ["-DN=4"], "entry": "k",
            "grid": [2, 1, 1], "block": [64, 1, 1], "shared_bytes": 16,
            "args": [
                {"buffer": {"bytes": 64, "file": "in.bin"}}, {"buffer": {"bytes": 64}},
                {"buffer": {"bytes": 64, "fill": 255}}, {"i32": -5}, {"u32": 4294967295u32},
                {"i64": i64::MIN}, {"u64": u64::MAX}, {"f32": 1.5}, {"f64": "-inf"},
                {"tensor_map": {
                    "buffer": {"bytes": 4096}, "offset": 32, "element": "f16", "shape": [64, 8, 2],
                    "strides": [256, 2048], "tile": [64, 8, 1], "element_strides": [1, 2, 1],
                    "swizzle": "128B", "fill": "nan"
                }},
                {"tensor_map": {"arg": 1, "element": "u8", "shape": [16, 4], "tile": [16, 2]}}
            ],
            "outputs": [{"arg": 1, "file": "out.bin"}]
        })
    }

    fn parse(value: &Value) -> Result<LaunchFile, String> {
        LaunchFile::parse(Path::new("dir/launch.json"), &value.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_is_read_and_paths_are_relative_to_the_file() {
        let file = parse(&whole()).unwrap();
        let source = Code::Source {
            path: "dir/k.cu".into(),
            architecture: "sm_80".into(),
            options: vec!["-DN=4".into()],
        };
        assert_eq!(file.code, source);
        assert_eq!((file.grid, file.block, file.shared_bytes), ([2, 1, 1], [64, 1, 1], 16));
        let contents = |bytes| Contents { bytes: Some(bytes), file: None, fill: None };
        let buffer = |file: Option<&str>, fill| {
            let file = file.map(PathBuf::from);
            LaunchArgument::Buffer(Contents { file, fill, ..contents(64) })
        };
        let (shape, strides, tile) = (&[64, 8, 2], &[256, 2048], &[64, 8, 1]);
        let mut map = TensorMap::new(TensorElement::F16, 32, shape, strides, tile).unwrap();
        map.element_strides[1] = 2;
        (map.swizzle, map.fill) = (Swizzle::Bytes128, OutOfBoundsFill::Nan);
        let dense = TensorMap::new(TensorElement::U8, 0, &[16, 4], &[16], &[16, 2]).unwrap();
        assert_eq!(
            file.arguments,
            [
                buffer(Some("dir/in.bin"), None),
                buffer(None, None),
                buffer(None, Some(255)),
                LaunchArgument::I32(-5),
                LaunchArgument::U32(u32::MAX),
                LaunchArgument::I64(i64::MIN),
                LaunchArgument::U64(u64::MAX),
                LaunchArgument::F32(1.5),
                LaunchArgument::F64(f64::NEG_INFINITY),
                LaunchArgument::TensorMap(Tensor::Own(contents(4096)), map),
                LaunchArgument::TensorMap(Tensor::Of(1), dense),
            ]
        );
        assert_eq!(file.outputs, [Output { argument: 1, file: "dir/out.bin".into() }]);
    }

    #[test]
    fn faults_name_the_field() {
        let cases = [
            ("/entry", json!(5), "`entry`: invalid type: integer `5`, expected a string"),
            ("/grid", json!([1, 2]), "`grid`: invalid length 2"),
            ("/block/1", json!(-1), "`block`: invalid value: integer `-1`, expected u32"),
            ("/args/3", json!({"i32": 2147483648u32}), "`args[3].i32`: invalid value"),
            ("/args/3", json!({"u32": -1}), "`args[3].u32`: invalid value"),
            ("/args/3", json!({"i64": 1.5}), "`args[3].i64`: invalid type: floating point"),
            ("/args/3", json!({"f32": 1e39}), "`args[3].f32`: 1e39 is out of the range of f32"),
            ("/args/3", json!({"f32": "big"}), "`args[3].f32`: \"big\", expected a number"),
            ("/args/3", json!({"i8": 1}), "`args[3].i8`: no such kind of argument"),
            ("/args/3", json!({"i32": 1, "u32": 1}), "`args[3]`: not exactly one kind"),
            ("/args/3", json!(7), "`args[3]`: 7 is not an object"),
            ("/args/0/buffer", json!({"fill": 1}), "`args[0].buffer.bytes`: missing"),
            ("/args/0/buffer", json!({"bytes": 4, "fill": 256}), "`args[0].buffer.fill`: invalid"),
            ("/args/0/buffer", json!({"byte": 4}), "`args[0].buffer.byte`: no such field"),
            ("/args/9/tensor_map/swizzle", json!("16B"), "`args[9].tensor_map.swizzle`: unknown"),
            ("/args/9/tensor_map/element", json!("f8"), "`args[9].tensor_map.element`: unknown"),
            ("/args/9/tensor_map/offset", json!(8), "`args[9].tensor_map.offset`: 8, expected a"),
            (
                "/args/9/tensor_map/strides",
                json!([256]),
                "`args[9].tensor_map`: strides has 1 entries, expected 2",
            ),
            (
                "/args/9/tensor_map/strides/0",
                json!(100),
                "`args[9].tensor_map`: strides[0] is 100, expected a multiple of 16",
            ),
            ("/args/9/tensor_map/element", json!("u16"), "`args[9].tensor_map`: NaN as the fill"),
            (
                "/args/9/tensor_map/element_strides",
                json!([1]),
                "`args[9].tensor_map.element_strides`: 1 entries, expected 3",
            ),
            (
                "/args/9/tensor_map/buffer",
                json!({"fill": 1}),
                "`args[9].tensor_map.buffer.bytes`: missing",
            ),
            ("/args/10/tensor_map/arg", json!(3), "`args[10].tensor_map.arg`: args[3] is not"),
            ("/args/10/tensor_map/arg", json!(11), "`args[10].tensor_map.arg`: there is no"),
            ("/args/10/tensor_map/shape", json!([16]), "`args[10].tensor_map`: tile has 2"),
            ("/args/10/tensor_map", json!({"arg": 1}), "`args[10].tensor_map.element`: missing"),
            ("/args/10/tensor_map", json!({"element": "u8"}), "`args[10].tensor_map.buffer`: miss"),
            (
                "/args/10/tensor_map",
                json!({"arg": 1, "buffer": {"bytes": 64}}),
                "`args[10].tensor_map.arg`: there is a `buffer` already",
            ),
            ("/outputs/0/arg", json!(11), "`outputs[0].arg`: there is no argument 11"),
            ("/outputs/0/arg", json!(10), "`outputs[0].arg`: args[10] is not a buffer"),
            ("/outputs/0/arg", json!(3), "`outputs[0].arg`: args[3] is not a buffer"),
            ("/outputs/0", json!({"arg": 1}), "`outputs[0].file`: missing"),
            (
                "/outputs",
                json!([{"arg": 1, "file": "a"}, {"arg": 2, "file": "a"}]),
                "`outputs[1].file`: an earlier output",
            ),
        ];
        for (pointer, value, expected) in cases {
            let mut launch = whole();
            *launch.pointer_mut(pointer).unwrap() = value;
            let message = parse(&launch).unwrap_err();
            assert!(message.starts_with("dir/launch.json: "), "{message}");
            assert!(message.contains(expected), "{message}, expected {expected}");
        }
    }

    #[test]
    fn missing_unknown_and_contradicting_fields_are_named() {
        for name in ["source", "arch", "entry", "grid", "block"] {
            let mut launch = whole();
            launch.as_object_mut().unwrap().remove(name);
            assert!(parse(&launch).unwrap_err().contains(&format!("`{name}`: missing")), "{name}");
        }
        for (name, value, expected) in [
            ("ptx", json!("k.ptx"), "`ptx`: there is a `source` already"),
            ("grids", json!([1, 1, 1]), "`grids`: no such field; there are source, ptx, arch"),
        ] {
            let mut launch = whole();
            launch.as_object_mut().unwrap().insert(name.into(), value);
            assert!(parse(&launch).unwrap_err().contains(expected));
        }
        let mut launch = whole();
        launch.as_object_mut().unwrap().remove("source");
        launch.as_object_mut().unwrap().insert("ptx".into(), json!("k.ptx"));
        assert!(parse(&launch).unwrap_err().contains("`options`: PTX is not compiled"));
        assert!(parse(&json!([])).unwrap_err().contains("`the file`: [] is not an object"));
        let error = LaunchFile::parse(Path::new("l.json"), "{\n\"grid\": }").unwrap_err();
        assert!(
            error.to_string().contains("l.json: not JSON: expected value at line 2"),
            "{error}"
        );
    }

    /// Whatever a byte is changed to, the answer is an error or another launch, never a panic; a
    /// file that was cut is an error.
    #[test]
    fn no_text_makes_the_reader_panic() {
        let whole = whole().to_string();
        for cut in 0..whole.len() {
            let path = Path::new("launch.json");
            assert!(LaunchFile::parse(path, &whole[..cut]).is_err(), "{cut}");
            for byte in ["\"", "{", "9", "-", ",", "}", "\0", "e"] {
                let text = format!("{}{byte}{}", &whole[..cut], &whole[cut + 1..]);
                let _ = LaunchFile::parse(path, &text);
            }
        }
    }
}
