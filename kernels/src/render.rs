//! From a configuration to one self-contained CUDA source.
//!
//! The device code is ordinary C++ (`cuda/*.cuh`); a template only fixes the constants of a
//! configuration and includes it. Rendering fills the template in and puts the includes in place,
//! with `#line` markers, so that the result needs no other file and messages still name the file
//! and line a person would edit.

use crate::configuration::{Core, IdError, KernelSpec, LoadPath, Merge, QueryHome};
use spanforge_spans::{Dtype, KvDtype};
use std::collections::BTreeSet;
use std::fmt::Write;
use tera::{Context, Delimiters, Tera};

/// The template that comes with the tool.
pub const TEMPLATE_NAME: &str = "decode.cu";
const TEMPLATE: &str = include_str!("../../templates/decode.cu");

const MODEL_TEMPLATE: &str = include_str!("../../templates/model.cu");

const READ_TEMPLATE: &str = include_str!("../../templates/read.cu");

const INCLUDES: [(&str, &str); 16] = [
    ("element.cuh", include_str!("../cuda/element.cuh")),
    ("memory.cuh", include_str!("../cuda/memory.cuh")),
    ("softmax.cuh", include_str!("../cuda/softmax.cuh")),
    ("plan.cuh", include_str!("../cuda/plan.cuh")),
    ("overlay.cuh", include_str!("../cuda/overlay.cuh")),
    ("layout.cuh", include_str!("../cuda/layout.cuh")),
    ("piece.cuh", include_str!("../cuda/piece.cuh")),
    ("lanes.cuh", include_str!("../cuda/lanes.cuh")),
    ("fragments.cuh", include_str!("../cuda/fragments.cuh")),
    ("tiles.cuh", include_str!("../cuda/tiles.cuh")),
    ("hopper.cuh", include_str!("../cuda/hopper.cuh")),
    ("warpgroups.cuh", include_str!("../cuda/warpgroups.cuh")),
    ("merge.cuh", include_str!("../cuda/merge.cuh")),
    ("decode.cuh", include_str!("../cuda/decode.cuh")),
    ("kernels.cuh", include_str!("../cuda/kernels.cuh")),
    ("model.cuh", include_str!("../cuda/model.cuh")),
];

/// A rendered source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// File name for messages.
    pub name: String,
    /// The text: valid CUDA C++ without further includes.
    pub text: String,
}

/// A template that cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// Syntax error or undefined variable; the message has file, line and column.
    #[error("template `{name}` cannot be rendered:\n{message}")]
    Template {
        /// The template.
        name: String,
        /// What Tera says, with the place and the variables there are.
        message: String,
    },
    /// An `#include` of a file that does not come with the tool.
    #[error(
        "{file}:{line}: #include \"{include}\" is not one of the kernels' own files ({known}); a rendered source has no others"
    )]
    UnknownInclude {
        /// File that includes.
        file: String,
        /// Its line.
        line: usize,
        /// What it includes.
        include: String,
        /// The files there are.
        known: String,
    },
}

/// Renders the tool's own template.
pub fn render(spec: &KernelSpec) -> Result<Rendered, RenderError> {
    render_template(spec, TEMPLATE_NAME, TEMPLATE)
}

/// Renders a template of the user's: Tera 2 with the delimiters `${ value }$`, `%{ tag }%` and
/// `#{ comment }#`, which do not occur in CUDA C++.
pub fn render_template(
    spec: &KernelSpec,
    name: &str,
    template: &str,
) -> Result<Rendered, RenderError> {
    let rendered = fill(name, template, &context(spec), &VARIABLES)?;
    let mut text = format!(
        "// Rendered by spanforge; edit it and check it with `spanforge check FILE`.\n{ID_MARKER}{}\n",
        spec.compiled()
    );
    inline(&mut text, name, &rendered, &mut BTreeSet::new())?;
    Ok(Rendered { name: name.to_owned(), text })
}

/// A template with the values of `context` in their places; `variables` are all there are.
fn fill(
    name: &str,
    template: &str,
    context: &Context,
    variables: &[&str],
) -> Result<String, RenderError> {
    let failed =
        |e: tera::Error| RenderError::Template { name: name.into(), message: e.to_string() };
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<String>::new());
    tera.set_delimiters(Delimiters {
        block_start: "%{".into(),
        block_end: "}%".into(),
        variable_start: "${".into(),
        variable_end: "}$".into(),
        comment_start: "#{".into(),
        comment_end: "}#".into(),
    })
    .map_err(failed)?;
    tera.add_raw_template(name, template).map_err(failed)?;
    // Tera takes an undefined variable in a condition for false; a template that names one is wrong.
    let mut undefined: Vec<&str> = tera
        .get_template_variables(name)
        .map_err(failed)?
        .into_iter()
        .filter(|v| !context.contains_key(v))
        .collect();
    let rendered = tera.render(name, context).map_err(failed)?;
    if !undefined.is_empty() {
        undefined.sort_unstable();
        let message = format!(
            "undefined variable {}; there are: {}",
            undefined.join(", "),
            variables.join(", ")
        );
        return Err(RenderError::Template { name: name.into(), message });
    }
    Ok(rendered)
}

/// Renders the kernels of a decoder step besides attention (see [`crate::model`]).
pub fn render_model(dtype: Dtype, kv_dtype: KvDtype) -> Result<Rendered, RenderError> {
    let name = "model.cu";
    let mut context = Context::new();
    context.insert("element", element(dtype));
    context.insert("kv_element", kv_element(dtype, kv_dtype));
    let filled = fill(name, MODEL_TEMPLATE, &context, &["element", "kv_element"])?;
    let mut text = String::new();
    inline(&mut text, name, &filled, &mut BTreeSet::new())?;
    Ok(Rendered { name: name.to_owned(), text })
}

/// Renders the kernel that reads a buffer: `spanforge_read(from, sink, vectors)` for `vectors` times
/// 16 bytes, with blocks of [`READ_THREADS`] threads and any grid.
pub fn render_read() -> Result<Rendered, RenderError> {
    let name = "read.cu";
    let mut text = String::new();
    inline(&mut text, name, READ_TEMPLATE, &mut BTreeSet::new())?;
    Ok(Rendered { name: name.to_owned(), text })
}

/// Threads of a block of the kernel that reads a buffer.
pub const READ_THREADS: u32 = 512;

/// The device code's name of an element type.
fn element(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "F16",
        Dtype::Bf16 => "Bf16",
    }
}

/// The device code's name of the element type of a cache.
fn kv_element(dtype: Dtype, kv_dtype: KvDtype) -> &'static str {
    match kv_dtype {
        KvDtype::Same => element(dtype),
        KvDtype::E4m3 => "E4m3",
    }
}

/// Starts the line of a rendered source that says what it was rendered for.
const ID_MARKER: &str = "// spanforge-kernel: ";

/// What a source says it was rendered for: `None` where it does not say, an error where it says
/// something that is not a kernel id.
pub fn spec_of(source: &str) -> Option<Result<KernelSpec, IdError>> {
    source.lines().find_map(|l| l.strip_prefix(ID_MARKER)).map(|id| id.trim().parse())
}

/// What templates can use. Only what the compiled code depends on is among them, so that
/// configurations that differ in launch parameters alone share one compiled image.
const VARIABLES: [&str; 20] = [
    "element",
    "kv_element",
    "head_dim",
    "group_size",
    "query_rows",
    "tensor_cores",
    "warpgroups",
    "staged",
    "tile_tokens",
    "stages",
    "token_warps",
    "heads_per_warp",
    "vector_bytes",
    "unroll",
    "query_shared",
    "l2_prefetch",
    "min_blocks",
    "beginning",
    "last_arriver_merges",
    "shared_bytes",
];

fn context(spec: &KernelSpec) -> Context {
    let (shape, c) = (&spec.shape, &spec.configuration);
    let mut context = Context::new();
    context.insert("element", element(shape.dtype));
    context.insert("kv_element", kv_element(shape.dtype, shape.kv_dtype));
    context.insert("head_dim", &shape.head_dim);
    context.insert("group_size", &shape.group_size);
    context.insert("query_rows", &c.query_rows);
    context.insert("tensor_cores", &(c.core != Core::Fma));
    context.insert("warpgroups", &(c.core == Core::Wgmma));
    context.insert("staged", &(c.load_path == LoadPath::Staged));
    context.insert("tile_tokens", &c.tile_tokens);
    context.insert("stages", &c.stages);
    context.insert("token_warps", &c.token_warps);
    context.insert("heads_per_warp", &c.heads_per_warp);
    context.insert("vector_bytes", &c.vector_bytes);
    context.insert("unroll", &c.unroll);
    context.insert("query_shared", &(c.query == QueryHome::Shared));
    context.insert("l2_prefetch", &c.l2_prefetch);
    context.insert("min_blocks", &c.min_blocks);
    context.insert("beginning", &shape.beginning_tokens());
    context.insert("last_arriver_merges", &(c.merge == Merge::LastArriver));
    context.insert("shared_bytes", &c.shared_bytes(shape));
    context
}

/// Appends `text` of `file` to `out` with its includes in place, each once.
fn inline(
    out: &mut String,
    file: &str,
    text: &str,
    seen: &mut BTreeSet<&'static str>,
) -> Result<(), RenderError> {
    let marker = |out: &mut String, line: usize, file: &str| {
        writeln!(out, "#line {line} \"{file}\"").expect("writing to a string")
    };
    marker(out, 1, file);
    for (index, line) in text.lines().enumerate() {
        let include = line.trim().strip_prefix("#include \"").and_then(|l| l.strip_suffix('"'));
        match include {
            Some(include) => {
                let Some((name, content)) = INCLUDES.iter().find(|(name, _)| *name == include)
                else {
                    return Err(RenderError::UnknownInclude {
                        file: file.to_owned(),
                        line: index + 1,
                        include: include.to_owned(),
                        known: INCLUDES.map(|(name, _)| name).join(", "),
                    });
                };
                if seen.insert(name) {
                    inline(out, name, content, seen)?;
                }
                marker(out, index + 2, file);
            }
            None if line.trim() == "#pragma once" => out.push('\n'),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> KernelSpec {
        "bf16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m256-second".parse().unwrap()
    }

    #[test]
    fn the_template_is_rendered_into_one_source_that_says_what_it_is() {
        let rendered = render(&spec()).unwrap();
        assert!(!rendered.text.contains("#include"), "every include is in place");
        assert!(!rendered.text.contains("}$"), "every value is filled in");
        assert!(rendered.text.contains("using Element = spanforge::Bf16;"));
        assert!(rendered.text.contains("#line 1 \"decode.cuh\""));
        assert_eq!(spec_of(&rendered.text).unwrap().unwrap(), spec().compiled());
        assert_eq!(rendered.text.matches("struct Shares {").count(), 1, "each include once");
    }

    #[test]
    fn launch_parameters_do_not_change_the_source() {
        let mut other = spec();
        other.configuration.smallest_share = 64;
        other.configuration.blocks_per_multiprocessor = 4;
        assert_eq!(render(&other).unwrap(), render(&spec()).unwrap());
        other.configuration.unroll = 4;
        assert_ne!(render(&other).unwrap().text, render(&spec()).unwrap().text);
    }

    #[test]
    fn an_undefined_variable_is_an_error_with_its_place() {
        for template in
            ["int a;\nint b = ${ tile_size }$;\n", "%{ if tile_size }%int a;%{ endif }%"]
        {
            let message = render_template(&spec(), "mine.cu", template).unwrap_err().to_string();
            assert!(message.contains("mine.cu") && message.contains("tile_size"), "{message}");
            assert!(message.contains("tile_tokens"), "names what there is: {message}");
        }
        let message =
            render_template(&spec(), "mine.cu", "a\n${ tile_size }$").unwrap_err().to_string();
        assert!(message.contains("mine.cu:2"), "{message}");
    }

    #[test]
    fn only_the_kernels_own_files_can_be_included() {
        let error = render_template(&spec(), "mine.cu", "\n#include \"other.cuh\"\n").unwrap_err();
        assert!(error.to_string().starts_with("mine.cu:2:"), "{error}");
    }
}
