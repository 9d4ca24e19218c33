//! With the feature `torch`: tells our binaries, tests, examples and benches where libtorch lies, so
//! that they start without `LD_LIBRARY_PATH`. Without it: nothing. Linking itself is `torch-sys`'s
//! work; this follows the same variables in the same order. Doctests get no link arguments from cargo
//! and need `LD_LIBRARY_PATH`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    for name in ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_USE_PYTORCH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_CFG_UNIX").is_none() {
        return;
    }
    // An unknown place is no error: libtorch may be installed where the loader looks anyway.
    if let Some(lib) = libtorch_lib() {
        let lib = lib.canonicalize().unwrap_or(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}

/// The folder of `libtorch.so`, found as `torch-sys` finds it.
fn libtorch_lib() -> Option<PathBuf> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let python = match env::var_os("VIRTUAL_ENV") {
            Some(_) => "python",
            None => "python3",
        };
        let script =
            "import os, torch; print(os.path.join(os.path.dirname(torch.__file__), 'lib'))";
        let output = Command::new(python).args(["-c", script]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        return Some(PathBuf::from(path.trim())).filter(|path| path.is_dir());
    }
    let root = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH"))?;
    Some(PathBuf::from(root).join("lib"))
}
