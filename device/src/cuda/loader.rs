//! Finding the NVIDIA driver without the panic that cudarc answers with where there is none, or
//! where an old one lacks a function. Nothing else of cudarc's driver may be called before
//! [`probe`] has said yes.

use crate::error::DeviceError;
use libloading::Library;

/// Every driver function that this room calls, through cudarc or by itself.
const FUNCTIONS: [&str; 40] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuTensorMapEncodeTiled",
];

/// Loads the driver library that cudarc will load, and checks that it has every function.
pub(super) fn probe() -> Result<(), DeviceError> {
    let searched: Vec<String> =
        ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates).collect();
    for name in &searched {
        // SAFETY: the driver's initialisers have no preconditions; the names are cudarc's own.
        let Ok(library) = (unsafe { Library::new(name) }) else { continue };
        let missing = FUNCTIONS.into_iter().find(|function| {
            // SAFETY: the symbol is looked up, not called.
            unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) }.is_err()
        });
        // cudarc opens the same file again; it must not be unloaded in between.
        std::mem::forget(library);
        return match missing {
            None => Ok(()),
            Some(function) => {
                Err(DeviceError::DriverUnusable { reason: format!("{name} has no {function}") })
            }
        };
    }
    Err(DeviceError::DriverUnavailable { searched: short(searched) })
}

/// The names that exist on any system, out of cudarc's list of seventeen spellings.
fn short(searched: Vec<String>) -> Vec<String> {
    let plain = |name: &String| name == "libcuda.so" || name == "libcuda.so.1";
    searched.into_iter().filter(plain).collect()
}
