//! The NVRTC C interface, bound to one library file.
//!
//! cudarc's NVRTC functions take the first `libnvrtc.so` that the loader path offers, whatever
//! file was chosen, and panic where there is none. The table here is bound by absolute path, so
//! that the version found, the version reported and the version called are the same.

use cudarc::nvrtc::sys::nvrtcProgram;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

/// `NVRTC_SUCCESS`.
const SUCCESS: c_int = 0;
/// `NVRTC_ERROR_COMPILATION`: the source is wrong and the log says where.
const COMPILATION: c_int = 6;

type Create = unsafe extern "C" fn(
    *mut nvrtcProgram,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(nvrtcProgram, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut nvrtcProgram) -> c_int;
type GetSize = unsafe extern "C" fn(nvrtcProgram, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> c_int;
type GetArch = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetVersion = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// The functions of one loaded `libnvrtc`. They may be called from any thread: NVRTC locks what
/// it shares, and a program is only ever used by the call that made it.
pub(crate) struct Api {
    create: Create,
    compile: Compile,
    destroy: Destroy,
    ptx: (GetSize, GetBytes),
    cubin: (GetSize, GetBytes),
    log: (GetSize, GetBytes),
    arch_count: GetArch,
    archs: GetArch,
    version: GetVersion,
    error_string: ErrorString,
}

/// What a call to NVRTC gave besides success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source does not compile; the compiler's log.
    Source(String),
    /// A call failed; its name and NVRTC's own words.
    Call(&'static str, String),
}

/// Text and code of one compilation.
pub(crate) struct Output {
    pub(crate) ptx: Vec<u8>,
    pub(crate) cubin: Vec<u8>,
    pub(crate) log: String,
}

impl Api {
    /// Loads `builtins`, which NVRTC itself looks for by name only, and then `library`. Both stay
    /// loaded until the process ends: NVRTC keeps state that does not survive unloading.
    pub(crate) fn load(library: &Path, builtins: &[PathBuf]) -> Result<Self, libloading::Error> {
        for path in builtins {
            // SAFETY: the file is NVIDIA's data library; its initialisers have no preconditions.
            let handle = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
            std::mem::forget(handle);
        }
        // SAFETY: as above, for the compiler itself.
        let handle = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_LOCAL) }?;
        // SAFETY: the types are those of nvrtc.h, unchanged from CUDA 11.2 to 13; the handle is
        // never closed, so the pointers stay valid.
        let api = unsafe {
            Self {
                create: *handle.get::<Create>(b"nvrtcCreateProgram\0")?,
                compile: *handle.get::<Compile>(b"nvrtcCompileProgram\0")?,
                destroy: *handle.get::<Destroy>(b"nvrtcDestroyProgram\0")?,
                ptx: (*handle.get(b"nvrtcGetPTXSize\0")?, *handle.get(b"nvrtcGetPTX\0")?),
                cubin: (*handle.get(b"nvrtcGetCUBINSize\0")?, *handle.get(b"nvrtcGetCUBIN\0")?),
                log: (
                    *handle.get(b"nvrtcGetProgramLogSize\0")?,
                    *handle.get(b"nvrtcGetProgramLog\0")?,
                ),
                arch_count: *handle.get::<GetArch>(b"nvrtcGetNumSupportedArchs\0")?,
                archs: *handle.get::<GetArch>(b"nvrtcGetSupportedArchs\0")?,
                version: *handle.get::<GetVersion>(b"nvrtcVersion\0")?,
                error_string: *handle.get::<ErrorString>(b"nvrtcGetErrorString\0")?,
            }
        };
        std::mem::forget(handle);
        Ok(api)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), Failure> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: returns a static string for every code, known or not.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(Failure::Call(call, text.to_string_lossy().into_owned()))
    }

    /// Major and minor version, such as (13, 0).
    pub(crate) fn version(&self) -> Result<(u32, u32), Failure> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        let code = unsafe { (self.version)(&mut major, &mut minor) };
        self.check("nvrtcVersion", code)?;
        Ok((major.try_into().unwrap_or(0), minor.try_into().unwrap_or(0)))
    }

    /// Numbers of the architectures that the library compiles for, such as 90.
    pub(crate) fn architectures(&self) -> Result<Vec<u32>, Failure> {
        let mut count = 0;
        // SAFETY: the pointer is to a live integer.
        let code = unsafe { (self.arch_count)(&mut count) };
        self.check("nvrtcGetNumSupportedArchs", code)?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the library writes as many integers as it has just announced.
        let code = unsafe { (self.archs)(archs.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", code)?;
        Ok(archs.into_iter().filter_map(|arch: c_int| arch.try_into().ok()).collect())
    }

    /// Compiles `text` under the name `name`, with nothing but `options`. The cubin is empty where
    /// the options name a virtual architecture.
    pub(crate) fn compile(
        &self,
        text: &CStr,
        name: &CStr,
        options: &[CString],
    ) -> Result<Output, Failure> {
        let mut program = Program { api: self, raw: ptr::null_mut() };
        // SAFETY: both strings end in a zero and outlive the program; no headers are passed.
        let code = unsafe {
            (self.create)(
                &mut program.raw,
                text.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len())
            .map_err(|_| Failure::Call("nvrtcCompileProgram", "too many options".into()))?;
        // SAFETY: the program is live and `pointers` holds `count` strings ending in a zero.
        let code = unsafe { (self.compile)(program.raw, count, pointers.as_ptr()) };
        let log = program.read("nvrtcGetProgramLog", self.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
        if code == COMPILATION || (code != SUCCESS && !log.is_empty()) {
            return Err(Failure::Source(log));
        }
        self.check("nvrtcCompileProgram", code)?;
        let ptx = program.read("nvrtcGetPTX", self.ptx)?;
        let cubin = program.read("nvrtcGetCUBIN", self.cubin)?;
        Ok(Output { ptx, cubin, log })
    }
}

/// A program that is destroyed with its owner.
struct Program<'a> {
    api: &'a Api,
    raw: nvrtcProgram,
}

impl Program<'_> {
    fn read(&self, call: &'static str, get: (GetSize, GetBytes)) -> Result<Vec<u8>, Failure> {
        let mut bytes = 0;
        // SAFETY: the program is live and the pointer is to a live integer.
        let code = unsafe { get.0(self.raw, &mut bytes) };
        self.api.check(call, code)?;
        let mut data = vec![0u8; bytes];
        if bytes > 0 {
            // SAFETY: the library writes exactly the size that it has just announced.
            let code = unsafe { get.1(self.raw, data.as_mut_ptr().cast()) };
            self.api.check(call, code)?;
        }
        Ok(data)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created by this library and not destroyed before.
            unsafe { (self.api.destroy)(&mut self.raw) };
        }
    }
}
