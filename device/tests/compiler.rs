//! Compiling with NVRTC: what comes out, what is refused and how, and what is kept. NVRTC is taken
//! from where it is found, and fetched once where it is not.

use spanforge_device::cubin::{self, Parameter};
use spanforge_device::{
    CompileError, Compiler, CubinError, Nvrtc, NvrtcError, Resources, Settings, Source, Target,
};
use std::path::Path;

const TWO_KERNELS: &str = r#"
#include <cuda_fp16.h>
__device__ __noinline__ float helper(float x) {
    float a[40];
    for (int i = 0; i < 40; i++) a[i] = x * i;
    float s = 0;
    for (int i = 0; i < 40; i++) s += a[(int)(x * 3 + i) % 40];
    return s;
}
struct Triple { int a; double b; char c; };
extern "C" __global__ void first(float* y, const float* x, int n, float a, Triple p) {
    __shared__ float t[300];
    int i = threadIdx.x;
    t[i] = x[i];
    __syncthreads();
    y[i] = t[n - i] * a + p.b;
}
extern "C" __global__ void second(__half* y, int n) {
    extern __shared__ float d[];
    d[threadIdx.x] = n;
    __syncthreads();
    y[n] = __float2half(helper(d[n]));
}
"#;

/// 64 live sums in a kernel that may use 32 registers. They differ between threads, or else ptxas
/// would keep them in uniform registers.
const SPILLING: &str = r#"
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* y, const float* x, int n) {
    float sums[64];
    #pragma unroll
    for (int j = 0; j < 64; j++) sums[j] = x[j * n + threadIdx.x];
    for (int i = 0; i < n; i++) {
        float last = sums[0];
        #pragma unroll
        for (int j = 0; j < 63; j++) sums[j] = sums[j] * sums[j + 1] + x[i];
        sums[63] = last;
    }
    #pragma unroll
    for (int j = 0; j < 64; j++) y[j * n + threadIdx.x] = sums[j];
}
"#;

fn nvrtc() -> Nvrtc {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    Nvrtc::find(&settings).expect("NVRTC is found or fetched")
}

fn compiler() -> Compiler {
    Compiler::without_cache(nvrtc())
}

fn sm(name: &str) -> Target {
    Target::Cubin(name.into())
}

#[test]
fn one_call_gives_ptx_cubin_and_resources_for_a_named_architecture() {
    for name in ["sm_80", "sm_89", "sm_90", "sm_90a", "sm_100"] {
        let source = Source::new("two.cu", TWO_KERNELS);
        let compilation = compiler().compile_with_log(&source, &sm(name)).unwrap();
        let image = &compilation.image;
        assert!(image.ptx.contains(&format!(".target {name}\n")), "{name}");
        assert!(image.ptx.ends_with('\n') && !image.ptx.contains('\0'));
        assert_eq!(image.architecture, name);
        assert_eq!(cubin::kernels(image.cubin.as_ref().unwrap()).unwrap(), ["first", "second"]);
        // 1200 bytes of t; the 1024 that the system keeps from sm_90 on are not counted.
        let first = image.resources["first"];
        assert_eq!((first.static_shared_bytes, first.stack_bytes), (1200, 0), "{name}");
        let second = image.resources["second"];
        assert_eq!((second.static_shared_bytes, second.stack_bytes), (0, 160), "{name}");
        // The registers read from the cubin are those that the compiler's log states.
        for (kernel, resources) in &image.resources {
            let start = compilation.log.find(&format!("properties for {kernel}\n")).unwrap();
            let used = format!("Used {} registers", resources.registers);
            let after = &compilation.log[start..];
            assert!(after[after.find("Used").unwrap()..].starts_with(&used), "{after}");
        }
    }
}

#[test]
fn spills_are_reported() {
    let image = compiler().compile(&Source::new("spilling.cu", SPILLING), &sm("sm_80")).unwrap();
    let Resources { registers, spill_store_bytes, spill_load_bytes, .. } =
        image.resources["spilling"];
    assert_eq!(registers, 32);
    assert!(spill_store_bytes > 0 && spill_load_bytes > 0);
}

#[test]
fn the_argument_list_is_read_from_the_cubin() {
    for name in ["sm_80", "sm_90a", "sm_100"] {
        let image = compiler().compile(&Source::new("two.cu", TWO_KERNELS), &sm(name)).unwrap();
        let cubin = image.cubin.unwrap();
        let expected = [(0, 0, 8), (1, 8, 8), (2, 16, 4), (3, 20, 4), (4, 24, 24)]
            .map(|(ordinal, offset, bytes)| Parameter { ordinal, offset, bytes });
        assert_eq!(cubin::kernel_parameters(&cubin, "first").unwrap(), expected, "{name}");
        let missing = cubin::kernel_parameters(&cubin, "third").unwrap_err();
        let CubinError::NoSuchKernel { present, .. } = missing else { panic!("{missing}") };
        assert_eq!(present, ["first", "second"]);
    }
}

#[test]
fn a_damaged_cubin_is_an_error_or_still_readable_but_never_a_panic() {
    let image = compiler().compile(&Source::new("two.cu", TWO_KERNELS), &sm("sm_90a")).unwrap();
    let cubin = image.cubin.unwrap();
    for cut in (0..cubin.len()).step_by(97) {
        let _ = cubin::resources(&cubin[..cut]);
    }
    for at in 0..cubin.len() {
        let mut damaged = cubin.clone();
        damaged[at] ^= 0xff;
        let _ = cubin::resources(&damaged);
        let _ = cubin::kernel_parameters(&damaged, "first");
    }
}

#[test]
fn ptx_alone_has_no_cubin_and_names_source_lines() {
    let source = Source::new("dir/two.cu", TWO_KERNELS);
    let image = compiler().compile(&source, &Target::Ptx("sm_90a".into())).unwrap();
    assert_eq!(image.cubin, None);
    assert_eq!(image.architecture, "compute_90a");
    assert!(image.resources.is_empty());
    // NVRTC itself would write the absolute path of a file that does not exist.
    assert!(image.ptx.contains("\"dir/two.cu\""));
    assert!(image.ptx.contains(".loc"));
}

#[test]
fn options_of_the_source_count() {
    let text = "extern \"C\" __global__ void k(int* y) { *y = N + __cplusplus / 100; }";
    let mut source = Source::new("k.cu", text);
    let error = compiler().compile(&source, &sm("sm_80")).unwrap_err().to_string();
    assert!(error.contains("k.cu(1): error: identifier \"N\" is undefined"), "{error}");
    source.options = vec!["-DN=4".into(), "--std=c++20".into()];
    let image = compiler().compile(&source, &sm("sm_80")).unwrap();
    assert!(image.ptx.contains("2024"), "{}", image.ptx); // 4 + 202002 / 100
}

#[test]
fn an_error_in_the_source_names_file_and_line() {
    let text = "extern \"C\" __global__ void k(int* y) {\n    *y = z;\n}\n";
    let error = compiler().compile(&Source::new("bad.cu", text), &sm("sm_80")).unwrap_err();
    assert!(matches!(error, CompileError::Source { .. }));
    let message = error.to_string();
    assert!(
        message.starts_with("bad.cu does not compile for sm_80:\nbad.cu(2): error: identifier")
    );
    // Line markers lead back to the file that a rendered source was made from.
    let text = "#line 40 \"tile.cuh\"\nextern \"C\" __global__ void k(int* y) { *y = z; }\n";
    let error = compiler().compile(&Source::new("bad.cu", text), &sm("sm_80")).unwrap_err();
    assert!(error.to_string().contains("tile.cuh(40): error"), "{error}");
    let zero = compiler().compile(&Source::new("zero.cu", "int a\0;"), &sm("sm_80")).unwrap_err();
    assert!(zero.to_string().contains("zero byte"), "{zero}");
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    for bad in ["sm_91", "sm_89a", "sm_90f", "hopper", "", "sm_9000000000000000000000"] {
        let error = compiler().compile(&Source::new("k.cu", ""), &sm(bad)).unwrap_err();
        let CompileError::UnknownArchitecture { asked, supported, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(asked, bad);
        for name in ["sm_80", "sm_90", "sm_90a", "sm_100f"] {
            assert!(supported.iter().any(|s| s == name), "{name} in {supported:?}");
        }
    }
}

/// The folder of the only entry of a cache.
fn only_entry(cache: &Path) -> std::path::PathBuf {
    let entries: Vec<_> = fs_err::read_dir(cache.join("compiled")).unwrap().collect();
    assert_eq!(entries.len(), 1);
    entries.into_iter().next().unwrap().unwrap().path()
}

#[test]
fn code_is_compiled_once_and_damage_is_noticed() {
    let cache = tempfile::tempdir().unwrap();
    let compiler = compiler().with_cache(cache.path());
    let source = Source::new("two.cu", TWO_KERNELS);
    let fresh = compiler.compile_with_log(&source, &sm("sm_90a")).unwrap();
    assert!(!fresh.from_cache);
    let kept = compiler.compile_with_log(&source, &sm("sm_90a")).unwrap();
    assert!(kept.from_cache);
    assert_eq!((&kept.image, &kept.log), (&fresh.image, &fresh.log));

    let entry = only_entry(cache.path());
    let name = entry.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("two-sm_90a-"), "{name}");
    for file in ["entry.json", "kernel.ptx", "kernel.cubin", "SHA256SUMS"] {
        let path = entry.join(file);
        let whole = fs_err::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        fs_err::write(&path, &damaged).unwrap();
        let again = compiler.compile_with_log(&source, &sm("sm_90a")).unwrap();
        assert!(!again.from_cache, "damage in {file} is noticed");
        assert_eq!(again.image, fresh.image);
        assert_eq!(fs_err::read(&path).unwrap(), whole, "{file} is replaced");
    }
    fs_err::remove_file(entry.join("kernel.cubin")).unwrap();
    assert!(!compiler.compile_with_log(&source, &sm("sm_90a")).unwrap().from_cache);
    assert_eq!(only_entry(cache.path()), entry, "nothing else is left behind");
}

#[test]
fn what_differs_is_compiled_apart() {
    let cache = tempfile::tempdir().unwrap();
    let compiler = compiler().with_cache(cache.path());
    let text = "extern \"C\" __global__ void k(int* y) { *y = 1; }";
    let source = Source::new("k.cu", text);
    let mut with_option = source.clone();
    with_option.options.push("-DN=1".into());
    let variants = [
        (source.clone(), sm("sm_80")),
        (source.clone(), sm("sm_90")),
        (source.clone(), Target::Ptx("sm_80".into())),
        (with_option, sm("sm_80")),
        (Source::new("other.cu", text), sm("sm_80")),
        (Source::new("k.cu", text.replace('1', "2")), sm("sm_80")),
    ];
    for (source, target) in &variants {
        assert!(!compiler.compile_with_log(source, target).unwrap().from_cache, "{target:?}");
    }
    for (source, target) in &variants {
        assert!(compiler.compile_with_log(source, target).unwrap().from_cache, "{target:?}");
    }
}

#[test]
fn many_sources_compile_at_once_in_order() {
    let cache = tempfile::tempdir().unwrap();
    let compiler = compiler().with_cache(cache.path());
    let source = |i: usize| {
        let text = format!("extern \"C\" __global__ void k{i}(int* y) {{ *y = {i}; }}");
        Source::new("k.cu", if i == 3 { "broken".into() } else { text })
    };
    // Each source twice, so that two threads also race for one entry.
    let jobs: Vec<_> = (0..12).map(|i| (source(i / 2), sm("sm_80"))).collect();
    for (i, result) in compiler.compile_many(&jobs).into_iter().enumerate() {
        match result {
            Ok(image) => assert!(image.resources.contains_key(&format!("k{}", i / 2))),
            Err(error) => assert!(i / 2 == 3, "{error}"),
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs_err::write(&file, b"").unwrap();
    let text = "extern \"C\" __global__ void k() {}";
    let error = compiler()
        .with_cache(&file.join("cache"))
        .compile(&Source::new("k.cu", text), &sm("sm_80"))
        .unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, CompileError::CacheUnwritable { .. }));
    assert!(message.contains("SPANFORGE_CACHE") && message.contains("file/cache"), "{message}");
}

#[test]
fn a_setting_that_leads_nowhere_is_an_error_and_nothing_else_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        nvrtc_dir: Some(folder.path().into()),
        cache_dir: None,
        fetch: true,
        progress: None,
    };
    let error = Nvrtc::find(&settings).unwrap_err();
    assert!(matches!(error, NvrtcError::Unusable { .. }));
    let message = error.to_string();
    for part in ["no libnvrtc.so in it", "SPANFORGE_NVRTC_DIR", ".whl (sha256 "] {
        assert!(message.contains(part), "{message}");
    }
    fs_err::write(folder.path().join("libnvrtc.so.13"), b"not a library").unwrap();
    let message = Nvrtc::find(&settings).unwrap_err().to_string();
    assert!(message.contains("it does not load"), "{message}");
}
