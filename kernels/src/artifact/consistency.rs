//! What a manifest says, held against itself, against the source and against the machine code. The
//! digests say that files are those that were written; this says that a launch made from them cannot
//! be absurd, whoever wrote them.

use super::{ALIGNMENT_BYTES, ArtifactError, Interface, KernelEntry, Manifest};
use crate::abi::Kernel;
use crate::render::spec_of;
use crate::space::within_bounds;
use spanforge_device::{Architecture, cubin};
use std::path::Path;

/// The argument lists of this version's kernels.
pub(super) fn interface() -> Vec<Interface> {
    Kernel::ALL
        .into_iter()
        .map(|kernel| Interface {
            kernel,
            symbol: kernel.symbol().to_owned(),
            arguments: kernel.arguments().iter().map(|(n, k)| ((*n).to_owned(), *k)).collect(),
        })
        .collect()
}

/// A manifest of this ABI version lists the arguments of this ABI version, and a kernel.
pub(super) fn check_interface(manifest: &Manifest) -> Result<(), String> {
    if manifest.interface != interface() {
        return Err(format!("the interface is not that of ABI {}", manifest.abi));
    }
    match manifest.kernels.is_empty() {
        true => Err("it lists no kernel".to_owned()),
        false => Ok(()),
    }
}

/// Holds an entry against the spec in it, and the spec against the source.
pub(super) fn check_entry(entry: &KernelEntry, source: &[u8]) -> Result<(), String> {
    let KernelEntry { spec, .. } = entry;
    spec.shape.check().map_err(|e| e.to_string())?;
    if !within_bounds(&spec.configuration) {
        return Err("its configuration has a value out of bounds".to_owned());
    }
    if entry.id != spec.to_string() {
        return Err(format!("its spec is that of `{spec}`"));
    }
    let (shape, c) = (&spec.shape, &spec.configuration);
    for (what, found, expected) in [
        ("threads", entry.threads, u64::from(c.threads(shape))),
        ("shared_bytes", entry.shared_bytes, c.shared_bytes(shape)),
        ("alignment_bytes", entry.alignment_bytes, u64::from(ALIGNMENT_BYTES)),
    ] {
        if u64::from(found) != expected {
            return Err(format!("{what} is {found}, and its spec takes {expected}"));
        }
    }
    if entry.time_us.is_nan() || entry.time_us < 0.0 {
        return Err(format!("time_us is {}", entry.time_us));
    }
    for served in &entry.buckets {
        let sound = |number: f64| number.is_finite() && number >= 0.0;
        if !served.bucket.is_sound() || !sound(served.time_us) || !sound(served.loss) {
            return Err(format!("its time in a bucket makes no sense: {served:?}"));
        }
    }
    for architecture in std::iter::once(&entry.ptx_architecture).chain(entry.cubins.keys()) {
        if Architecture::parse(architecture).is_none() {
            return Err(format!("`{architecture}` is not an architecture"));
        }
    }
    match spec_of(&String::from_utf8_lossy(source)) {
        Some(Ok(rendered)) if rendered.compiled() == spec.compiled() => Ok(()),
        _ => Err(format!("{} was rendered for another configuration", entry.source)),
    }
}

/// Compares the argument sizes that a cubin declares with the interface.
pub(super) fn check_cubin(path: &Path, data: &[u8]) -> Result<(), ArtifactError> {
    for kernel in Kernel::ALL {
        let declared = cubin::kernel_parameters(data, kernel.symbol())
            .map_err(|source| ArtifactError::Cubin { path: path.to_owned(), source })?;
        let found: Vec<u32> = declared.iter().map(|p| p.bytes).collect();
        let expected: Vec<u32> = kernel.arguments().iter().map(|(_, k)| k.bytes()).collect();
        if found != expected {
            return Err(ArtifactError::Interface {
                path: path.to_owned(),
                symbol: kernel.symbol().to_owned(),
                found: format!("arguments of {found:?} bytes"),
                expected: format!("{expected:?}"),
            });
        }
    }
    Ok(())
}
