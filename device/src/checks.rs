//! What a copy or a launch may ask for, whatever the device: checked before it is tried, so that
//! both kinds of device refuse the same requests in the same words.

use crate::device::{Argument, Buffer, DeviceProperties, Launch};
use crate::error::DeviceError;
use spanforge_emulator::TensorMapError;
use std::ops::Range;

/// Most threads of a block (CUDA C++ programming guide, table of compute capabilities).
const MOST_THREADS: u64 = 1024;
/// Most threads of a block in x, y and z.
const MOST_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Most blocks of a grid in x, y and z.
const MOST_GRID: [u32; 3] = [0x7fff_ffff, 0xffff, 0xffff];

/// The error for a buffer that the device does not have.
pub(crate) fn unknown(buffer: Buffer) -> DeviceError {
    DeviceError::UnknownBuffer { address: buffer.address, bytes: buffer.bytes }
}

/// The range of a copy, if it lies in the buffer.
pub(crate) fn check_range(
    buffer: Buffer,
    offset: usize,
    bytes: usize,
) -> Result<Range<usize>, DeviceError> {
    match offset.checked_add(bytes) {
        Some(end) if end <= buffer.bytes => Ok(offset..end),
        _ => Err(DeviceError::OutOfBuffer { offset, bytes, size: buffer.bytes }),
    }
}

/// Refuses what no GPU of these properties takes: empty or too large grids and blocks, and more
/// shared memory than a block can have.
pub(crate) fn check_shape(
    launch: &Launch,
    static_shared_bytes: u32,
    properties: &DeviceProperties,
) -> Result<(), DeviceError> {
    let bad = |reason| Err(DeviceError::BadLaunch { kernel: launch.kernel.clone(), reason });
    for (what, size, most) in
        [("grid", launch.grid, MOST_GRID), ("block", launch.block, MOST_BLOCK)]
    {
        for ((size, most), axis) in size.into_iter().zip(most).zip(["x", "y", "z"]) {
            if size == 0 || size > most {
                return bad(format!("the {what} has {size} in {axis}, expected 1 to {most}"));
            }
        }
    }
    let threads: u64 = launch.block.into_iter().map(u64::from).product();
    if threads > MOST_THREADS {
        return bad(format!("a block of {threads} threads, expected at most {MOST_THREADS}"));
    }
    let shared = u64::from(launch.shared_bytes) + u64::from(static_shared_bytes);
    if shared > u64::from(properties.shared_bytes_per_block) {
        return bad(format!(
            "{} bytes of dynamic and {static_shared_bytes} of static shared memory, where a block \
             can have {} on {}",
            launch.shared_bytes, properties.shared_bytes_per_block, properties.name
        ));
    }
    Ok(())
}

/// Refuses arguments whose number or sizes are not those of the kernel's parameters, and tensor maps
/// that nothing can be copied by.
pub(crate) fn check_arguments(
    launch: &Launch,
    parameter_bytes: impl ExactSizeIterator<Item = usize>,
) -> Result<(), DeviceError> {
    let bad = |reason| Err(DeviceError::BadLaunch { kernel: launch.kernel.clone(), reason });
    let (given, expected) = (launch.arguments.len(), parameter_bytes.len());
    if given != expected {
        return bad(format!("{given} argument(s), expected {expected}"));
    }
    for (index, (argument, bytes)) in launch.arguments.iter().zip(parameter_bytes).enumerate() {
        if argument.bytes() != bytes {
            let given = argument.bytes();
            return bad(format!("argument {index} has {given} bytes, the parameter {bytes}"));
        }
        if let Argument::TensorMap(map) = argument {
            map.check().map_err(bad_map(launch, index))?;
        }
    }
    Ok(())
}

/// The error of a tensor map that is an argument.
pub(crate) fn bad_map(launch: &Launch, index: usize) -> impl Fn(TensorMapError) -> DeviceError {
    let kernel = launch.kernel.clone();
    move |source| DeviceError::BadTensorMap { kernel: kernel.clone(), index, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Basis, ModuleId};
    use spanforge_emulator::{TensorElement, TensorMap};

    fn properties() -> DeviceProperties {
        DeviceProperties {
            name: "test".into(),
            basis: Basis::Predicted,
            architecture: "sm_80".into(),
            multiprocessors: 1,
            shared_bytes_per_block: 1000,
            shared_bytes_per_multiprocessor: 1000,
            threads_per_multiprocessor: 2048,
            l2_bytes: 0,
            dram_bytes_per_second: 0.0,
            float32_per_second: 0.0,
            tensor_per_second: 0.0,
        }
    }

    fn launch(grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Launch {
        Launch {
            module: ModuleId(0),
            kernel: "k".into(),
            grid,
            block,
            shared_bytes,
            arguments: vec![Argument::Pointer(0), Argument::F32(1.0)],
        }
    }

    #[test]
    fn the_largest_shapes_pass_and_one_more_does_not() {
        let check =
            |grid, block, shared| check_shape(&launch(grid, block, shared), 200, &properties());
        assert!(check([0x7fff_ffff, 0xffff, 0xffff], [1024, 1, 1], 800).is_ok());
        assert!(check([1, 1, 1], [4, 4, 64], 0).is_ok());
        for (grid, block, shared, part) in [
            ([0, 1, 1], [1; 3], 0, "the grid has 0 in x"),
            ([1, 0x1_0000, 1], [1; 3], 0, "the grid has 65536 in y, expected 1 to 65535"),
            ([1; 3], [1, 1, 65], 0, "the block has 65 in z"),
            ([1; 3], [32, 33, 1], 0, "a block of 1056 threads"),
            ([1; 3], [1; 3], 801, "801 bytes of dynamic and 200 of static"),
            ([1; 3], [1; 3], u32::MAX, "4294967295 bytes"),
        ] {
            let message = check(grid, block, shared).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn copies_stay_in_their_buffer() {
        let buffer = Buffer { address: 256, bytes: 10 };
        assert_eq!(check_range(buffer, 4, 6).unwrap(), 4..10);
        assert_eq!(check_range(buffer, 10, 0).unwrap(), 10..10);
        for (offset, bytes) in [(5, 6), (11, 0), (usize::MAX, 2)] {
            assert!(check_range(buffer, offset, bytes).is_err(), "{offset} {bytes}");
        }
    }

    #[test]
    fn arguments_are_those_of_the_parameters() {
        let launch = launch([1; 3], [1; 3], 0);
        let check = |sizes: &[usize]| check_arguments(&launch, sizes.iter().copied());
        assert!(check(&[8, 4]).is_ok());
        assert!(check(&[8]).unwrap_err().to_string().contains("2 argument(s), expected 1"));
        let message = check(&[8, 8]).unwrap_err().to_string();
        assert!(message.contains("argument 1 has 4 bytes, the parameter 8"), "{message}");
    }

    #[test]
    fn tensor_maps_are_checked_and_named() {
        let map = |stride| {
            let map = TensorMap::new(TensorElement::F16, 0, &[64, 64], &[stride], &[64, 8]);
            Argument::TensorMap(map.unwrap())
        };
        let check = |stride, bytes: usize| {
            let arguments = vec![Argument::I32(1), map(stride)];
            let launch = Launch { arguments, ..launch([1; 3], [1; 3], 0) };
            check_arguments(&launch, [4, bytes].into_iter())
        };
        assert!(check(128, 128).is_ok());
        let message = check(128, 8).unwrap_err().to_string();
        assert!(message.contains("argument 1 has 128 bytes, the parameter 8"), "{message}");
        let message = check(100, 128).unwrap_err().to_string();
        assert!(message.contains("argument 1: tensor map: strides[0] is 100"), "{message}");
    }
}
