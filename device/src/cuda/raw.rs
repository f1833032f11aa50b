//! The driver calls for which cudarc has no safe form: a launch whose argument list is only known
//! at run time, and the sizes of a kernel's parameters that make such a launch sound.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaFunction, CudaStream, sys};
use std::ffi::c_void;

/// Sizes of the kernel's parameters in bytes. The function's context must be current.
pub(super) fn parameter_bytes(function: &CudaFunction) -> Result<Vec<usize>, DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is live (it holds its module) and both pointers are to live
        // integers.
        let code = unsafe {
            sys::cuFuncGetParamInfo(function.cu_function(), sizes.len(), &mut offset, &mut bytes)
        };
        match code {
            sys::CUresult::CUDA_SUCCESS => sizes.push(bytes),
            // What the driver says past the last parameter.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            other => return Err(DriverError(other)),
        }
    }
}

/// A kernel with the sizes of its parameters.
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    pub(super) parameter_bytes: Vec<usize>,
}

/// A kernel argument as the driver copies it.
pub(super) enum Value {
    /// Up to eight bytes, the low ones.
    Scalar(u64),
    /// 128 bytes.
    TensorMap(sys::CUtensorMap),
}

impl Value {
    /// Bytes that may be read from where [`pointer`](Self::pointer) points.
    fn bytes(&self) -> usize {
        match self {
            Self::Scalar(value) => size_of_val(value),
            Self::TensorMap(map) => size_of_val(map),
        }
    }

    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::Scalar(value) => std::ptr::from_mut(value).cast(),
            Self::TensorMap(map) => std::ptr::from_mut(map).cast(),
        }
    }
}

/// Queues a launch. `values` holds the arguments, one for each parameter and each of at least its
/// size; the caller has checked that. The context must be current.
pub(super) fn launch(
    stream: &CudaStream,
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    values: &mut [Value],
) -> Result<(), DriverError> {
    let fits = values.len() == kernel.parameter_bytes.len()
        && kernel.parameter_bytes.iter().zip(&*values).all(|(&bytes, v)| bytes <= v.bytes());
    if !fits {
        return Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
    }
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(Value::pointer).collect();
    // SAFETY: there is one pointer per parameter, each to at least as many bytes as the driver
    // copies before it returns. Function and stream are live. What the kernel does to the device's
    // memory is the caller's business; it cannot reach the host's.
    unsafe {
        result::launch_kernel(
            kernel.function.cu_function(),
            grid.into(),
            block.into(),
            shared_bytes,
            stream.cu_stream(),
            &mut pointers,
        )
    }
}
